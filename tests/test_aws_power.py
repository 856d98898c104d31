"""Starting, stopping and interrupting machines on a simulated EC2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ec2.harness import AwsHarness, aws, spec
from ec2.killing import KilledError, Killer
from ec2.state import Timing
from support.aws_machines import compute_hours, instance_of, provider_of, rent, stopped, wait_for

from infra.errors import NeverStarts, NoCapacity, NotAllowed, OverQuota, PriceAboveCap, Transient
from infra.provider import PowerState, StopReason
from infra.retry import with_retries
from infra.timestamps import format_utc

DIALECTS = ("InsufficientInstanceCapacity", "Unsupported", "IncorrectSpotRequestState")


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account with a computer."""
    with aws(tmp_path) as made:
        made.changes = {"polling_s": 20.0}
        yield made


# ---- start ----


def test_start_right_after_a_stop_waits_for_its_end(harness: AwsHarness) -> None:
    """EC2 refuses for 40 s to start what has just stopped: the order is held back until then."""
    vm = rent(harness)
    provider_of(harness).deallocate(vm)
    stopped_s = harness.now()

    provider_of(harness).start(vm)

    assert harness.now() - stopped_s >= 40
    assert len(harness.cloud.calls("StartInstances")) == 1
    assert provider_of(harness).observe(vm).power is PowerState.RUNNING


def test_a_stop_that_lasts_makes_a_start_transient(tmp_path: Path) -> None:
    """A machine that takes minutes to stop is started later: `Transient`, 10 s at a time."""
    with aws(tmp_path, timing=Timing(stop_s=470)) as harness:
        harness.changes = {"polling_s": 20.0}
        vm = rent(harness)
        harness.cloud.world.stop_instance(
            instance_of(harness, vm).id, "Client.UserInitiatedShutdown", "instance-stopped-by-user"
        )

        with pytest.raises(Transient) as caught:
            provider_of(harness).start(vm)
        with_retries(lambda: provider_of(harness).start(vm), harness.advance)

        assert caught.value.retry_after_s == 10
        assert provider_of(harness).observe(vm).power is PowerState.RUNNING


@pytest.mark.parametrize("code", DIALECTS)
def test_only_ec2_starts_what_it_interrupted(harness: AwsHarness, code: str) -> None:
    """Each of EC2's three words for no room at a start is `NoCapacity`; it stays evicted."""
    vm = rent(harness)
    harness.cloud.world.start_refusal = code
    harness.set_capacity("us-east-1", free=False)
    harness.cloud.interrupt(instance_of(harness, vm), notice_s=0)
    wait_for(harness, vm, PowerState.DEALLOCATED)

    with pytest.raises(NoCapacity):
        provider_of(harness).start(vm)

    seen = provider_of(harness).observe(vm)
    assert (seen.power, seen.stop_reason) == (PowerState.DEALLOCATED, StopReason.EVICTED)
    assert seen.refusal is None


def test_what_no_request_holds_any_more_never_starts(harness: AwsHarness) -> None:
    """A stopped machine whose spot request was cancelled says so to whoever would start it."""
    vm = stopped(harness)
    request = next(iter(harness.cloud.world.requests.values()))
    request.state = "cancelled"

    provider = provider_of(harness)
    for act in (provider.start, lambda vm: provider.update_max_price(vm, 0.3)):
        with pytest.raises(NeverStarts, match="its spot request has ended"):
            act(vm)


def test_start_without_room_is_no_capacity(harness: AwsHarness) -> None:
    """A machine that we stopped stays down when its zone has filled up, and still reads as ours."""
    vm = rent(harness)
    provider_of(harness).deallocate(vm)
    harness.set_capacity("us-east-1", free=False)
    harness.advance(60)

    with pytest.raises(NoCapacity):
        provider_of(harness).start(vm)

    seen = provider_of(harness).observe(vm)
    assert (seen.power, seen.detail) == (PowerState.DEALLOCATED, "stopped because qft asked for it")


def test_start_above_the_cap_tells_the_price(harness: AwsHarness) -> None:
    """A machine that we stopped is not started at a price above its cap, which is told."""
    vm = rent(harness)
    provider_of(harness).deallocate(vm)
    harness.advance(60)
    harness.set_price("us-east-1", 0.9)

    with pytest.raises(PriceAboveCap) as caught:
        provider_of(harness).start(vm)

    assert caught.value.current_usd_per_h == pytest.approx(0.9)


