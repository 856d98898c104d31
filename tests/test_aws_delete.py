"""Removing runs on a simulated EC2: in which order, after which kills, and what is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from arm.disruptions import Disruption, DisruptionKind
from ec2 import iam, schedules
from ec2.harness import AwsHarness, aws, spec
from ec2.killing import KilledError, Killer
from ec2.state import ACCOUNT, Timing
from support.aws_machines import instance_of, provider_of, rent, stopped

from infra.aws.permissions import role_policy, trust_policy
from infra.errors import NotAllowed, SignedOut, Transient
from infra.provider import PowerState
from infra.renting.run_record import RunRecord
from infra.run.release import billed_until_s

CHANGES = (
    "CancelSpotInstanceRequests",
    "TerminateInstances",
    "DeleteVolume",
    "DeleteSecurityGroup",
    "StopInstances",
)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account with a computer."""
    with aws(tmp_path) as made:
        made.changes = {"polling_s": 20.0}
        yield made


def changes(harness: AwsHarness) -> list[str]:
    """The calls that removed something, in order."""
    return [one.operation for one in harness.cloud.requests if one.operation in CHANGES]


def nothing_is_left(harness: AwsHarness, *, later_s: float = 900.0) -> None:
    """Assert that nothing exists or bills, also after EC2 had time to launch something."""
    harness.advance(later_s)
    assert harness.cloud.leftovers() == []
    assert harness.cloud.ledger.billing() == []


def test_the_request_is_cancelled_before_the_machine_goes(harness: AwsHarness) -> None:
    """EC2 would launch another machine for a request that is not cancelled first."""
    vm = rent(harness)

    removed = provider_of(harness).delete(vm.run_id)

    assert changes(harness) == [
        "CancelSpotInstanceRequests",
        "TerminateInstances",
        "DeleteSecurityGroup",
    ]
    assert len(harness.cloud.world.machines_made) == 1
    kinds = ["spot request", "virtual machine", "disk", "security group"]
    assert [one.kind for one in removed] == kinds
    nothing_is_left(harness)


def test_schedules_go_last(harness: AwsHarness) -> None:
    """What ends the bill of a removal that was killed is there until nothing else is."""
    iam.add_role(
        harness.cloud.world,
        "qft-scheduler",
        trust=trust_policy(ACCOUNT),
        policy=role_policy(ACCOUNT),
    )
    vm = rent(harness, until_s=harness.now() + 7200)
    assert schedules.names(harness.cloud.world)
    counter = Killer()
    last = rent(harness, "run-b", until_s=harness.now() + 7200)
    harness.provider(killer=counter).delete(vm.run_id)
    at = counter.sent.index("scheduler.DeleteSchedule") + 1
    assert counter.sent.index("ec2.DeleteSecurityGroup") + 1 < at
    with pytest.raises(KilledError):
        harness.provider(killer=Killer(at=at)).delete(last.run_id)
    (left,) = provider_of(harness).list_all()
    seen = provider_of(harness).observe(last)

    removed = provider_of(harness).delete(last.run_id)

    assert (left.run_id, left.power) == (last.run_id, PowerState.REMNANTS)
    assert seen.power is PowerState.REMNANTS
    assert {"virtual machine", "schedule or alarm"} <= {one.kind for one in removed}
    assert schedules.names(harness.cloud.world) == []
    assert provider_of(harness).list_all() == []


def test_compute_is_billed_until_the_machine_was_terminated(harness: AwsHarness) -> None:
    """The end of the bill is when EC2 took the order, not when everything was gone."""
    vm = rent(harness)
    harness.advance(1800)
    ordered_s = harness.now()

    removed = provider_of(harness).delete(vm.run_id)

    assert harness.now() > ordered_s + 30
    assert billed_until_s(removed) == pytest.approx(ordered_s, abs=1)


def test_a_stopped_machine_goes_with_its_disk(harness: AwsHarness) -> None:
    """A machine that is down is removed as one that runs."""
    vm = stopped(harness)

    removed = provider_of(harness).delete(vm.run_id)

    assert any(one.kind == "disk" for one in removed)
    nothing_is_left(harness)


def test_a_second_delete_is_silent(harness: AwsHarness) -> None:
    """What is gone is not removed again, although EC2 lists it for an hour."""
    vm = rent(harness)
    provider_of(harness).delete(vm.run_id)
    assert harness.cloud.world.instances != {}

    assert provider_of(harness).delete(vm.run_id) == []


def test_other_runs_are_spared(harness: AwsHarness) -> None:
    """A run of a similar name keeps its machine, its request and its group."""
    other = rent(harness, "run-a-2")
    before = harness.cloud.leftovers()
    vm = rent(harness)

    provider_of(harness).delete(vm.run_id)

    assert harness.cloud.leftovers() == before
    assert provider_of(harness).observe(other).power is PowerState.RUNNING


