"""The timeline of a run's machines: what each was doing from when until when, and for how much.

Pure, from the journal. The stretches are those of the bill, cut where another activity begins, so
that their hours and dollars are those of the receipt, whatever a machine claims of itself.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from commands.runs.planning.actual import Measured, set_up_begins
from commands.runs.receipt import DOWN_REASON
from commands.ui.nodes import view_of
from infra.run.billing_spans import Span as BillingSpan
from infra.run.fold import apply, fold_node
from infra.run.journal import RELEASE_INTENTS, Event, Kind
from infra.run.nodes import node_count
from infra.run.state import RunState
from infra.run.stop_reasons import is_eviction, is_refusal, went_down_s

HOUR_S = 3600.0


class Activity(StrEnum):
    """What a machine is doing, or why there is none."""

    RENT = "rent"
    """From the request until it answers."""
    SET_UP = "set-up"
    SEND = "send"
    LOAD = "load"
    """The trainer starts and loads the base."""
    SCORE = "score"
    TRAIN = "train"
    IDLE = "idle"
    """It runs, and no trainer works on it."""
    FETCH = "fetch"
    RELEASE = "release"
    """The adapter is at home, or the run ends, until the provider confirms the release."""
    EVICTED = "evicted"
    """Until another one, or the same one again, is asked for."""
    STOPPED = "stopped"
    """By a person, by itself, or nobody knows by whom."""
    WAIT = "wait"
    """No machine: none was asked for yet, or none is to be had."""
    RELEASED = "released"
    """Nothing computes; the disk may bill."""


NEEDS_COMPUTE = frozenset(
    {
        Activity.SET_UP,
        Activity.SEND,
        Activity.LOAD,
        Activity.SCORE,
        Activity.TRAIN,
        Activity.IDLE,
        Activity.FETCH,
    }
)
_RENTS = {Kind.CREATE_INTENDED, Kind.CREATE_ACCEPTED, Kind.START_INTENDED, Kind.START_ACCEPTED}
_REFUSED = {Kind.CREATE_FAILED, Kind.START_FAILED}
_UNWORKED = {Kind.TRAINER_EXITED, Kind.TRAINER_HUNG, Kind.MACHINE_UNREACHABLE}


@dataclass(frozen=True, kw_only=True)
class TimelineSpan:
    """A stretch of time with one activity of one machine; seconds since 1970, and dollars."""

    activity: Activity
    begin_s: float
    end_s: float
    machine: int
    """Its number within the run, from 1; 0 while there is none."""
    compute: bool
    """Whether its compute was billed; else its disk at most."""
    usd: float
    node: int | None = None
    """Which of several machines that a run has at a time; None where it has one."""

    @property
    def hours(self) -> float:
        """How long it is."""
        return (self.end_s - self.begin_s) / HOUR_S

    def to_json(self) -> dict[str, Any]:
        """Plain values; `node` only where there are several."""
        values = asdict(self)
        if self.node is None:
            del values["node"]
        return values


def timeline_of(
    events: Sequence[Event], measured: Measured, *, until_s: float | None = None
) -> list[TimelineSpan]:
    """Return what a run's machines did until its last event, or until `until_s`, oldest first.

    The hours with `compute` add up to those of `infra.run.budget.bill` at that time, the dollars to
    its dollars. Where a clock jumped back, spans may overlap as those of the bill do. Those of
    several machines overlap: first come all of node 0, then those of the next.
    """
    if not events:
        return []
    end_s = events[-1].at_s if until_s is None else until_s
    count = node_count(events)
    if count == 1:
        return _timeline_of_one(events, measured, end_s=end_s)
    return [
        replace(span, node=node)
        for node in range(count)
        for span in _timeline_of_one(view_of(events, node), measured, end_s=end_s)
    ]


def _timeline_of_one(
    events: Sequence[Event], measured: Measured, *, end_s: float
) -> list[TimelineSpan]:
    """Return what one machine did, from its own events and those of the whole run."""
    changes = _changes(events, measured, end_s=end_s)
    spans: list[TimelineSpan] = []
    cursor_s = events[0].at_s
    for billed in fold_node(events).spans:
        ended_s = max(billed.start_s, end_s if billed.end_s is None else billed.end_s)
        spans += _cut(changes, None, cursor_s, billed.start_s)
        spans += _cut(changes, billed, billed.start_s, ended_s)
        cursor_s = max(cursor_s, ended_s)
    spans += _cut(changes, None, cursor_s, end_s)
    return _merged(spans)


@dataclass(frozen=True, kw_only=True)
class _Change:
    """The moment from which a machine does something else."""

    at_s: float
    activity: Activity
    machine: int


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A time in which one trainer works, as far as the journal has it."""

    begin_s: float
    machine: int
    is_first: bool
    steps_before: int
    """Steps that were done when it was launched."""
    steps: int
    """Steps that were seen to be done."""
    seen_s: float = 0.0
    """After how many seconds the first new step was seen; 0 if none was."""
    first_steps: int = 0
    """How many new steps were seen then."""


