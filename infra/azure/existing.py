"""Finds the machine that a create asks for, and removes what stands in its way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from infra.azure.context import AzureContext
from infra.azure.delete import Deleter
from infra.azure.group_tags import has_node_0, is_of_several, nodes_of
from infra.azure.naming import PUBLIC_IP, Names, node_of, vm_of_tags
from infra.azure.observe import VmObserver
from infra.azure.remove import MachineRemover
from infra.azure.resources import Parts
from infra.azure.run_group import same_key
from infra.azure.vm import difference_from, vm_from_answer
from infra.errors import NotAllowed
from infra.provider import Observation, PowerState, Vm, VmSpec
from infra.renting.tags import GENERATION, is_of_run, lower_case_names


@dataclass(frozen=True, kw_only=True)
class ExistingMachines:
    """Looks for the machine of a spec; what is unusable of earlier generations is removed."""

    context: AzureContext
    observer: VmObserver
    deleter: Deleter
    remover: MachineRemover

    def find(self, spec: VmSpec) -> tuple[Vm | None, bool]:
        """Find the machine of that node; an unusable one of an earlier generation is removed.

        Returns with it whether it is one of several of its run.
        """
        several = spec.node > 0 or spec.nodes > 1
        group = self.deleter.existing_group(spec.run_id)
        if group is None:
            return None, several
        tags = group.get("tags")
        if not is_of_run(tags, spec.run_id):
            raise NotAllowed(
                f"the resource group `{group.get('name')}` exists and does not carry our tag",
                hint="rename the run with `name:`, or remove that group yourself",
            )
        several = several or is_of_several(tags)
        for found in self._candidates(spec, tags):
            seen = self.observer.observe(found)
            usable = self._usable(spec, _as_seen(found, seen), several=several)
            if usable is not None:
                return (self._with_private(usable) if several else usable), several
        return None, several

    def _candidates(self, spec: VmSpec, tags: dict[str, str] | None) -> list[Vm]:
        """The machines of that node which tags speak of, of whatever generation."""
        subscription = self.context.settings.subscription_id
        if spec.node == 0:
            found = vm_of_tags(tags, subscription_id=subscription) if has_node_0(tags) else None
            return [] if found is None else [found]
        names = self.context.names(spec.run_id, spec.generation, spec.node)
        generations = {nodes_of(tags).get(spec.node, spec.generation)}
        for one in Parts(context=self.context).inventory(names):
            text = lower_case_names(one.get("tags")).get(GENERATION, "")
            if node_of(one.get("tags")) == spec.node and text.isdigit():
                generations.add(int(text))
        return [
            described(self.context, replace(names, generation=generation))
            for generation in sorted(generations, reverse=True)
        ]

    def _usable(self, spec: VmSpec, found: Vm, *, several: bool) -> Vm | None:
        """The machine if it can be had for that spec; None once nothing of it is in the way."""
        if found.generation == spec.generation:
            return self._same_generation(spec, found, several=several)
        if found.power in {PowerState.CREATING, PowerState.STARTING, PowerState.RUNNING}:
            return found
        self._remove(spec, found, several=several)
        return None

    def _same_generation(self, spec: VmSpec, found: Vm, *, several: bool) -> Vm | None:
        """Take the machine that this very create made earlier, or remove what failed."""
        if found.power in {PowerState.REMNANTS, PowerState.GONE}:
            return None
        if found.power is PowerState.FAILED:
            self._remove(spec, found, several=several)
            return None
        if found.power is PowerState.CREATING:
            # `create` resumes, by token or by looking; but a machine that is being made with keys
            # that this caller does not know is somebody else's, and is only reported.
            return None if same_key(found.host_public_key, spec.host_public_key) else found
        names = self.context.names(spec.run_id, spec.generation, spec.node)
        if difference_from(self.observer.get(names), spec):  # such as under a changed cap
            self._remove(spec, found, several=several)
            return None
        return found

    def _remove(self, spec: VmSpec, found: Vm, *, several: bool) -> None:
        """Remove an unusable machine: alone if others may need its group, else with its group."""
        if several:
            self.remover.remove(found)
        else:
            self.deleter.remove(spec.run_id)

    def _with_private(self, vm: Vm) -> Vm:
        """The machine with its address among its mates, where it has one."""
        if vm.private_host:
            return vm
        names = self.context.names(vm.run_id, vm.generation, vm.node)
        record = self.context.record(vm.run_id, vm.node)
        return replace(vm, private_host=self.observer.private_address(record, names))


def described(context: AzureContext, names: Names) -> Vm:
    """The machine of those names as its own tags describe it, or those of its address.

    Not yet observed; where neither is there, only its names are known.
    """
    parts = Parts(context=context)
    answer: dict[str, Any] = {}
    for id_ in (names.vm_id, names.id_of(PUBLIC_IP, names.public_ip)):
        answer = parts.get(id_) or {}
        if is_of_run(answer.get("tags"), names.run_id):
            vm = vm_of_tags(answer["tags"], subscription_id=names.subscription_id)
            if vm is not None and (vm.node, vm.generation) == (names.node, names.generation):
                return vm
    return vm_from_answer({}, names)


def _as_seen(vm: Vm, seen: Observation) -> Vm:
    return replace(
        vm,
        host=seen.host,
        port=seen.port,
        power=seen.power,
        metadata_url=seen.metadata_url,
        private_host=seen.private_host,
    )
