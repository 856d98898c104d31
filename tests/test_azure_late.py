"""The operation's own end decides: an order that is refused late was refused, and nothing ran."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from arm.harness import AzureHarness, azure, spec
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import NoCapacity, OverQuota, PriceAboveCap, ProviderError
from infra.provider import PowerState, StopReason, Vm
from infra.run.billing_spans import Span, without_compute
from infra.run.budget import bill
from infra.run.fold import fold
from infra.run.journal import Event, Kind
from infra.timestamps import parse_utc_s

CODES = {
    "AllocationFailed": NoCapacity,
    "ZonalAllocationFailed": NoCapacity,
    "OverconstrainedAllocationRequest": NoCapacity,
    "OverconstrainedZonalAllocationRequest": NoCapacity,
    "OperationNotAllowed": OverQuota,
    "SpotPriceGreaterThanProvidedMaxPrice": PriceAboveCap,
    "SomethingNobodyHasSeenYet": NoCapacity,
}


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AzureHarness]:
    """A cloud that keeps the bill."""
    with azure(tmp_path / "here") as harness:
        yield harness


def refuse_late(harness: AzureHarness, code: str, *, after_s: float) -> None:
    """Let everything that is accepted in eastus come to nothing later."""
    for size in ("standard_nc4as_t4_v3",):
        harness.cloud.market.sold_out[size, "eastus"] = code
    harness.cloud.market.fail_s = after_s


def released(harness: AzureHarness) -> Vm:
    """A machine that ran once and was released."""
    vm = harness.provider().create(spec())
    harness.advance(300)
    harness.provider().deallocate(vm)
    harness.advance(60)
    return vm


@pytest.mark.parametrize("after_s", [80.0, 400.0])
@pytest.mark.parametrize(("code", "kind"), CODES.items())
@pytest.mark.parametrize("shown", [True, False], ids=["starting", "down"])
def test_start_that_is_refused_late_has_the_class_of_its_code(
    harness: AzureHarness, code: str, kind: type[ProviderError], after_s: float, *, shown: bool
) -> None:
    """Accepted, shown as starting or not, then refused: what a look tells is that refusal."""
    vm = released(harness)
    refuse_late(harness, code, after_s=after_s)
    harness.cloud.world.shows_starting = shown

    harness.provider().start(vm)
    early = harness.provider().observe(vm)
    harness.advance(after_s)
    late = harness.provider().observe(vm)
    again = harness.provider().observe(vm)

    assert early.power is PowerState.STARTING
    assert (late.power, type(late.refusal), late.ran) == (PowerState.DEALLOCATED, kind, None)
    assert type(again.refusal) is kind


def test_refusal_is_found_with_every_local_file_lost(harness: AzureHarness, tmp_path: Path) -> None:
    """Another computer reads it off the machine, which remembers how its last order failed."""
    vm = released(harness)
    refuse_late(harness, "AllocationFailed", after_s=100)
    harness.provider().start(vm)
    harness.advance(120)

    seen = harness.provider(state_dir=tmp_path / "elsewhere").observe(vm)

    assert isinstance(seen.refusal, NoCapacity)
    assert seen.power is PowerState.DEALLOCATED


@pytest.mark.parametrize(("code", "kind"), CODES.items())
def test_create_that_is_refused_late_has_the_class_of_its_code(
    harness: AzureHarness, code: str, kind: type[ProviderError]
) -> None:
    """A machine that was accepted and failed minutes later says why, and bills no compute."""
    refuse_late(harness, code, after_s=200)

    vm = harness.provider().create(spec())
    harness.advance(200)
    seen = harness.provider().observe(vm)

    assert (seen.power, type(seen.refusal)) == (PowerState.FAILED, kind)


def test_start_that_was_granted_and_taken_back_is_an_eviction(harness: AzureHarness) -> None:
    """A start whose operation succeeded ran, though nobody looked until the machine was down."""
    vm = released(harness)
    harness.cloud.world.report_lag_s = 120
    harness.provider().start(vm)
    harness.advance(200)
    (machine,) = harness.cloud.machines()
    harness.cloud.evict(machine, notice_s=0)

    seen = harness.provider().observe(vm)

    assert (seen.power, seen.ran, seen.refusal) == (PowerState.DEALLOCATED, True, None)
    assert seen.stop_reason is StopReason.EVICTED


def test_release_overtakes_a_start_that_is_under_way(harness: AzureHarness) -> None:
    """A machine that is still down, with a start accepted, is told to stay so, not passed over."""
    vm = released(harness)
    refuse_late(harness, "AllocationFailed", after_s=4000)
    harness.cloud.world.shows_starting = False
    harness.provider().start(vm)
    before = len(harness.cloud.requests)

    harness.provider().deallocate(vm)

    orders = [one.path for one in harness.cloud.requests[before:] if one.method == "POST"]
    assert [path.rpartition("/")[2] for path in orders] == ["deallocate"]
    assert harness.provider().observe(vm).stop_reason is StopReason.USER


@pytest.mark.parametrize("ahead_s", [0.0, 41.0, -7200.0])
@pytest.mark.parametrize("lag_s", [0.0, 58.0, 200.0])
def test_times_are_azures_by_this_computers_clock(
    harness: AzureHarness, lag_s: float, ahead_s: float
) -> None:
    """However late an end is told, and whatever clock this computer has, it is dated right."""
    harness.clock_ahead_s = ahead_s
    harness.cloud.world.report_lag_s = lag_s
    provider = harness.provider()
    vm = provider.create(spec())
    harness.advance(600)
    up = provider.observe(vm)
    (machine,) = harness.cloud.machines()
    began_s = machine.born_s

    provider.deallocate(vm)
    until_s = provider.billed_until_s(vm)

    assert (parse_utc_s(up.bills_since) or 0) - ahead_s == pytest.approx(began_s, abs=3)
    assert until_s is not None
    charges = [one for one in harness.cloud.ledger.charges if one.kind == "compute"]
    ended_s = began_s + sum(one.hours for one in charges) * 3600
    assert until_s - ahead_s == pytest.approx(ended_s, abs=3)


# ---- the pure part ----

OFFER = {
    "provider": "x",
    "region": "a",
    "size": "s",
    "spot_usd_per_h": 1.0,
    "idle_usd_per_h": 0.1,
}
VM = asdict(Vm(provider="x", run_id="r", id="v", region="a", size="s"))


def events_of(*entries: tuple[float, Kind, Mapping[str, object]]) -> list[Event]:
    """A journal of these events."""
    return [
        Event(number=n, at_s=at, kind=k, data=dict(d)) for n, (at, k, d) in enumerate(entries, 1)
    ]


def stop(reason: str, **more: object) -> dict[str, object]:
    """What the journal holds of a stop."""
    return {"power": "deallocated", "reason": reason, "detail": "", "since_s": None, **more}


BEGUN: tuple[tuple[float, Kind, dict[str, object]], ...] = (
    (0.0, Kind.CREATE_INTENDED, {"generation": 1, "offer": OFFER}),
    (60.0, Kind.CREATE_ACCEPTED, {"vm": VM}),
    (100.0, Kind.RUNNING_SEEN, {"since_s": 50.0}),
    (3650.0, Kind.STOP_SEEN, stop("evicted")),
    (3700.0, Kind.START_INTENDED, {}),
    (3775.0, Kind.START_ACCEPTED, {}),
)


@pytest.mark.parametrize("error", ["NoCapacity", "OverQuota", "PriceAboveCap"])
def test_start_refused_late_is_folded_as_one_refused_at_once(error: str) -> None:
    """No eviction, no compute, one more refusal of the offer, and the failure counted."""
    late = (4000.0, Kind.STOP_SEEN, stop("unknown", refused=error))
    early = (4000.0, Kind.START_FAILED, {"error": error, "message": ""})

    one, other = fold(events_of(*BEGUN, late)), fold(events_of(*BEGUN[:-1], early))

    assert (one.evictions, one.start_failures, one.up) == (1, 1, False)
    assert one.refusals == other.refusals
    assert bill(one, 5000.0) == bill(other, 5000.0)
    assert bill(one, 5000.0).compute_h == pytest.approx(1.0)


def test_refusals_add_up_though_each_start_was_accepted() -> None:
    """Only a machine that was seen running forgets how often its start was refused."""
    again = [
        (4000.0 + at, kind, data)
        for at, kind, data in (
            (0.0, Kind.STOP_SEEN, stop("unknown", refused="NoCapacity")),
            (10.0, Kind.START_INTENDED, {}),
            (20.0, Kind.START_ACCEPTED, {}),
            (30.0, Kind.STOP_SEEN, stop("evicted", certain=False)),
        )
    ]

    assert fold(events_of(*BEGUN, *again)).start_failures == 2
    seen = (4100.0, Kind.RUNNING_SEEN, {"since_s": None})
    assert fold(events_of(*BEGUN, *again[:-1], seen)).start_failures == 0


def test_late_explanation_makes_no_eviction_of_what_never_ran() -> None:
    """The log may call it an eviction; a person's order in it still ends the run."""
    inferred = (4000.0, Kind.STOP_SEEN, stop("evicted", certain=False))
    for reason, stops in (("evicted", False), ("user", True)):
        entries: dict[str, object] = {"reason": reason, "detail": "", "since_s": 3900.0}

        state = fold(events_of(*BEGUN, inferred, (4300.0, Kind.STOP_EXPLAINED, entries)))

        assert (state.evictions, bool(state.stopped_by_user)) == (1, stops)


