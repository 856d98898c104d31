"""What the tests about machines on EC2 do first: rent one, and look at it until it is there."""

from __future__ import annotations

from typing import Any

from ec2.harness import AwsHarness, spec
from ec2.resources import Instance

from infra.aws.naming import MachineId
from infra.aws.provider import AwsProvider
from infra.provider import Observation, PowerState, Vm

LOOKS_MAX = 400
LOOK_S = 5.0


def provider_of(harness: AwsHarness) -> AwsProvider:
    """The provider of one process that goes on; `harness.provider()` is that of a new one."""
    return harness.made[0] if harness.made else harness.provider()


def rent(harness: AwsHarness, run_id: str = "run-a", **changes: Any) -> Vm:
    """Rent a machine that runs, in the first region."""
    return provider_of(harness).create(spec(run_id=run_id, **changes))


def instance_of(harness: AwsHarness, vm: Vm) -> Instance:
    """The simulated machine behind one of the seam."""
    id_ = MachineId.parse(vm.id)
    assert id_ is not None
    return harness.cloud.world.instances[id_.instance]


def wait_for(harness: AwsHarness, vm: Vm, *states: PowerState) -> Observation:
    """Look until the machine is in one of the states; a bounded number of looks."""
    provider = provider_of(harness)
    for _ in range(LOOKS_MAX):
        seen = provider.observe(vm)
        if seen.power in states:
            return seen
        harness.advance(LOOK_S)
    raise AssertionError(f"never {states}, but {seen.power}")


def compute_hours(harness: AwsHarness) -> float:
    """The hours of compute that the simulated bill holds so far."""
    return sum(one.hours for one in harness.cloud.ledger.charges if one.kind == "compute")


def stopped(harness: AwsHarness, run_id: str = "run-a", **changes: Any) -> Vm:
    """Rent a machine, use it for ten minutes, and stop it; it can be started again."""
    vm = rent(harness, run_id, **changes)
    harness.advance(600)
    provider_of(harness).deallocate(vm)
    harness.advance(60)
    return vm
