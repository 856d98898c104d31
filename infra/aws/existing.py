"""Finds the machine that a run has already, so that it never gets a second one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from infra.aws.context import AwsContext
from infra.aws.delete import Deleter
from infra.aws.inventory import Inventories, Inventory
from infra.aws.machine_view import tags_of_answer
from infra.aws.observe import VmObserver
from infra.aws.reading import NEW_S
from infra.aws.request import difference_from
from infra.aws.vm import as_seen, vm_from_instance
from infra.provider import PowerState, Vm, VmSpec
from infra.renting.tags import GENERATION

HIDDEN_S = 60.0
"""How long what was just made may be missing in lists; seconds as a rule."""
UP = frozenset({PowerState.CREATING, PowerState.STARTING, PowerState.RUNNING})


@dataclass(frozen=True, kw_only=True)
class ExistingMachines:
    """Looks for what a run has, where its record says and where it is to be rented."""

    context: AwsContext
    observer: VmObserver
    deleter: Deleter

    def find(self, spec: VmSpec) -> Vm | None:
        """Find the run's machine; what cannot be used of an earlier one is removed."""
        record = self.context.record(spec.run_id, spec.node)
        for region in sorted({record.ids.get("region", ""), spec.offer.region} - {""}):
            found = self._look(spec, region)
            vm = self._usable(spec, region, found)
            if vm is not None:
                return vm
            if _must_go(found) or (region != spec.offer.region and not found.is_empty):
                self._remove(spec, region)
        return None

    def appears(self, spec: VmSpec, *, token: str = "") -> bool:
        """Wait for what lists may not show yet of another process's create; whether it came.

        With `token`, that of a request which was sent before, a dead machine ends the wait, too.
        """
        deadline = self.context.clock() + HIDDEN_S
        while True:
            found = self._inventories.of_run(spec.offer.region, spec.run_id).of_node(spec.node)
            if found.live_instances or found.live_requests:
                return True
            is_over = token and any(one.get("ClientToken") == token for one in found.instances)
            if is_over or self.context.clock() >= deadline:
                return False
            self.context.sleep(self.context.settings.polling_s)

    def _look(self, spec: VmSpec, region: str) -> Inventory:
        """List what a node has in a region; waits for a machine on record that is not shown yet.

        The group of several machines is no node's.
        """
        record = self.context.record(spec.run_id, spec.node)
        ids = record.ids if record.ids.get("region") == region else {}
        deadline = min(record.requested_at, self.context.clock()) + NEW_S
        while True:
            found = self._inventories.of_run(region, spec.run_id, ids).of_node(spec.node)
            if spec.nodes > 1:
                found = replace(found, groups=[])
            instance = ids.get("instance", "")
            shown = {str(one.get("InstanceId")) for one in found.instances}
            if not instance or instance in shown or self.context.clock() >= deadline:
                return found
            self.context.sleep(self.context.settings.polling_s)

    def _usable(self, spec: VmSpec, region: str, found: Inventory) -> Vm | None:
        """The machine among what was found that serves as the machine of `spec`; None if none."""
        live = found.live_instances
        if len(live) != 1 or len(found.live_requests) > 1:
            return None
        (row,) = live
        vm = vm_from_instance(
            row, account=self.context.account(), region=region, settings=self.context.settings
        )
        if vm is None or GENERATION not in tags_of_answer(row):  # EC2 launched it by itself
            return None
        seen = as_seen(vm, self.observer.observe(vm))
        if vm.generation != spec.generation:
            return seen if seen.power in UP else None
        if not is_same_key(vm.host_public_key, spec.host_public_key):
            return seen  # somebody else's, who knows its key: only reported
        here = replace(spec, offer=replace(spec.offer, zone=vm.zone))
        if difference_from(row, found.request_of(row), here):  # such as a cap that was changed
            return None
        self._record(vm, row)
        return seen

    def _record(self, vm: Vm, row: Mapping[str, Any]) -> None:
        """Record a machine that was found, where this computer does not know that it made it."""
        record = self.context.record(vm.run_id, vm.node)
        if record.ids.get("instance") == row.get("InstanceId"):
            return
        record = record.renewed(vm.generation)
        record.ids = {
            "account": self.context.account(),
            "profile": self.context.settings.profile,
            "region": vm.region,
            "zone": vm.zone,
        }
        record.ids |= ids_of(row)
        record.save()

    def _remove(self, spec: VmSpec, region: str) -> None:
        """Remove what a node has in a region, and where its record says that it has something."""
        recorded = self.context.record(spec.run_id, spec.node).ids.get("region", region)
        keeps = spec.nodes > 1
        self.deleter.clear(spec.run_id, node=spec.node, keeps_groups=keeps)
        if recorded != region:  # with the record gone, every region is looked at
            self.deleter.clear(spec.run_id, node=spec.node, keeps_groups=keeps)

    @property
    def _inventories(self) -> Inventories:
        return Inventories(context=self.context)


def _must_go(found: Inventory) -> bool:
    """Whether something without a machine that serves bills, or may launch one."""
    return bool(
        found.live_instances
        or found.ending_instances
        or found.live_requests
        or any(one.get("State") == "available" for one in found.volumes)
    )


def ids_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The ids of an instance and of its spot request, as a record holds them."""
    ids = {"instance": row.get("InstanceId"), "request": row.get("SpotInstanceRequestId")}
    return {name: str(id_) for name, id_ in ids.items() if id_}


def is_same_key(one: str, other: str) -> bool:
    """Whether two public lines are one key, whatever their comments."""
    return one.split()[:2] == other.split()[:2]
