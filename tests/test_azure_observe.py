"""Why a machine stopped is told as far as Azure lets anyone know, and never guessed further."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from arm import Disruption, DisruptionKind, vm_power
from arm.harness import T4, AzureHarness, azure, spec
from arm.replies import ArmError, Reply

from infra.azure.vm import power_of
from infra.errors import BadRequest, NoCapacity
from infra.provider import Observation, PowerState, StopReason, Vm


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AzureHarness]:
    """A cloud in which machines stop."""
    with azure(tmp_path / "here") as harness:
        yield harness


def running(harness: AzureHarness) -> Vm:
    """A machine that has been up for a while."""
    vm = harness.provider().create(spec())
    harness.advance(300)
    return vm


def elsewhere(harness: AzureHarness, vm: Vm) -> Observation:
    """What another computer sees, which remembers nothing of what was asked."""
    return harness.provider(state_dir=harness.state_dir.parent / "elsewhere").observe(vm)


def test_eviction_is_proved_by_the_activity_log(harness: AzureHarness) -> None:
    """At first it is inferred, and said to be; when the log has caught up, it is proved."""
    vm = running(harness)
    harness.cloud.evict(harness.cloud.machines()[0])
    harness.advance(31)

    early = harness.provider().observe(vm)
    harness.advance(150)
    late = harness.provider().observe(vm)

    assert (early.power, early.stop_reason) == (PowerState.DEALLOCATED, StopReason.EVICTED)
    assert early.detail.startswith("evicted, it seems")
    assert "lags by minutes" in early.detail
    assert "it seems" not in late.detail
    assert late.stop_reason is StopReason.EVICTED
    assert late.since.startswith("2026-09-21T")
    assert elsewhere(harness, vm).stop_reason is StopReason.EVICTED


def test_refused_rehearsal_explains_no_later_stop(harness: AzureHarness) -> None:
    """An eviction that Azure would not rehearse is not the reason why a person stops the machine.

    A certain one would start it again against that person's will.
    """
    vm = running(harness)
    reply = Reply(status=409, body=ArmError(409, "OperationNotAllowed", "Not now.").body)
    harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.ANSWER, path="/simulateEviction$", reply=reply)
    )
    with pytest.raises(BadRequest):
        harness.provider().evict(vm)

    harness.provider(state_dir=harness.state_dir.parent / "elsewhere").deallocate(vm)
    harness.advance(150)

    assert harness.provider().observe(vm).stop_reason is StopReason.USER


def test_price_eviction_is_recognized_at_once(harness: AzureHarness) -> None:
    """A market above the cap explains the stop before the log does, with both numbers."""
    vm = running(harness)
    harness.cloud.set_price(T4, "eastus", 0.40)
    harness.advance(31)

    early = harness.provider().observe(vm)
    harness.advance(150)
    late = harness.provider().observe(vm)

    assert early.stop_reason is StopReason.PRICE
    assert "0.4 USD/h, above the cap of 0.25" in early.detail
    assert late.stop_reason is StopReason.PRICE


def test_own_order_is_remembered_here_and_found_in_the_log_elsewhere(
    harness: AzureHarness,
) -> None:
    """A deallocation that we asked for is the user's, whoever looks."""
    vm = running(harness)
    harness.provider().deallocate(vm)

    assert harness.provider().observe(vm).stop_reason is StopReason.USER
    harness.advance(150)
    there = elsewhere(harness, vm)
    assert (there.stop_reason, there.detail) == (
        StopReason.USER,
        "deallocated by a@b.example",
    )


def test_rehearsal_is_an_eviction_everywhere(harness: AzureHarness) -> None:
    """The rehearsed eviction counts as one, here at once and elsewhere by the log."""
    vm = running(harness)
    harness.provider().evict(vm)
    harness.advance(60)

    here = harness.provider().observe(vm)
    harness.advance(150)

    assert here.stop_reason is StopReason.EVICTED
    assert elsewhere(harness, vm).stop_reason is StopReason.EVICTED


@pytest.mark.parametrize(
    ("status", "code"), [(403, "AuthorizationFailed"), (404, "NotFound"), (400, "BadRequest")]
)
def test_closed_log_is_no_error(harness: AzureHarness, status: int, code: str) -> None:
    """An account that has no log to read still learns what most likely happened, and why."""
    vm = running(harness)
    harness.cloud.evict(harness.cloud.machines()[0], notice_s=0)
    harness.advance(1)
    reply = Reply(status=status, body=ArmError(status, code, "No.").body)
    harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.ANSWER, path="/eventtypes/", reply=reply)
    )

    seen = elsewhere(harness, vm)

    assert (seen.power, seen.stop_reason) == (PowerState.DEALLOCATED, StopReason.EVICTED)
    assert "it seems" in seen.detail
    assert "cannot be read" in seen.detail


def test_deallocation_by_somebody_else_is_the_users_once_the_log_tells(
    harness: AzureHarness,
) -> None:
    """A colleague in the portal looks like an eviction until the log names who it was."""
    vm = running(harness)
    other = harness.provider(state_dir=harness.state_dir.parent / "colleague")
    other.deallocate(vm)
    harness.advance(150)

    seen = harness.provider().observe(vm)

    assert (seen.stop_reason, seen.detail) == (StopReason.USER, "deallocated by a@b.example")


def test_stop_that_leaves_the_bill_running_is_the_users_once_the_log_tells(
    harness: AzureHarness,
) -> None:
    """`az vm stop` does not deallocate: at first it looks like a `shutdown`, then it has a name."""
    vm = running(harness)
    arm = harness.provider().context.arm
    arm.call("stop", arm.compute.virtual_machines.begin_power_off, "qft-run-a", "qft-run-a-1")

    early = harness.provider().observe(vm)
    harness.advance(150)
    late = harness.provider().observe(vm)

    assert (early.stop_reason, early.certain) == (StopReason.UNKNOWN, False)
    assert (late.power, late.stop_reason) == (PowerState.STOPPED, StopReason.USER)
    assert late.detail == "switched off by a@b.example: still billed until it is deallocated"