@pytest.mark.parametrize("code", DIALECTS[1:])
def test_start_after_a_price_interruption_tells_the_price(harness: AwsHarness, code: str) -> None:
    """What EC2 stopped for its price is refused with the price of now, in whatever words."""
    vm = rent(harness)
    harness.cloud.world.start_refusal = code
    harness.set_price("us-east-1", 0.9)
    seen = wait_for(harness, vm, PowerState.DEALLOCATED)

    with pytest.raises(PriceAboveCap) as caught:
        provider_of(harness).start(vm)

    assert seen.stop_reason is StopReason.PRICE
    assert caught.value.current_usd_per_h == pytest.approx(0.9)


def test_start_over_quota_says_so(harness: AwsHarness) -> None:
    """A quota that was lowered meanwhile refuses a start as it refuses a create."""
    vm = rent(harness)
    provider_of(harness).deallocate(vm)
    harness.advance(60)
    harness.cloud.market.quotas["us-east-1", "L-3819A6DF"] = 0

    with pytest.raises(OverQuota):
        provider_of(harness).start(vm)


def test_a_machine_without_a_request_is_started_no_more(harness: AwsHarness) -> None:
    """A stopped machine whose request has expired cannot start: the run has to move."""
    vm = provider_of(harness).create(spec(until_s=None))
    provider_of(harness).deallocate(vm)
    harness.advance(60)
    (request,) = harness.cloud.spot_requests()
    harness.cloud.world.set_status(request, "cancelled", "schedule-expired")

    with pytest.raises(NoCapacity, match="schedule-expired"):
        provider_of(harness).start(vm)


@pytest.mark.parametrize("answered", [False, True])
def test_a_start_that_is_killed_can_be_made_again(harness: AwsHarness, *, answered: bool) -> None:
    """Killed around the order itself, the next start brings the same machine up."""
    vm = stopped(harness)
    counter = Killer()
    harness.provider(killer=counter).start(vm)
    provider_of(harness).deallocate(vm)
    harness.advance(60)
    at = counter.sent.index("ec2.StartInstances") + 1
    with pytest.raises(KilledError):
        harness.provider(killer=Killer(at=at, answered=answered)).start(vm)
    seen = provider_of(harness).observe(vm)

    with_retries(lambda: provider_of(harness).start(vm), harness.advance)

    assert seen.power in {PowerState.STARTING, PowerState.RUNNING}
    assert wait_for(harness, vm, PowerState.RUNNING).stop_reason is None
    assert [one.id for one in harness.cloud.machines()] == [instance_of(harness, vm).id]


# ---- deallocate ----


def test_a_stop_of_seven_minutes_is_waited_for_and_not_billed(tmp_path: Path) -> None:
    """The deep-learning image takes minutes to stop: the bill ends when that began."""
    with aws(tmp_path, timing=Timing(stop_s=470)) as harness:
        harness.changes = {"polling_s": 20.0}
        vm = rent(harness)
        harness.advance(600)
        began_s = harness.now()
        provider = provider_of(harness)

        provider.deallocate(vm)

        took_s = harness.now() - began_s
        assert 470 <= took_s < 500
        assert provider.billed_until_s(vm) == pytest.approx(began_s, abs=1)
        seen = provider.observe(vm)
        assert seen.since == format_utc(began_s)
        assert compute_hours(harness) == pytest.approx(
            (began_s - instance_of(harness, vm).launch_s) / 3600, abs=0.01
        )


def test_a_stop_that_does_not_end_is_transient(tmp_path: Path) -> None:
    """After a quarter of an hour in `stopping` the order is given up for now, and not the wait."""
    with aws(tmp_path, timing=Timing(stop_s=2000)) as harness:
        harness.changes = {"polling_s": 60.0}
        vm = rent(harness)

        with pytest.raises(Transient, match="stopping"):
            provider_of(harness).deallocate(vm)

        assert provider_of(harness).observe(vm).power is PowerState.STOPPING


def test_a_pending_machine_is_stopped_when_it_can_be(tmp_path: Path) -> None:
    """EC2 refuses to stop what is pending: the order is repeated until it is taken."""
    with aws(tmp_path, timing=Timing(pending_s=200)) as harness:
        harness.changes = {"polling_s": 20.0}
        vm = rent(harness)

        provider_of(harness).deallocate(vm)

        assert provider_of(harness).observe(vm).power is PowerState.DEALLOCATED


