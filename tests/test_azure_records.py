"""A stop is counted once, dated right, and explained again when Azure's records have caught up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest
from arm.harness import T4, AzureHarness, azure, spec
from support.fakecloud import FakeCloud, Story

from infra.provider import Observation, PowerState, StopReason, Vm
from infra.run.budget import bill
from infra.run.fold import fold
from infra.run.journal import Event, Kind, Outcome, read
from infra.run.plan import Goal, RunPlan
from infra.timestamps import parse_utc_s

HOUR_S = 3600.0


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AzureHarness]:
    """A cloud whose activity log is two minutes late."""
    with azure(tmp_path / "here") as harness:
        yield harness


def evicted_twice(harness: AzureHarness) -> tuple[Vm, float]:
    """A machine evicted, restarted, and evicted again an hour later; when that was."""
    provider = harness.provider()
    vm = provider.create(spec())
    harness.advance(HOUR_S)
    harness.cloud.evict(harness.cloud.machines()[0], notice_s=0)
    harness.advance(600)
    provider.start(vm)
    harness.advance(HOUR_S)
    harness.cloud.evict(harness.cloud.machines()[0], notice_s=0)
    harness.advance(1)
    return vm, harness.cloud.clock.now()


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_second_eviction_is_not_dated_back_to_the_first(
    harness: AzureHarness, tmp_path: Path, where: str
) -> None:
    """While the log is silent about it, the hours since the first one are not given away."""
    vm, at_s = evicted_twice(harness)
    provider = harness.provider(state_dir=tmp_path / where)

    early = provider.observe(vm)
    harness.advance(180)
    late = provider.observe(vm)

    assert (early.stop_reason, early.certain, early.since) == (StopReason.EVICTED, False, "")
    assert (late.stop_reason, late.certain) == (StopReason.EVICTED, True)
    assert parse_utc_s(late.since) == pytest.approx(at_s, abs=5)


def test_hours_are_never_dated_back_before_the_last_start() -> None:
    """Whatever a provider says of an earlier stop, the bill counts until the stop was seen."""
    offer = {"provider": "x", "region": "a", "size": "s", "spot_usd_per_h": 1.0}
    vm = asdict(Vm(provider="x", run_id="r", id="v", region="a", size="s"))
    stop = {"power": "deallocated", "reason": "evicted", "detail": "", "since_s": 50.0, "step": 0}
    entries: list[tuple[float, Kind, dict[str, object]]] = [
        (0.0, Kind.CREATE_INTENDED, {"generation": 1, "offer": offer}),
        (100.0, Kind.CREATE_ACCEPTED, {"vm": vm}),
        (7200.0, Kind.STOP_SEEN, stop),
    ]
    events = [Event(number=n, at_s=at, kind=k, data=d) for n, (at, k, d) in enumerate(entries, 1)]

    assert bill(fold(events), 7200.0).compute_h == pytest.approx(2.0)


def test_cost_follows_the_market_while_the_machine_runs() -> None:
    """A price that doubles under the cap doubles what the budget counts from then on."""
    offer = {"provider": "x", "region": "a", "size": "s", "spot_usd_per_h": 1.0}
    vm = asdict(Vm(provider="x", run_id="r", id="v", region="a", size="s", price_usd_per_h=1.0))
    entries: list[tuple[float, Kind, dict[str, object]]] = [
        (0.0, Kind.CREATE_INTENDED, {"generation": 1, "offer": offer}),
        (100.0, Kind.CREATE_ACCEPTED, {"vm": vm}),
        (HOUR_S, Kind.PRICE_SEEN, {"usd_per_h": 2.0}),
    ]
    events = [Event(number=n, at_s=at, kind=k, data=d) for n, (at, k, d) in enumerate(entries, 1)]

    used = bill(fold(events), 2 * HOUR_S)

    assert used.usd == pytest.approx(3.0)
    assert used.usd_per_h_now == 2.0


def test_running_machine_is_priced_by_the_market_of_now(harness: AzureHarness) -> None:
    """A look tells today's price, and asks the list for it four times an hour."""
    provider = harness.provider()
    vm = provider.create(spec())
    before = provider.observe(vm).price_usd_per_h
    harness.cloud.set_price(T4, "eastus", 0.2)
    harness.advance(1000)
    requests = len([r for r in harness.cloud.requests if "retail" in r.path])

    seen = [provider.observe(vm).price_usd_per_h for _ in range(5)]

    assert (before, set(seen)) == (0.149174, {0.2})
    assert len([r for r in harness.cloud.requests if "retail" in r.path]) - requests == 1


def test_price_that_is_counted_is_never_above_the_cap(harness: AzureHarness) -> None:
    """In its last half minute, with the market above its cap, a machine costs its cap."""
    provider = harness.provider()
    vm = provider.create(spec())
    harness.cloud.set_price(T4, "eastus", 0.4)
    harness.advance(1)

    seen = provider.observe(vm)

    assert (seen.power, seen.price_usd_per_h) == (PowerState.RUNNING, 0.25)


def test_own_release_after_a_stop_explains_nothing(harness: AzureHarness) -> None:
    """A `shutdown` from inside makes qft deallocate: its own order is not a person's stop."""
    provider = harness.provider()
    vm = provider.create(spec())
    harness.advance(300)
    at_s = harness.cloud.clock.now()
    provider.deallocate(vm)
    provider.start(vm)
    harness.advance(180)

    assert provider.stop_reason_from_log(vm, after_s=at_s - 300, before_s=at_s) is None


