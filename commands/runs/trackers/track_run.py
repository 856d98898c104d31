"""Sends what a tracker does not have of a run yet: its rows, then its ending."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from commands.runs.config import TRAINER_TABLES, LoadedConfig
from commands.runs.home import RunFolder
from commands.runs.receipt import Receipt, make_receipt
from commands.runs.trackers.outbox import Outbox, Sent
from commands.runs.trackers.rows import logged_steps, tracked_rows
from commands.runs.trackers.tracker import RunEnding, TrackedRun, Tracker
from infra.run.fold import fold
from infra.run.journal import Event, Kind, Outcome, read
from infra.run.state import RunState
from infra.run.stop_reasons import is_eviction
from infra.timestamps import format_utc
from infra.untrusted import table

ROWS_AT_ONCE = 1000
FOLDER = "tracked"
SCORES = ("before", "after")


def outbox_of(folder: RunFolder, state: RunState) -> Outbox:
    """Open what is kept of the run for its trackers; a run begun anew has another folder."""
    return Outbox(folder.root / FOLDER / state.run_id)


def tracked_run(folder: RunFolder, loaded: LoadedConfig, events: Sequence[Event]) -> TrackedRun:
    """Describe a run for trackers, with its ending if it has one."""
    state = fold(events)
    return TrackedRun(
        id=state.run_id,
        name=state.name or folder.name,
        started_s=state.started_s,
        config=dict(flat(loaded)),
        ending=_ending(folder, loaded, events, state),
    )


def flat(loaded: LoadedConfig) -> Iterator[tuple[str, str | float]]:
    """Yield the training's settings as `table.key` and value: only those that went to the machine.

    A list is one text; what is not set is left out.
    """
    for name in TRAINER_TABLES:
        for key, value in table(loaded.config.trainer_tables.get(name)).items():
            plain = isinstance(value, str | int | float)
            yield f"{name}.{key}", value if plain else str(value)
    yield "vm.provider", ", ".join(loaded.config.vm.providers)


def _ending(
    folder: RunFolder, loaded: LoadedConfig, events: Sequence[Event], state: RunState
) -> RunEnding | None:
    if state.ending is None:
        return None
    last = next(event for event in reversed(events) if event.kind is Kind.RUN_ENDED)
    receipt = make_receipt(folder, loaded.out, simulated=loaded.simulated)
    return RunEnding(
        number=last.number,
        at_s=last.at_s,
        done=state.ending.outcome is Outcome.DONE,
        step=max(state.step, state.steps if state.trained else 0),
        summary=dict(_summary(loaded.out if state.fetched else None, receipt)),
        notes=[*_evictions(events), f"ended: {state.ending.reason}"],
    )


def _summary(out: Path | None, receipt: Receipt) -> Iterator[tuple[str, float]]:
    """Yield the final figures: cost, hours, evictions, and the scores with their intervals."""
    yield "usd", receipt.usd
    yield "machine_h", receipt.machine_h
    yield "evictions", float(receipt.evictions)
    yield "redone_steps", float(receipt.redone_steps)
    for stage in SCORES if out is not None else ():
        score = receipt.before if stage == "before" else receipt.after
        if score is not None:
            yield f"{stage}/{score.metric}", score.value
            yield f"{stage}/{score.metric}_low", score.low
            yield f"{stage}/{score.metric}_high", score.high


def _evictions(events: Sequence[Event]) -> Iterator[str]:
    for event in events:
        if event.kind is Kind.STOP_SEEN and is_eviction(event.data.get("reason")):
            step = event.data.get("step")
            yield f"evicted {format_utc(event.at_s)}, last seen at step {step}"


def fill(outbox: Outbox, folder: RunFolder, loaded: LoadedConfig, *, now_s: float) -> list[Event]:
    """Fix the rows that came home since; return the run's journal."""
    events = read(folder.journal)
    steps = logged_steps(folder, loaded.out, fold(events))
    outbox.add(tracked_rows(steps, events, now_s=now_s))
    return events


def send_unsent(tracker: Tracker, name: str, run: TrackedRun, outbox: Outbox) -> int:
    """Send a tracker the rows that it lacks, in parts, each remembered once it is there.

    The ending, if it lacks that, goes with the last of them. Returns how many rows were sent.
    Raises what the tracker raises.
    """
    rows, sent = outbox.unsent(name), outbox.sent(name)
    parts = [rows[at : at + ROWS_AT_ONCE] for at in range(0, len(rows), ROWS_AT_ONCE)]
    number = run.ending.number if run.ending is not None else sent.ending
    if not parts and number != sent.ending:
        parts = [()]
    for part in parts:
        is_last = part is parts[-1]
        tracker.send(run if is_last and number != sent.ending else replace(run, ending=None), part)
        sent = Sent(
            step=part[-1].step if part else sent.step, ending=number if is_last else sent.ending
        )
        outbox.note(name, sent)
    return len(rows)


def is_behind(names: Sequence[str], folder: RunFolder, loaded: LoadedConfig) -> bool:
    """Whether one of the trackers lacks steps that are at home, or the ending; writes nothing."""
    events = read(folder.journal)
    state = fold(events)
    outbox = outbox_of(folder, state)
    last = max((logged.step for logged in logged_steps(folder, loaded.out, state)[-1:]), default=-1)
    run = tracked_run(folder, loaded, events)
    ending = run.ending.number if run.ending else 0
    sent = [outbox.sent(name) for name in names]
    return any(one.step < last or (ending and one.ending != ending) for one in sent)
