"""Checks a machine that EC2 has accepted: is it what was asked for, and does it come up."""

from __future__ import annotations

from dataclasses import dataclass

from infra.aws.context import AwsContext
from infra.aws.existing import HIDDEN_S, UP, ids_of, is_same_key
from infra.aws.inventory import Inventories
from infra.aws.naming import MachineId
from infra.aws.observe import VmObserver
from infra.aws.request import difference_from
from infra.aws.safeguards import AwsSafeguards
from infra.aws.vm import as_seen
from infra.errors import BadRequest, NoCapacity, Transient
from infra.provider import PowerState, Vm, VmSpec

UNDER_WAY = frozenset({PowerState.CREATING, PowerState.STARTING, PowerState.STOPPING})


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """What happens between EC2's answer and the return of `create`."""

    context: AwsContext
    observer: VmObserver
    safeguards: AwsSafeguards

    def finish(self, spec: VmSpec, vm: Vm) -> Vm:
        """Verify a machine that comes up, set its safeguards, and look for an early refusal.

        Leaves alone one that is down, or somebody else's. Raises `BadRequest` for a machine that
        was not asked for, and what refused one that EC2 took back before it ran.
        """
        is_other = vm.generation != spec.generation or not is_same_key(
            vm.host_public_key, spec.host_public_key
        )
        if is_other or vm.power not in UP:
            return vm
        self._verify(spec, vm)
        if spec.until_s is not None:
            self.safeguards.set_safeguards(vm, until_s=spec.until_s, disk_days=spec.disk_days)
        deadline = self.context.clock() + self.context.settings.accept_wait_s
        while True:
            seen = self.observer.observe(vm)
            if seen.refusal is not None:
                raise seen.refusal
            if seen.power in {PowerState.FAILED, PowerState.REMNANTS, PowerState.GONE}:
                raise NoCapacity(
                    f"the machine was taken away while it was being made ({seen.detail})",
                    hint="interruptions can come that early; the next offer is tried",
                )
            if seen.power not in UNDER_WAY or self.context.clock() >= deadline:
                return as_seen(vm, seen)
            self.context.sleep(self.context.settings.polling_s)

    def _verify(self, spec: VmSpec, vm: Vm) -> None:
        """Compare what EC2 made with what was asked for, as soon as EC2 shows it."""
        id_ = MachineId.parse(vm.id)
        instance = id_.instance if id_ else ""
        inventories = Inventories(context=self.context)
        deadline = self.context.clock() + HIDDEN_S
        while True:
            row = inventories.instance(vm.region, instance)
            request = inventories.request(vm.region, instance_id=instance)
            wrong = difference_from(row, request, spec) if row else ""
            if wrong:
                raise BadRequest(
                    f"EC2 made a machine that was not asked for: {wrong}; it is removed",
                    hint="this could cost more than you allowed: please report it",
                )
            if row and request:
                break
            if self.context.clock() >= deadline:
                raise Transient(
                    f"EC2 accepted the machine `{instance}` and does not show it yet",
                    hint="the same call is safe to repeat",
                )
            self.context.sleep(self.context.settings.polling_s)
        record = self.context.record(vm.run_id, vm.node)
        record.ids |= ids_of(row)
        record.save()
