"""What a run really took, part by part as it was planned; pure, from its journal and its results.

The journal says how long machines were there and when the trainer worked. What the trainer measured
of itself divides that time; it is a machine's word, so no part exceeds what the journal leaves.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

from commands.ui.nodes import view_of
from infra.offer import Offer
from infra.run.fold import apply, fold_node
from infra.run.journal import RELEASE_INTENTS, Event, Kind
from infra.run.nodes import node_count
from infra.run.state import RunState
from infra.run.stop_reasons import went_down_s

HOUR_S = 3600.0
RENT, SET_UP, SEND, LOAD = "rent", "set-up", "send", "load"
BEFORE, TRAIN, EVICTIONS, AFTER = "score before", "train", "evictions", "score after"
FETCH, RELEASE = "fetch", "release"
PARTS = (RENT, SET_UP, SEND, LOAD, BEFORE, TRAIN, EVICTIONS, AFTER, FETCH, RELEASE)
"""In the order in which they happen, with the names that the estimate has for them."""
_COVERS = (RELEASE, RENT, SET_UP, EVICTIONS, FETCH, TRAIN)
"""The parts that the journal tells, from the one that brings the job on least to the most."""
COMPUTE, DISK = "compute", "disk"
_ACCEPTED = {Kind.CREATE_ACCEPTED, Kind.START_ACCEPTED}
_RENTS = {Kind.CREATE_INTENDED, Kind.CREATE_FAILED, Kind.START_INTENDED, Kind.START_FAILED}
_INTERRUPTS = {
    Kind.STOP_SEEN,
    Kind.TRAINER_EXITED,
    Kind.TRAINER_HUNG,
    Kind.MACHINE_UNREACHABLE,
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the trainer measured of itself, as it came home; 0 or None where nothing did."""

    train_s: float = 0.0
    """Of every step once, the last time that it was done."""
    steps: int = 0
    """Of how many steps that is the time."""
    redone_steps: int = 0
    before_s: float = 0.0
    """Of the scoring before the training."""
    after_s: float = 0.0
    memory_bytes: float | None = None
    """The peak on the card, as the allocator reserved it; on a processor, of the process."""


@dataclass(frozen=True, kw_only=True)
class Actual:
    """What a run took: hours by part, dollars by what was billed."""

    memory_bytes: float | None = None
    hours: dict[str, float] = field(default_factory=dict)
    """Only parts that took any time."""
    usd: dict[str, float] = field(default_factory=dict)

    @property
    def total_h(self) -> float:
        """The hours of all parts."""
        return sum(self.hours.values())

    @property
    def total_usd(self) -> float:
        """The dollars of everything billed."""
        return sum(self.usd.values())

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with both sums."""
        return {**asdict(self), "total_hours": self.total_h, "total_usd": self.total_usd}


def actual_of(events: Sequence[Event], measured: Measured) -> Actual:
    """Add up what a run took until its last event."""
    seconds = dict.fromkeys(PARTS, 0.0)
    work: list[_Work] = []
    for part, begun_s, ended_s, state in _stretches(events):
        if part == TRAIN:
            work = _add_work(work, begun_s, ended_s, state)
        else:
            seconds[part] += ended_s - begun_s
    views = [view_of(events, node) for node in range(node_count(events))]
    sent_s = min(seconds[SET_UP], max(_sent_s(view) for view in views))
    seconds[SEND], seconds[SET_UP] = sent_s, seconds[SET_UP] - sent_s
    for part, taken_s in _divided(work, measured).items():
        seconds[part] += taken_s
    return Actual(
        memory_bytes=measured.memory_bytes,
        hours={part: taken_s / HOUR_S for part, taken_s in seconds.items() if taken_s > 0},
        usd=_usd(events),
    )


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A time in which one trainer worked, from its launch to its end."""

    launch: int
    """The number of the launch, from 1."""
    begun_s: float
    taken_s: float
    steps_before: int
    """Steps that were done when it was launched: its disk's, or those of the copy at home."""
    first_step: int = 0
    """The first step that it was seen to have done; 0 if none was seen."""
    first_s: float = 0.0
    """After how many seconds that was."""