def _cut(
    changes: Sequence[_Change], billed: BillingSpan | None, begin_s: float, end_s: float
) -> Iterator[TimelineSpan]:
    """Cut a stretch at one price, or one that nobody bills, where the activity changes."""
    at = max(0, bisect_right(changes, begin_s, key=lambda one: one.at_s) - 1)
    while begin_s < end_s:
        next_s = changes[at + 1].at_s if at + 1 < len(changes) else math.inf
        piece_s = max(begin_s, min(end_s, next_s))
        compute = billed is not None and billed.compute
        if piece_s > begin_s:
            yield TimelineSpan(
                activity=_possible(changes, at, compute=compute),
                begin_s=begin_s,
                end_s=piece_s,
                machine=changes[at].machine if billed else 0,
                compute=compute,
                usd=(piece_s - begin_s) / HOUR_S * billed.usd_per_h if billed else 0.0,
            )
        begin_s, at = piece_s, at + 1


def _possible(changes: Sequence[_Change], at: int, *, compute: bool) -> Activity:
    """Return the activity of a change, or what it can only be given whether compute is billed.

    The provider may date a stop before the last thing that was seen here.
    """
    activity = changes[at].activity
    if compute:
        return Activity.IDLE if activity in {Activity.WAIT, Activity.RELEASED} else activity
    later = (one.activity for one in changes[at:] if one.activity not in NEEDS_COMPUTE)
    return next(later, Activity.WAIT)


def _merged(spans: Sequence[TimelineSpan]) -> list[TimelineSpan]:
    """Join neighbours that differ in nothing but their price."""
    joined: list[TimelineSpan] = []
    for span in spans:
        last = joined[-1] if joined else None
        if last and (last.activity, last.machine, last.compute, last.end_s) == (
            span.activity,
            span.machine,
            span.compute,
            span.begin_s,
        ):
            joined[-1] = replace(last, end_s=span.end_s, usd=last.usd + span.usd)
        else:
            joined.append(span)
    return joined


def _changes(events: Sequence[Event], measured: Measured, *, end_s: float) -> list[_Change]:
    """Return when another activity began, in order; a clock that jumped back counts as nothing."""
    changes: list[_Change] = []
    reasons, set_ups = _stop_reasons(events), set_up_begins(events)
    state, activity, work = RunState(), Activity.WAIT, None
    now_s = events[0].at_s
    for at, event in enumerate(events):
        before, state = state, apply(state, event)
        at_s = went_down_s(before, event) if event.kind is Kind.STOP_SEEN else event.at_s
        now_s = max(now_s, at_s)
        after = _activity(event, activity, before, state, reason=reasons.get(at))
        if at in set_ups and after is Activity.RENT:
            after = Activity.SET_UP
        if after is Activity.TRAIN:
            work = _followed(work, now_s, state)
        elif work is not None:
            changes += _divided(work, now_s, measured, done=event.kind is Kind.TRAINED)
            work = None
        if event.kind is Kind.PREPARED and after is Activity.SET_UP and changes:
            sent_s = max(changes[-1].at_s, now_s - _sent_s(event))
            changes.append(_Change(at_s=sent_s, activity=Activity.SEND, machine=state.generation))
        if after is not Activity.TRAIN:
            changes.append(_Change(at_s=now_s, activity=after, machine=state.generation))
        activity = after
    if work is not None:
        changes += _divided(work, max(now_s, end_s), measured, done=False)
    return changes


