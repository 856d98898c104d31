"""Corrects the hours of a plan during its run by what was measured so far; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from commands.runs.planning import figures
from commands.runs.planning.actual import (
    AFTER,
    BEFORE,
    EVICTIONS,
    FETCH,
    HOUR_S,
    LOAD,
    PARTS,
    RELEASE,
    RENT,
    SET_UP,
    TRAIN,
    Measured,
    actual_of,
)
from infra.run.fold import fold
from infra.run.heartbeat import SILENCE, Heartbeat
from infra.run.journal import Event
from infra.run.state import RunState
from trainer.estimate.span import NOTHING, Span

WORK = (LOAD, BEFORE, TRAIN, AFTER)
"""What the trainer does between its launch and its end."""
ANEW = (RENT, LOAD)
"""What a machine that was evicted takes again before the next step."""
EVALUATING, LOADING = "evaluating", "loading"
"""Phases of the trainer, as its status spells them."""


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """The hours of a job as they were planned, and as they are expected now."""

    planned: Span
    spent_h: float
    left_h: float

    @property
    def expected_h(self) -> float:
        """The hours of the whole job, as far as they are known now."""
        return self.spent_h + self.left_h

    @property
    def line(self) -> str:
        """Both in words: `planned 6.8 h, now 5.9 h`."""
        return f"planned {figures.hours(self.planned.likely)}, now {figures.hours(self.expected_h)}"


def corrected_hours(
    planned: Mapping[str, Span],
    events: Sequence[Event],
    *,
    now_s: float,
    heartbeat: Heartbeat = SILENCE,
) -> Corrected | None:
    """Return what a run is expected to take in all; None without a plan or before it began.

    What has passed counts as the journal has it. Of the part under way the rest of its plan is
    left, of the training what the trainer says of the steps that are left; later parts take what
    was planned, evictions in proportion to the training that is left.
    """
    if not planned or not events:
        return None
    state = fold(events)
    hours = actual_of(events, Measured()).hours
    spent_h = sum(hours.values())
    over = state.ending is not None or (bool(state.fetched) and state.deleted)
    waited_h = 0.0 if over else max(0.0, now_s - events[-1].at_s) / HOUR_S
    total = sum(planned.values(), NOTHING)
    if over and state.fetched:
        return Corrected(planned=total, spent_h=spent_h, left_h=0.0)
    stage = stage_of(state, heartbeat)
    here = sum(hours.get(part, 0.0) for part in WORK) if stage in WORK else hours.get(stage, 0.0)
    left_h = _left_h(planned, stage, here + waited_h, _train_left_h(planned, state, heartbeat))
    return Corrected(planned=total, spent_h=spent_h + waited_h, left_h=left_h)


def stage_of(state: RunState, heartbeat: Heartbeat) -> str:
    """Return the part of the job that is under way."""
    if state.fetched:
        return RELEASE
    if state.trained:
        return FETCH
    if state.launched and state.up:
        return _stage_of_work(state, heartbeat)
    if state.launches:
        return EVICTIONS
    return SET_UP if state.up and state.running_s else RENT


def _stage_of_work(state: RunState, heartbeat: Heartbeat) -> str:
    step = heartbeat.step or 0
    steps = heartbeat.steps or state.steps
    if heartbeat.phase == EVALUATING:
        return AFTER if steps and step >= steps else BEFORE
    if heartbeat.phase == LOADING or not (step or state.step):
        return LOAD
    return TRAIN


def _train_left_h(planned: Mapping[str, Span], state: RunState, heartbeat: Heartbeat) -> float:
    """Return the hours of the steps that are left: the trainer's own word, else the plan's."""
    steps = heartbeat.steps or state.steps
    step = heartbeat.step if heartbeat.step is not None else max(state.disk_step, state.home_step)
    if steps and step >= steps:
        return 0.0
    if heartbeat.eta_s is not None and heartbeat.phase not in {LOADING, EVALUATING}:
        return heartbeat.eta_s / HOUR_S
    share = 1 - step / steps if steps else 1.0
    return planned.get(TRAIN, NOTHING).likely * share


def _left_h(planned: Mapping[str, Span], stage: str, here_h: float, train_left_h: float) -> float:
    """Return the hours that are left, `here_h` after the part (or the work) under way began."""
    likely = dict.fromkeys(PARTS, 0.0) | {part: span.likely for part, span in planned.items()}
    share = min(1.0, train_left_h / likely[TRAIN]) if likely[TRAIN] else 0.0
    evicted_h = likely[EVICTIONS] * share
    likely[TRAIN], likely[EVICTIONS] = train_left_h, 0.0
    if stage == EVICTIONS:
        again_h = max(0.0, sum(likely[part] for part in ANEW) - here_h)
        return evicted_h + again_h + sum(likely[part] for part in (TRAIN, AFTER, FETCH, RELEASE))
    later = PARTS[PARTS.index(stage) + 1 :]
    return evicted_h + _rest_h(stage, likely, here_h) + sum(likely[part] for part in later)


def _rest_h(stage: str, likely: Mapping[str, float], here_h: float) -> float:
    """Return what is left of the part under way; one that is overdue may end at any moment."""
    if stage in {TRAIN, AFTER}:
        return likely[stage]
    done_h = here_h - likely[LOAD] if stage == BEFORE else here_h
    return min(likely[stage], max(0.0, likely[stage] - done_h))