kinds = st.sampled_from(
    [
        (Kind.START_INTENDED, {}),
        (Kind.START_ACCEPTED, {}),
        (Kind.START_FAILED, {"error": "NoCapacity", "message": ""}),
        (Kind.RUNNING_SEEN, {"since_s": None}),
        (Kind.DEALLOCATED, {}),
        (Kind.PRICE_SEEN, {"usd_per_h": 2.0}),
        (Kind.STOP_EXPLAINED, {"reason": "evicted", "detail": "", "since_s": None}),
        *((Kind.STOP_SEEN, stop(str(one))) for one in StopReason),
        *((Kind.STOP_SEEN, stop(str(one), certain=False)) for one in StopReason),
        (Kind.STOP_SEEN, stop("evicted", refused="NoCapacity")),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(kinds, max_size=12))
def test_no_eviction_without_a_machine_seen_running(
    entries: list[tuple[Kind, dict[str, object]]],
) -> None:
    """Whatever a journal holds, evictions are at most the times that the machine was seen up."""
    events = events_of(*BEGUN[:2], *((100.0 + n, k, d) for n, (k, d) in enumerate(entries)))

    state = fold(events)

    starts, running = 0, False
    for event in events:
        if event.kind in {Kind.START_ACCEPTED, Kind.CREATE_ACCEPTED, Kind.STOP_SEEN}:
            running = False
        if event.kind is Kind.RUNNING_SEEN and not running:
            starts, running = starts + 1, True
    assert 0 <= state.evictions <= starts


spans = st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=6).map(
    lambda parts: tuple(_chain(parts))
)


def _chain(parts: list[tuple[int, bool]]) -> Iterator[Span]:
    at_s = 0.0
    for long_s, compute in parts:
        yield Span(start_s=at_s, end_s=at_s + long_s, usd_per_h=1.0, compute=compute)
        at_s += long_s


@given(spans, st.integers(0, 60), st.integers(0, 60), st.booleans())
def test_time_is_moved_between_prices_and_never_lost(
    made: tuple[Span, ...],
    one: int,
    other: int,
    runs_on: bool,  # noqa: FBT001  (hypothesis fills it in)
) -> None:
    """Taking compute out of a stretch keeps every second, and leaves none of it there."""
    from_s, to_s = float(min(one, other)), float(max(one, other))
    made = (*made[:-1], replace(made[-1], end_s=None)) if runs_on else made

    cut = without_compute(made, from_s=from_s, to_s=to_s, usd_per_h=0.1)

    def seconds(all_of: tuple[Span, ...]) -> float:
        return sum((100.0 if s.end_s is None else s.end_s) - s.start_s for s in all_of)

    assert seconds(cut) == seconds(made)
    for span in cut:
        inside = min(100.0 if span.end_s is None else span.end_s, to_s) > max(span.start_s, from_s)
        assert not (span.compute and inside)