@pytest.mark.parametrize(
    ("caller", "reason"),
    [
        ("a@b.example", StopReason.USER),
        ("live.com#a@b.example", StopReason.USER),
        ("Microsoft.DevTestLab", StopReason.UNKNOWN),
        ("6f2c5c1e-0000-4000-8000-3d0c4f2b7a11", StopReason.UNKNOWN),
        ("", StopReason.UNKNOWN),
    ],
)
def test_only_people_stop_a_run_for_good(
    harness: AzureHarness, caller: str, reason: StopReason
) -> None:
    """The auto-shutdown, a policy or Azure itself may deallocate too, and mean nothing by it."""
    vm = running(harness)
    harness.cloud.world.caller = caller
    machine_ = harness.cloud.machines()[0]
    vm_power.set_power(harness.cloud.world, machine_, "deallocated")
    harness.cloud.world.event(
        machine_, "Microsoft.Compute/virtualMachines/deallocate/action", caller=caller
    )
    harness.advance(150)

    assert harness.provider().observe(vm).stop_reason is reason


def test_machine_that_gave_itself_back_is_not_taken_for_a_person(harness: AzureHarness) -> None:
    """Its own identity in the log is the watchdog's doing: a limit reached, or nobody there."""
    vm = running(harness)
    machine_ = harness.cloud.machines()[0]
    vm_power.set_power(harness.cloud.world, machine_, "deallocated")
    harness.cloud.world.event(
        machine_,
        "Microsoft.Compute/virtualMachines/deallocate/action",
        caller=machine_.more["identity"]["principalId"],
    )
    harness.advance(150)

    assert harness.provider().observe(vm).stop_reason is StopReason.RETURNED


def test_failed_start_is_reported_beside_the_reason(harness: AzureHarness) -> None:
    """After an eviction and a start without capacity the machine is down, not failed."""
    vm = running(harness)
    harness.provider().evict(vm)
    harness.advance(60)
    harness.set_capacity("eastus", free=False)
    with pytest.raises(NoCapacity):
        harness.provider().start(vm)
    harness.advance(150)

    seen = harness.provider().observe(vm)
    assert seen.power is PowerState.DEALLOCATED
    assert "AllocationFailed" in seen.detail


def test_deleted_by_somebody_is_gone(harness: AzureHarness) -> None:
    """A machine that somebody removed in the portal leaves remnants, which are listed as such."""
    vm = running(harness)
    arm = harness.provider().context.arm
    arm.begin("x", arm.compute.virtual_machines.begin_delete, "qft-run-a", "qft-run-a-1").wait(
        wait_s=300
    )

    seen = elsewhere(harness, vm)
    (listed,) = harness.provider().list_all()

    assert (seen.power, listed.power) == (PowerState.REMNANTS, PowerState.REMNANTS)
    assert not seen.power.bills_compute
    assert harness.provider().delete("run-a") != []
    assert harness.provider().observe(vm).power is PowerState.GONE


def test_observing_a_running_machine_takes_one_request(harness: AzureHarness) -> None:
    """A supervisor that looks every few seconds stays far below Azure's limits."""
    vm = running(harness)
    provider = harness.provider()
    provider.observe(vm)
    before = len(harness.cloud.requests)

    for _ in range(5):
        provider.observe(vm)

    assert len(harness.cloud.requests) - before == 5


@pytest.mark.parametrize(
    ("statuses", "made", "power"),
    [
        (["ProvisioningState/succeeded", "PowerState/running"], "Succeeded", PowerState.RUNNING),
        (["PowerState/running", "ProvisioningState/updating"], "Updating", PowerState.RUNNING),
        (["ProvisioningState/creating"], "Creating", PowerState.CREATING),
        (
            ["ProvisioningState/creating/osProvisioningComplete", "PowerState/running"],
            "Creating",
            PowerState.RUNNING,
        ),
        ([], "Creating", PowerState.CREATING),
        (["PowerState/starting"], "Updating", PowerState.STARTING),
        (["PowerState/stopped"], "Succeeded", PowerState.STOPPED),
        (["PowerState/deallocating"], "Updating", PowerState.STOPPING),
        (["PowerState/deallocated"], "Succeeded", PowerState.DEALLOCATED),
        (
            ["ProvisioningState/failed/AllocationFailed", "PowerState/deallocated"],
            "Failed",
            PowerState.DEALLOCATED,
        ),
        (["ProvisioningState/failed/AllocationFailed"], "Failed", PowerState.FAILED),
        (["PowerState/stopped", "ProvisioningState/failed/x"], "Failed", PowerState.FAILED),
        (["PowerState/running"], "Deleting", PowerState.STOPPING),
        (["PowerState/unknown"], "Succeeded", PowerState.CREATING),
    ],
)
def test_power_is_found_by_prefix(statuses: list[str], made: str, power: PowerState) -> None:
    """The power state may stand anywhere among the statuses, or nowhere."""
    answer = {
        "properties": {
            "provisioningState": made,
            "instanceView": {"statuses": [{"code": code} for code in statuses]},
        }
    }

    assert power_of(answer)[0] is power


def test_agent_that_is_late_does_not_confuse(harness: AzureHarness) -> None:
    """While the machine's agent is not ready and statuses come in any order, it runs."""
    vm = harness.provider().create(spec())

    seen = {harness.provider().observe(vm).power for _ in range(8)}

    assert seen == {PowerState.RUNNING}