Stretch = tuple[str, float, float, RunState]
"""A part of the job, from when until when, and the state of the machine in it."""


def _stretches(events: Sequence[Event]) -> Iterator[Stretch]:
    """Yield the times of a run with their part, in order, and the state in them.

    Where several machines do different things at a time, the part is what brings the job on most:
    it trains while one of them trains.
    """
    count = node_count(events)
    if count == 1:
        yield from _stretches_of_one(events)
        return
    found = [
        (*stretch[:3], _of_group(stretch[3]))
        for node in range(count)
        for stretch in _stretches_of_one(view_of(events, node))
        if stretch[2] > stretch[1]
    ]
    # From the least to the most: what comes later covers what was there.
    found.sort(key=lambda one: (_COVERS.index(one[0]), one[3].group, one[3].disk_step))
    times = sorted({at_s for _, begun_s, ended_s, _ in found for at_s in (begun_s, ended_s)})
    shown: list[Stretch | None] = [None] * len(times)
    for one in found:
        first, last = bisect_left(times, one[1]), bisect_left(times, one[2])
        shown[first:last] = [one] * (last - first)
    for (begun_s, ended_s), top in zip(pairwise(times), shown, strict=False):
        if top is not None:
            yield top[0], begun_s, ended_s, top[3]


def _of_group(state: RunState) -> RunState:
    """Return the state of a machine with the number of its group for that of the launch."""
    return replace(state, launches=state.group or state.launches)


def _stretches_of_one(events: Sequence[Event]) -> Iterator[Stretch]:
    """Yield the times between two events of a machine with their part and the state in them.

    Left out are the times between the end of a command and the next one, unless the trainer worked
    on meanwhile. A clock that jumped back counts as nothing.
    """
    state, part = RunState(), RENT
    begin_set_up = set_up_begins(events)
    for at, (before, after) in enumerate(pairwise(events)):
        state = apply(state, before)
        part = SET_UP if at in begin_set_up and not state.launches else _part(before, part, state)
        if before.kind is Kind.RUN_ENDED or (after.kind is Kind.RUN_RESUMED and part != TRAIN):
            continue
        ended_s = after.at_s
        if part == TRAIN and after.kind is Kind.STOP_SEEN:
            down_s = max(before.at_s, went_down_s(state, after))
            yield TRAIN, before.at_s, down_s, state
            yield EVICTIONS, down_s, ended_s, state
        elif ended_s > before.at_s:
            yield part, before.at_s, ended_s, state


def set_up_begins(events: Sequence[Event]) -> set[int]:
    """Return after which events a machine that was just started is being set up.

    It answers once its safeguards are set; where there are none, once it was seen to run.
    """
    found: set[int] = set()
    last: int | None = None
    rank = {Kind.RUNNING_SEEN: 1, Kind.SAFEGUARDS_SET: 2}
    best = 0
    for at, event in enumerate(events):
        if event.kind in _ACCEPTED:
            last, best = at, 0
        elif last is not None and rank.get(event.kind, 0) > best:
            last, best = at, rank[event.kind]
        elif last is not None and event.kind in {Kind.PREPARED, Kind.STOP_SEEN}:
            found.add(last)
            last = None
    return found | ({last} if last is not None else set())


def _part(event: Event, part: str, state: RunState) -> str:
    """Return what begins with an event, in the state after it."""
    kind, again = event.kind, bool(state.launches)
    if kind is Kind.LAUNCHED:
        return TRAIN
    if kind is Kind.TRAINED:
        return FETCH
    if kind is Kind.FETCHED:
        return RELEASE
    if kind in _INTERRUPTS and again:
        return EVICTIONS
    if kind in _RENTS | _ACCEPTED:
        return EVICTIONS if again else RENT
    if kind in RELEASE_INTENTS:
        return part if part == EVICTIONS else RELEASE
    if kind is Kind.RUN_RESUMED:
        return _resumed(state)
    return part


