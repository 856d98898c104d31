"""What EC2 does with machines by itself, and whose machines answer to whom, in a simulation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from arm.disruptions import Disruption, DisruptionKind
from arm.replies import Reply
from ec2.harness import AwsHarness, aws
from support.aws_machines import instance_of, provider_of, rent, wait_for

from infra.errors import Gone, NoCapacity, NotAllowed, SignedOut, Transient
from infra.provider import PowerState, StopReason
from infra.timestamps import format_utc

THROTTLED = (
    '<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error>'
    "<Code>RequestLimitExceeded</Code><Message>Request limit exceeded.</Message>"
    "</Error></Errors><RequestID>1</RequestID></Response>"
)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account with a computer."""
    with aws(tmp_path) as made:
        made.changes = {"polling_s": 20.0}
        yield made


# ---- what EC2 does by itself ----


def test_a_restart_by_ec2_is_seen_with_its_launch(harness: AwsHarness) -> None:
    """The same machine, started by EC2 while nobody looked, runs and bills since that launch."""
    vm = rent(harness)
    harness.advance(600)
    machine = instance_of(harness, vm)
    harness.cloud.interrupt(machine)
    harness.advance(1200)

    seen = provider_of(harness).observe(vm)

    assert seen.power is PowerState.RUNNING
    assert seen.bills_since == format_utc(machine.launch_s)
    assert machine.launches == 2


def test_a_machine_that_switched_itself_off_can_be_started(harness: AwsHarness) -> None:
    """A shutdown from inside releases the compute, reads as such, and is undone by a start."""
    vm = rent(harness)
    harness.advance(600)
    harness.cloud.shut_down_inside(instance_of(harness, vm))
    seen = wait_for(harness, vm, PowerState.DEALLOCATED)
    harness.advance(60)

    provider_of(harness).start(vm)

    assert (seen.stop_reason, seen.ran) == (StopReason.RETURNED, True)
    assert wait_for(harness, vm, PowerState.RUNNING).stop_reason is None


def test_a_relaunched_machine_is_failed_and_removed(harness: AwsHarness) -> None:
    """Terminated in the console, the request launches another machine: seen, and removed."""
    vm = rent(harness)
    harness.advance(600)
    harness.cloud.terminate_behind(instance_of(harness, vm))
    harness.advance(300)

    seen = provider_of(harness).observe(vm)
    (other,) = harness.cloud.machines()
    removed = provider_of(harness).delete(vm.run_id)

    assert seen.power is PowerState.FAILED
    assert f"`{other.id}`" in seen.detail
    assert seen.bills_since == format_utc(other.launch_s)
    assert other.id in " ".join(one.id for one in removed)
    assert harness.cloud.leftovers() == []
    assert harness.cloud.ledger.billing() == []


def test_a_relaunched_machine_that_may_not_be_removed_has_a_command(harness: AwsHarness) -> None:
    """The minimal policy ends what is tagged: an administrator tags what EC2 launched by itself."""
    vm = rent(harness)
    harness.advance(600)
    harness.cloud.terminate_behind(instance_of(harness, vm))
    harness.advance(300)
    (other,) = harness.cloud.machines()
    harness.cloud.deny("ec2:TerminateInstances")
    harness.cloud.deny("ec2:StopInstances")

    with pytest.raises(NotAllowed) as caught:
        provider_of(harness).delete(vm.run_id)

    assert (
        f"`aws ec2 create-tags --region us-east-1 --resources {other.id}"
        " --tags Key=qft-run,Value=run-a`"
    ) in caught.value.hint
    assert harness.cloud.spot_requests() == []


def test_before_the_relaunch_the_open_request_is_remnants(harness: AwsHarness) -> None:
    """A terminated machine whose request is still open is not gone: it may come back."""
    vm = rent(harness)
    harness.set_capacity("us-east-1", free=False)
    harness.cloud.terminate_behind(instance_of(harness, vm))
    harness.advance(300)

    seen = provider_of(harness).observe(vm)

    assert seen.power is PowerState.REMNANTS
    harness.set_capacity("us-east-1", free=True)
    provider_of(harness).delete(vm.run_id)
    harness.advance(600)
    assert harness.cloud.machines() == []


def test_a_machine_that_dies_before_it_runs_was_refused(harness: AwsHarness) -> None:
    """EC2 accepts a machine and ends it while it is pending: that is `NoCapacity`, nothing left."""
    harness.cloud.world.pending_death = ("Server.InternalError", "Internal error on launch")

    with pytest.raises(NoCapacity):
        rent(harness)

    assert harness.cloud.leftovers() == []


# ---- whose machine, and who asks ----


def test_a_machine_of_another_account_is_refused_not_gone(harness: AwsHarness) -> None:
    """With another profile a machine is refused with the way to the right one, never "gone"."""
    vm = rent(harness)
    other = replace(vm, id=vm.id.replace("111122223333", "444455556666"))
    provider = harness.provider(state_dir=harness.state_dir / "other")

    for order in (provider.observe, provider.start, provider.deallocate, provider.evict):
        with pytest.raises(NotAllowed) as caught:
            order(other)
        assert "444455556666" in str(caught.value)
        assert "AWS_PROFILE" in caught.value.hint


def test_a_session_that_ends_is_signed_out_and_comes_back(harness: AwsHarness) -> None:
    """Credentials that expire in the middle are `SignedOut`; renewed, the same provider goes on."""
    vm = rent(harness)
    provider = provider_of(harness)
    provider.observe(vm)
    harness.cloud.expire_credentials()
    with pytest.raises(SignedOut):
        provider.observe(vm)

    harness.cloud.renew_credentials()

    assert provider.observe(vm).power is PowerState.RUNNING


def test_a_deleted_machine_takes_no_orders(harness: AwsHarness) -> None:
    """Every order about a machine that is gone says so."""
    vm = rent(harness)
    provider_of(harness).delete(vm.run_id)
    provider = provider_of(harness)

    for order in (provider.start, provider.deallocate, provider.evict, provider.allow_caller_ip):
        with pytest.raises(Gone):
            order(vm)


def test_a_broken_answer_to_a_stop_is_looked_into(harness: AwsHarness) -> None:
    """A stop whose answer is lost was accepted: the machine says so, and one order is enough."""
    vm = rent(harness)
    harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.DROP_AFTER, path="StopInstances", times=3)
    )

    provider_of(harness).deallocate(vm)

    assert provider_of(harness).observe(vm).power is PowerState.DEALLOCATED


@pytest.mark.parametrize(
    "disruption",
    [
        Disruption(
            kind=DisruptionKind.ANSWER,
            times=9,
            path="DescribeInstances",
            reply=Reply(status=503, body=THROTTLED),
        ),
        Disruption(
            kind=DisruptionKind.ANSWER,
            times=9,
            path="DescribeInstances",
            reply=Reply(status=200, body="<html>a proxy"),
        ),
    ],
    ids=["throttling", "a page that is no answer"],
)
def test_noise_on_the_line_is_transient(harness: AwsHarness, disruption: Disruption) -> None:
    """Throttling, and a page that nobody can parse, say nothing of the machine."""
    vm = rent(harness)
    harness.cloud.disruptions.add(disruption)
    with pytest.raises(Transient):
        provider_of(harness).observe(vm)

    harness.cloud.disruptions.queue.clear()

    assert provider_of(harness).observe(vm).power is PowerState.RUNNING