@pytest.mark.parametrize("call", ["CancelSpotInstanceRequests", "TerminateInstances"])
def test_a_removal_that_is_killed_goes_on(harness: AwsHarness, call: str) -> None:
    """Killed after a change, the same command removes the rest and tells of it all."""
    vm = rent(harness)
    counter = Killer()
    harness.provider(killer=counter).delete(vm.run_id)
    removed = kill_and_go_on(harness, "run-b", counter.sent.index(f"ec2.{call}") + 1, answered=True)

    assert "virtual machine" in removed
    nothing_is_left(harness)


@pytest.mark.slow
@pytest.mark.parametrize("answered", [False, True])
def test_a_removal_that_is_killed_anywhere_goes_on(harness: AwsHarness, *, answered: bool) -> None:
    """Killed around any request of a removal, the same command removes the rest."""
    vm = rent(harness)
    counter = Killer()
    harness.provider(killer=counter).delete(vm.run_id)
    for at in range(1, len(counter.sent) + 1):
        removed = kill_and_go_on(harness, f"run-{at}", at, answered=answered)
        assert not removed or "virtual machine" in removed
    nothing_is_left(harness)


def kill_and_go_on(harness: AwsHarness, run_id: str, at: int, *, answered: bool) -> set[str]:
    """Kill the removal of a new machine around a request, remove it again, and check the rest.

    Returns the kinds of what the second removal lists.
    """
    made = len(harness.cloud.world.machines_made)
    vm = rent(harness, run_id)
    harness.advance(600)
    ordered_s = harness.now()
    with pytest.raises(KilledError):
        harness.provider(killer=Killer(at=at, answered=answered)).delete(run_id)

    removed = provider_of(harness).delete(vm.run_id)

    if removed:
        assert billed_until_s(removed) == pytest.approx(ordered_s, abs=30)
    assert not RunRecord.load(harness.state_dir, run_id).removing
    assert len(harness.cloud.world.machines_made) == made + 1
    return {one.kind for one in removed}


def test_a_machine_that_ec2_launched_meanwhile_goes_too(harness: AwsHarness) -> None:
    """What EC2 launched from our request lacks our tags, and is found by the request."""
    vm = rent(harness)
    harness.cloud.terminate_behind(instance_of(harness, vm))
    harness.advance(120)
    (other,) = harness.cloud.machines()
    assert other.tags == {}

    removed = provider_of(harness).delete(vm.run_id)

    assert other.id in " ".join(one.id for one in removed)
    nothing_is_left(harness)


def test_an_open_request_alone_is_cancelled(harness: AwsHarness) -> None:
    """A request that waits for capacity is removed before it launches anything."""
    vm = rent(harness)
    harness.set_capacity("us-east-1", free=False)
    harness.cloud.terminate_behind(instance_of(harness, vm))
    harness.advance(120)

    removed = provider_of(harness).delete(vm.run_id)

    harness.set_capacity("us-east-1", free=True)
    assert {one.kind for one in removed} == {"spot request", "security group"}
    nothing_is_left(harness)


def test_a_disk_that_outlives_its_machine_is_removed(harness: AwsHarness) -> None:
    """A disk that somebody set to stay is removed when nothing holds it any more."""
    vm = rent(harness)
    for volume in harness.cloud.world.volumes.values():
        volume.goes_with_instance = False

    provider_of(harness).delete(vm.run_id)

    assert changes(harness)[-2:] == ["DeleteVolume", "DeleteSecurityGroup"]
    nothing_is_left(harness)


def test_a_busy_group_is_tried_for_ten_minutes(harness: AwsHarness) -> None:
    """A network card that goes late keeps the group: the removal waits, and reports."""
    vm = rent(harness)
    harness.changes = {"polling_s": 60.0}
    lines: list[str] = []
    group = next(iter(instance_of(harness, vm).group_ids))
    card = next(one for one in harness.cloud.world.interfaces.values() if group in one.group_ids)
    stray = f"{card.id}-stray"
    interfaces = harness.cloud.world.interfaces
    interfaces[stray] = card

    def detach() -> None:
        interfaces.pop(stray)

    harness.cloud.world.after(560, detach)
    began_s = harness.now()

    harness.provider().delete(vm.run_id, lines.append)

    assert harness.now() - began_s >= 560
    assert len([one for one in lines if "security group" in one]) >= 7
    nothing_is_left(harness)


def test_what_is_not_gone_in_time_is_named_with_its_price(tmp_path: Path) -> None:
    """A machine that does not go is named, with what it bills, and is no success."""
    with aws(tmp_path, timing=Timing(terminate_s=9000)) as harness:
        vm = rent(harness)
        harness.changes = {"polling_s": 100.0}

        with pytest.raises(Transient) as caught:
            harness.provider().delete(vm.run_id)

        assert caught.value.unfinished
        assert instance_of(harness, vm).id in str(caught.value)
        assert "shutting-down, bills no compute" in str(caught.value)
        assert "GB, about 0.0" in str(caught.value)
        assert "qft down --delete" in caught.value.hint