def _resumed(state: RunState) -> str:
    if state.launched:
        return TRAIN
    if state.trained:
        return RELEASE if state.fetched else FETCH
    if state.launches:
        return EVICTIONS
    return SET_UP if state.up else RENT


def _add_work(work: list[_Work], begun_s: float, ended_s: float, state: RunState) -> list[_Work]:
    """Add a time in which the trainer worked to those before it."""
    if not work or work[-1].launch != state.launches:
        steps_before = max(state.disk_step, state.home_step)
        fresh = _Work(
            launch=state.launches, begun_s=begun_s, taken_s=0.0, steps_before=steps_before
        )
        work = [*work, fresh]
    last = work[-1]
    step = max(state.disk_step, state.home_step)
    if not last.first_step and step > last.steps_before:
        last = replace(last, first_step=step, first_s=begun_s - last.begun_s)
    return [*work[:-1], replace(last, taken_s=last.taken_s + max(0.0, ended_s - begun_s))]


def _divided(work: Sequence[_Work], measured: Measured) -> dict[str, float]:
    """Divide the seconds in which the trainer worked among its parts.

    Scores and steps took what it measured. To load took what passed until its first steps, without
    these and the scoring; what is left is training, with its validations and checkpoints.
    """
    left_s = sum(one.taken_s for one in work)
    step_s = measured.train_s / measured.steps if measured.steps else 0.0
    claims = {
        BEFORE: measured.before_s,
        AFTER: measured.after_s,
        LOAD: 0.0,
        EVICTIONS: measured.redone_steps * step_s,
    }
    unknown_s = left_s - sum(claims.values()) - measured.train_s
    for one in work:
        scored_s = measured.before_s if one is work[0] else 0.0
        if one.first_step:
            done_s = (one.first_step - one.steps_before) * step_s
            loaded_s = one.first_s - done_s - scored_s
        else:  # too short to be seen at work
            loaded_s = min(unknown_s, one.taken_s) if one is work[0] and step_s else 0.0
        claims[LOAD if one is work[0] else EVICTIONS] += max(0.0, loaded_s)
    taken: dict[str, float] = {}
    for part, claimed_s in claims.items():
        taken[part] = min(claimed_s, left_s)
        left_s -= taken[part]
    return {**taken, TRAIN: left_s}


def _sent_s(events: Sequence[Event]) -> float:
    """Return the seconds in which files were sent before the trainer first started."""
    total = 0.0
    for event in events:
        if event.kind is Kind.LAUNCHED:
            break
        sent = event.data.get("sent_s")
        if event.kind is Kind.PREPARED and isinstance(sent, int | float) and sent > 0:
            total += sent
    return total


def _usd(events: Sequence[Event]) -> dict[str, float]:
    """Return the dollars of compute, and of disk and address, of all machines."""
    if not events:
        return {}
    usd = {COMPUTE: 0.0, DISK: 0.0}
    for node in range(node_count(events)):
        for part, dollars in _usd_of_one(view_of(events, node), until_s=events[-1].at_s):
            usd[part] += dollars
    return {part: dollars for part, dollars in usd.items() if dollars > 0}


def _usd_of_one(events: Sequence[Event], *, until_s: float) -> Iterator[tuple[str, float]]:
    """Yield the dollars of each span of a machine, what is beside compute apart."""
    offers = [event for event in events if event.kind is Kind.CREATE_INTENDED]
    prices = [
        (one.at_s, Offer.from_json(one.data["offer"]).beside_compute_usd_per_h) for one in offers
    ]
    for span in fold_node(events).spans:
        ended_s = until_s if span.end_s is None else span.end_s
        hours = max(0.0, ended_s - span.start_s) / HOUR_S
        beside = next(
            (price for since_s, price in reversed(prices) if since_s <= span.start_s), 0.0
        )
        disk = min(beside, span.usd_per_h) if span.compute else span.usd_per_h
        yield DISK, hours * disk
        yield COMPUTE, hours * (span.usd_per_h - disk)
