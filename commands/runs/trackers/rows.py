"""Makes of a run's log and journal the rows that trackers get: metrics, times, machine facts.

Pure but for reading the log. The log has no clock: a step is dated by the first look at the machine
that saw it done, less the seconds that the steps after it took.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.runs.home import RunFolder
from commands.runs.trackers.tracker import TrackedRow
from infra.run.budget import bill, with_others
from infra.run.fold import apply
from infra.run.journal import Event, Kind
from infra.run.nodes import node_count, node_of
from infra.run.state import RunState
from infra.untrusted import NotPlain, number, parse, table, whole
from trainer.saving.manifest import LOG, directory_name, steps_present

LINE_BYTES_MAX = 1 << 20
SECONDS_MAX = 7 * 24 * 3600.0
NOT_SHOWN = frozenset({"step", "targets", "skipped"})


@dataclass(frozen=True, kw_only=True)
class LoggedStep:
    """One line of the log: the step, the seconds it took, and its numbers."""

    step: int
    seconds: float
    metrics: dict[str, float]


def logged_steps(folder: RunFolder, out: Path, state: RunState) -> list[LoggedStep]:
    """Return the steps of a run that are at home, in order.

    Until the run has all its steps the last one is left out: its validation may follow.
    """
    if state.fetched:
        return read_log(out / LOG)
    copies = [folder.live / LOG]
    newest = steps_present(folder.checkpoints)[:1]
    copies += [folder.checkpoints / directory_name(step) / LOG for step in newest]
    found = max((read_log(path) for path in copies), key=lambda steps: [s.step for s in steps[-1:]])
    return found if state.trained and found and found[-1].step == state.steps else found[:-1]


def read_log(path: Path) -> list[LoggedStep]:
    """Read a log up to the first line that is no record of a further step; none is no steps."""
    try:
        lines = path.read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    steps: list[LoggedStep] = []
    for line in lines:
        try:
            record = table(parse(line, bytes_max=LINE_BYTES_MAX))
        except NotPlain:
            break
        step = whole(record.get("step"))
        if step is None or (steps and step <= steps[-1].step):
            break
        steps.append(_logged(step, record))
    return steps


def _logged(step: int, record: dict[str, Any]) -> LoggedStep:
    values = {key: number(value) for key, value in record.items() if key not in NOT_SHOWN}
    metrics = {key: value for key, value in values.items() if value is not None}
    seconds = min(max(metrics.get("seconds", 0.0), 0.0), SECONDS_MAX)
    if seconds > 0 and "tokens" in metrics:
        metrics["tokens_per_s"] = metrics["tokens"] / seconds
    return LoggedStep(step=step, seconds=seconds, metrics=metrics)


def tracked_rows(
    steps: Sequence[LoggedStep], events: Sequence[Event], *, now_s: float
) -> Iterator[TrackedRow]:
    """Yield a row for each step: its metrics, and `usd` and `evictions` of the run by then."""
    states, at = [RunState() for _ in range(node_count(events))], 0
    for logged, at_s in zip(steps, times_of(steps, events, now_s=now_s), strict=True):
        while at < len(events) and events[at].at_s <= at_s:
            node = node_of(events[at])
            states[node] = apply(states[node], events[at])
            at += 1
        state = with_others(states[0], states[1:])
        facts = {"usd": round(bill(state, at_s).usd, 6), "evictions": float(state.evictions)}
        yield TrackedRow(step=logged.step, at_s=at_s, metrics={**logged.metrics, **facts})


def times_of(steps: Sequence[LoggedStep], events: Sequence[Event], *, now_s: float) -> list[float]:
    """Return when each step was done, in seconds since 1970; never earlier than the one before."""
    seen = _looks(events)
    last = steps[-1].step if steps else 0
    if not seen or seen[-1][0] < last:
        seen.append((last, max([now_s, *(at_s for _, at_s in seen)])))
    reached = [step for step, _ in seen]
    times: list[float] = []
    after_s, look = 0.0, len(seen)
    for at in range(len(steps) - 1, -1, -1):
        index = bisect_left(reached, steps[at].step)
        if index != look:
            look, after_s = index, 0.0
        earliest_s = seen[index - 1][1] if index else 0.0
        times.append(max(earliest_s, seen[index][1] - after_s))
        after_s += steps[at].seconds
    times.reverse()
    for at in range(1, len(times)):
        times[at] = max(times[at], times[at - 1])
    return times


def _looks(events: Sequence[Event]) -> list[tuple[int, float]]:
    """Return the looks at the machine that saw a further step done: that step, and when."""
    seen: list[tuple[int, float]] = []
    for event in events:
        step = whole(event.data.get("step")) if event.kind is Kind.PROGRESS else None
        if step and (not seen or step > seen[-1][0]):
            seen.append((step, max([event.at_s, *(at_s for _, at_s in seen[-1:])])))
    return seen