@pytest.mark.parametrize("right", ["ec2:TerminateInstances", "ec2:CancelSpotInstanceRequests"])
def test_what_may_not_be_removed_is_stopped(harness: AwsHarness, right: str) -> None:
    """Without the right to remove, the machine is stopped and nothing comes back in its place."""
    vm = rent(harness)
    harness.cloud.deny(right)

    with pytest.raises(NotAllowed) as caught:
        provider_of(harness).delete(vm.run_id)

    harness.advance(900)
    assert caught.value.unfinished
    assert "bills no compute" in caught.value.hint
    assert "GB, about 0.0" in caught.value.hint
    assert not [one for one in harness.cloud.ledger.billing() if one.startswith("compute")]
    assert len(harness.cloud.world.machines_made) == 1
    harness.cloud.allow(right)
    provider_of(harness).delete(vm.run_id)
    nothing_is_left(harness)


def test_a_machine_that_lost_its_tag_is_stopped_and_named(harness: AwsHarness) -> None:
    """What lost our tag is not removed, although this computer made it: it is stopped."""
    vm = rent(harness)
    machine = instance_of(harness, vm)
    request = harness.cloud.world.request_of(machine)
    assert request is not None
    machine.tags.clear()
    request.tags.clear()

    with pytest.raises(NotAllowed, match="does not carry our tag"):
        provider_of(harness).delete(vm.run_id)

    harness.advance(120)
    assert machine.state == "stopped"
    machine.tags["qft-run"] = vm.run_id
    request.tags["qft-run"] = vm.run_id
    provider_of(harness).delete(vm.run_id)
    nothing_is_left(harness)


@pytest.mark.parametrize("lose", [lambda one: one.tags.clear(), lambda _: None])
def test_a_run_without_a_record_is_found_in_any_region(
    harness: AwsHarness, lose: Callable[[object], None]
) -> None:
    """From another computer a run is removed by its tags, or by those of its request alone."""
    vm = rent(harness, zone="us-west-2b")
    harness.advance(60)
    lose(instance_of(harness, vm))

    removed = harness.provider(state_dir=harness.state_dir / "other").delete(vm.run_id)

    assert "virtual machine" in {one.kind for one in removed}
    nothing_is_left(harness)


@pytest.mark.parametrize("answered", [False, True])
def test_a_create_whose_answer_was_lost_leaves_nothing(
    harness: AwsHarness, *, answered: bool
) -> None:
    """A machine that was requested and that no list shows yet is waited for, and removed."""
    counter = Killer()
    harness.changes = {"polling_s": 30.0}
    harness.provider(killer=counter).create(spec())
    provider_of(harness).delete("run-a")
    at = counter.sent.index("ec2.RunInstances") + 1
    with pytest.raises(KilledError):
        harness.provider(killer=Killer(at=at, answered=answered)).create(spec(run_id="run-b"))

    removed = provider_of(harness).delete("run-b")

    assert ("virtual machine" in {one.kind for one in removed}) == answered
    nothing_is_left(harness)


def test_a_run_of_another_account_is_refused(harness: AwsHarness) -> None:
    """A run on record in another account is refused with the way there, not called removed."""
    vm = rent(harness)
    record = RunRecord.load(harness.state_dir, vm.run_id)
    record.ids["account"] = "444455556666"
    record.save()

    with pytest.raises(NotAllowed) as caught:
        provider_of(harness).delete(vm.run_id)

    assert "444455556666" in str(caught.value)
    assert len(harness.cloud.machines()) == 1


def test_a_session_that_ends_in_a_removal_is_signed_out(harness: AwsHarness) -> None:
    """A removal during which nobody is signed in any more says so, and goes on later."""
    vm = rent(harness)
    harness.cloud.expire_credentials()
    with pytest.raises(SignedOut):
        provider_of(harness).delete(vm.run_id)

    harness.cloud.renew_credentials()

    assert provider_of(harness).delete(vm.run_id) != []
    nothing_is_left(harness)


def test_broken_connections_are_ridden_out(harness: AwsHarness) -> None:
    """Answers that are lost in a removal are found out by looking."""
    vm = rent(harness)
    for call in ("CancelSpot", "TerminateInstances", "DeleteSecurityGroup"):
        harness.cloud.disruptions.add(
            Disruption(kind=DisruptionKind.DROP_AFTER, path=call, times=3)
        )

    removed = provider_of(harness).delete(vm.run_id)

    assert len(removed) == 4
    nothing_is_left(harness)