def _activity(
    event: Event, activity: Activity, before: RunState, state: RunState, *, reason: object
) -> Activity:
    """Return what goes on after an event, from what went on and the states around it."""
    kind, down = event.kind, activity in {Activity.EVICTED, Activity.STOPPED}
    if event.data.get("reason") == DOWN_REASON and kind is not Kind.STOP_SEEN:
        down = False
    if kind in _RENTS:
        return Activity.RENT
    if kind in _REFUSED:
        return Activity.WAIT
    if kind is Kind.STOP_SEEN:
        if is_refusal(before, event.data):
            return Activity.WAIT
        return Activity.EVICTED if is_eviction(reason) else Activity.STOPPED
    if kind is Kind.LAUNCHED:
        return Activity.TRAIN
    if kind is Kind.TRAINED:
        return Activity.FETCH
    if kind in _UNWORKED:
        return Activity.IDLE
    if kind is Kind.PREPARED:
        return Activity.TRAIN if state.launched else Activity.SET_UP
    if kind is Kind.FETCHED or kind in RELEASE_INTENTS:
        return activity if down else Activity.RELEASE
    if kind in {Kind.DEALLOCATED, Kind.DELETED}:
        return activity if down else Activity.RELEASED
    if kind is Kind.RUN_ENDED:
        return _ended(activity, state)
    if kind is Kind.RUN_RESUMED:
        return _resumed(activity, state)
    return activity


def _ended(activity: Activity, state: RunState) -> Activity:
    """Return what goes on after a command has ended; a trainer goes on without it."""
    if not state.up:
        return Activity.RELEASED
    return activity if state.launched and not state.trained else Activity.IDLE


def _resumed(activity: Activity, state: RunState) -> Activity:
    """Return what goes on once somebody asks for the run again."""
    if not state.up:
        return Activity.WAIT
    if state.trained:
        return Activity.RELEASE if state.fetched else Activity.FETCH
    if state.launched:
        return Activity.TRAIN
    return activity if activity is Activity.RENT else Activity.SET_UP


def _stop_reasons(events: Sequence[Event]) -> dict[int, object]:
    """Return why each stop came, by its place in the journal; a log's word replaces a guess."""
    reasons: dict[int, object] = {}
    for at, event in enumerate(events):
        if event.kind is Kind.STOP_SEEN:
            reasons[at] = event.data["reason"]
        elif event.kind is Kind.STOP_EXPLAINED and reasons:
            reasons[max(reasons)] = event.data["reason"]
    return reasons


def _sent_s(event: Event) -> float:
    """Return for how many seconds files were sent before a machine was ready."""
    sent = event.data.get("sent_s")
    return float(sent) if isinstance(sent, int | float) and sent > 0 else 0.0


def _followed(work: _Work | None, at_s: float, state: RunState) -> _Work:
    """Return the work that begins or goes on, with the steps that the state has of it."""
    steps = max(state.disk_step, state.home_step)
    if work is None:
        return _Work(
            begin_s=at_s,
            machine=state.generation,
            is_first=state.launches <= 1,
            steps_before=steps,
            steps=steps,
        )
    if steps > work.steps_before and not work.first_steps:
        first = steps - work.steps_before
        work = replace(work, seen_s=at_s - work.begin_s, first_steps=first)
    return replace(work, steps=max(work.steps, steps))


def _divided(work: _Work, end_s: float, measured: Measured, *, done: bool) -> Iterator[_Change]:
    """Divide the time of a trainer: it loads, scores if it is the first, trains, scores when done.

    What it measured of itself is a machine's word: no part exceeds what is left. Before its first
    step was seen, all of it is loading.
    """
    whole_s = end_s - work.begin_s
    step_s = measured.train_s / measured.steps if measured.steps else 0.0
    after_s = min(whole_s, measured.after_s) if done else 0.0
    left_s = whole_s - after_s
    before_s = min(left_s, measured.before_s) if work.is_first and (work.first_steps or done) else 0
    left_s -= before_s
    if work.first_steps:
        worked_s = (work.steps - work.steps_before) * step_s
        load_s = min(work.seen_s - before_s - work.first_steps * step_s, left_s - worked_s)
    else:
        load_s = 0.0 if done else left_s
    load_s = min(max(0.0, load_s), left_s)
    parts = [
        (Activity.LOAD, load_s),
        (Activity.SCORE, before_s),
        (Activity.TRAIN, left_s - load_s),
        (Activity.SCORE, after_s),
    ]
    at_s = work.begin_s
    for activity, taken_s in parts:
        if taken_s > 0:
            yield _Change(at_s=min(at_s, end_s), activity=activity, machine=work.machine)
            at_s += taken_s