def test_after_a_notice_the_machine_is_left_to_ec2(harness: AwsHarness) -> None:
    """A stop of our own would make the interrupted first hour cost: EC2 pulls the plug."""
    vm = rent(harness)
    harness.advance(1200)
    harness.cloud.interrupt(instance_of(harness, vm), notice_s=120)
    provider = provider_of(harness)

    provider.deallocate(vm)

    seen = provider.observe(vm)
    assert harness.cloud.calls("StopInstances") == []
    assert (seen.power, seen.stop_reason) == (PowerState.DEALLOCATED, StopReason.EVICTED)
    assert compute_hours(harness) == 0
    assert provider.billed_until_s(vm) is not None


def test_a_notice_that_comes_to_nothing_is_not_waited_for(harness: AwsHarness) -> None:
    """A machine that EC2 announced to take and does not take is stopped after three minutes."""
    vm = rent(harness)
    harness.cloud.interrupt(instance_of(harness, vm), notice_s=9000)
    began_s = harness.now()

    provider_of(harness).deallocate(vm)

    assert len(harness.cloud.calls("StopInstances")) == 1
    assert harness.now() - began_s < 300


def test_our_stop_reads_as_ours(harness: AwsHarness) -> None:
    """What this computer stopped is told so; another computer sees that somebody did."""
    vm = rent(harness)
    provider_of(harness).deallocate(vm)

    here = provider_of(harness).observe(vm)
    there = harness.provider(state_dir=harness.state_dir / "other").observe(vm)

    assert (here.stop_reason, here.detail) == (StopReason.USER, "stopped because qft asked for it")
    assert there.stop_reason is StopReason.USER
    assert "person" in there.detail


def test_a_refused_stop_explains_nothing(harness: AwsHarness) -> None:
    """A stop that the account may not order is forgotten, so that it explains no later one."""
    vm = rent(harness)
    harness.cloud.deny("ec2:StopInstances")
    with pytest.raises(NotAllowed, match="StopInstances"):
        provider_of(harness).deallocate(vm)
    harness.cloud.shut_down_inside(instance_of(harness, vm))

    seen = wait_for(harness, vm, PowerState.DEALLOCATED)

    assert seen.stop_reason is StopReason.RETURNED


@pytest.mark.parametrize("answered", [False, True])
def test_a_stop_that_is_killed_can_be_ordered_again(harness: AwsHarness, *, answered: bool) -> None:
    """Killed around the order itself, the next stop ends with the machine down, by us."""
    vm = stopped(harness)
    counter = Killer()
    provider_of(harness).start(vm)
    harness.provider(killer=counter).deallocate(vm)
    harness.advance(60)
    provider_of(harness).start(vm)
    at = counter.sent.index("ec2.StopInstances") + 1
    with pytest.raises(KilledError):
        harness.provider(killer=Killer(at=at, answered=answered)).deallocate(vm)

    provider_of(harness).deallocate(vm)

    seen = provider_of(harness).observe(vm)
    assert (seen.power, seen.detail) == (PowerState.DEALLOCATED, "stopped because qft asked for it")


# ---- the firewall and the cap ----


def test_the_firewall_follows_the_caller(harness: AwsHarness) -> None:
    """A new address is admitted and the old one no more; the same one changes nothing."""
    vm = rent(harness)
    machine = instance_of(harness, vm)
    harness.cloud.caller = "198.51.100.9"

    assert provider_of(harness).allow_caller_ip(vm)
    assert not provider_of(harness).allow_caller_ip(vm)

    (group_id,) = machine.group_ids
    rules = harness.cloud.world.groups[group_id].ingress
    assert len(rules) == 1
    assert "198.51.100.9/32" in str(rules)


def test_a_start_admits_the_address_of_now(harness: AwsHarness) -> None:
    """Whoever starts a machine from another place reaches it."""
    vm = rent(harness)
    provider_of(harness).deallocate(vm)
    harness.advance(60)
    harness.cloud.caller = "198.51.100.9"

    provider_of(harness).start(vm)

    assert not provider_of(harness).allow_caller_ip(vm)


def test_the_cap_in_force_is_that_of_the_request(harness: AwsHarness) -> None:
    """No API changes a cap: whatever is wanted, that of the request is told."""
    vm = rent(harness)

    assert provider_of(harness).update_max_price(vm, 1.0) == pytest.approx(0.30)


def test_a_machine_without_a_cap_has_none(harness: AwsHarness) -> None:
    """EC2 fills in the on-demand price where no cap was asked for: that is no cap of ours."""
    vm = rent(harness, max_price_usd_per_h=None)

    assert provider_of(harness).update_max_price(vm, None) is None