def test_colleague_is_named_once_the_log_tells(harness: AzureHarness, tmp_path: Path) -> None:
    """What was taken for an eviction turns out to be a colleague's doing, and only that stop."""
    provider = harness.provider()
    vm = provider.create(spec())
    harness.advance(300)
    born_s = harness.cloud.clock.now()
    harness.provider(state_dir=tmp_path / "colleague").deallocate(vm)
    seen = provider.observe(vm)
    at_s = harness.cloud.clock.now()

    early = provider.stop_reason_from_log(vm, after_s=born_s, before_s=at_s)
    harness.advance(180)
    late = provider.stop_reason_from_log(vm, after_s=born_s, before_s=at_s)

    assert (seen.stop_reason, seen.certain) == (StopReason.EVICTED, False)
    assert early is None
    assert late is not None
    assert (late.stop_reason, late.detail) == (StopReason.USER, "deallocated by a@b.example")
    assert provider.stop_reason_from_log(vm, after_s=at_s + 500, before_s=at_s + 900) is None


def test_deletion_in_the_portal_is_reported_with_the_name(harness: AzureHarness) -> None:
    """A machine that somebody deleted is gone by their doing, once the log tells."""
    provider = harness.provider()
    vm = provider.create(spec())
    arm = provider.context.arm
    arm.begin("x", arm.compute.virtual_machines.begin_delete, "qft-run-a", "qft-run-a-1").wait(
        wait_s=300
    )
    early = provider.observe(vm)
    harness.advance(180)

    late = provider.observe(vm)

    assert (early.stop_reason, early.certain) == (StopReason.UNKNOWN, False)
    assert (late.stop_reason, late.power) == (StopReason.USER, PowerState.REMNANTS)
    assert "deleted by a@b.example" in late.detail


def test_machine_on_its_way_down_bills_and_has_no_reason_yet(harness: AzureHarness) -> None:
    """While Azure still deallocates an evicted machine it is neither up nor explained."""
    provider = harness.provider()
    vm = provider.create(spec())
    harness.cloud.evict(harness.cloud.machines()[0], notice_s=0, leaving_s=60)
    harness.advance(10)

    leaving = provider.observe(vm)
    harness.advance(60)

    assert (leaving.power, leaving.stop_reason) == (PowerState.STOPPING, None)
    assert leaving.power.bills_compute
    assert provider.observe(vm).stop_reason is StopReason.EVICTED


@dataclass
class UnsureCloud(FakeCloud):
    """Passes through `stopping`, and says minutes later what a stop was in truth."""

    stopping: int = 0
    truth: StopReason = StopReason.RETURNED
    requests: list[float] = field(default_factory=list)

    def observe(self, vm: Vm) -> Observation:
        """An eviction, as far as anybody can tell at first."""
        seen = super().observe(vm)
        if seen.power is PowerState.RUNNING:
            return seen
        if self.stopping:
            self.stopping -= 1
            return Observation(power=PowerState.STOPPING)
        return replace(seen, certain=False)

    def stop_reason_from_log(
        self,
        vm: Vm,  # noqa: ARG002  (the seam names them)
        *,
        after_s: float,  # noqa: ARG002
        before_s: float,
    ) -> Observation | None:
        """Known five minutes after the stop."""
        self.requests.append(self.world.now_s)
        if self.world.now_s - before_s < 300:
            return None
        return Observation(
            power=PowerState.DEALLOCATED, stop_reason=self.truth, detail="stopped by a@b.example"
        )


def test_inferred_eviction_is_corrected_by_the_records(tmp_path: Path) -> None:
    """The run goes on at once; minutes later the journal is corrected, once, by a later line."""
    story = Story(path=tmp_path / "journal.jsonl")
    story.cloud = UnsureCloud(world=story.world, stopping=2)
    story.work.cloud, story.work.steps = story.cloud, 1500
    story.plan = RunPlan(goal=Goal.RUN, rehearse_evictions=(20,))

    ending = story.go()

    events = read(story.path)
    kinds = [one.kind for one in events]
    (stop,) = [one for one in events if one.kind is Kind.STOP_SEEN]
    (later,) = [one for one in events if one.kind is Kind.STOP_EXPLAINED]
    assert ending.outcome is Outcome.DONE
    assert (stop.data["power"], stop.data["reason"]) == ("deallocated", "evicted")
    assert (later.data["reason"], fold(events).evictions) == ("returned", 0)
    assert 300 <= later.at_s - stop.at_s < 900
    assert len(story.cloud.requests) == 2
    assert kinds.index(Kind.START_ACCEPTED) < kinds.index(Kind.STOP_EXPLAINED)


def test_stop_that_was_a_persons_ends_the_run_once_the_records_show_it(tmp_path: Path) -> None:
    """Taken for an eviction and started again, the machine is released when the log names who."""
    story = Story(path=tmp_path / "journal.jsonl")
    story.cloud = UnsureCloud(world=story.world, truth=StopReason.USER)
    story.work.cloud, story.work.steps = story.cloud, 1500
    story.plan = RunPlan(goal=Goal.RUN, rehearse_evictions=(20,))

    ending = story.go()

    assert ending.outcome is Outcome.STOPPED_BY_USER
    assert "stopped by a@b.example" in ending.reason
    assert story.cloud.log == ["create a", "evict", "start a", "deallocate"]
    assert story.work.home > 20  # what was learnt meanwhile is not lost

    story.plan = RunPlan(goal=Goal.RUN)

    assert story.go().outcome is Outcome.DONE
    assert story.cloud.log[4:] == ["start a", "delete"]
