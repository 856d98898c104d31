"""Lists every machine of ours, by its tags, or by this computer's records where they were lost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from infra.azure.context import AzureContext, recorded_runs
from infra.azure.existing import described
from infra.azure.group_tags import has_node_0, network_of, nodes_of
from infra.azure.naming import Names, node_of, vm_of_tags
from infra.azure.observe import VmObserver
from infra.azure.vm import vm_from_answer
from infra.errors import Gone, NotAllowed, Rejected
from infra.provider import PowerState, Vm
from infra.renting.tags import RUN, is_of_run, lower_case_names


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Lists; changes nothing."""

    context: AzureContext
    observer: VmObserver

    def list_all(self) -> list[Vm]:
        """List every machine whose group carries our tag, newest first, whoever made it.

        Also one whose group lost it: found by the tags of its parts, or by what this computer wrote
        down. Lists lag: a group that is remembered and not listed is asked for by name.
        """
        subscription = self.context.names("-", 1).subscription_id  # one must be chosen
        client = self.context.arm.resources.resource_groups
        groups = self.context.arm.pages(
            "list the resource groups", client.list, filter=f"tagName eq '{RUN}'"
        )
        listed = {lower_case_names(one.get("tags")).get(RUN, "").lower() for one in groups}
        lost = []
        for run_id in sorted(recorded_runs(self.context.state_dir, subscription) - listed):
            name = self.context.names(run_id, 1).group
            with contextlib.suppress(Gone):  # removed meanwhile
                group = self.context.arm.call("look at the group", client.get, name)
                tagged = is_of_run(group.get("tags"), run_id)
                groups += [group] * tagged
                lost += [run_id] * (not tagged)
        machines = [one for group in groups for one in self._of_group(group.get("tags"))]
        machines += [self._from_record(run_id) for run_id in lost]
        found = [one for one in machines if one is not None]
        found += self._tagged({(one.run_id, one.node) for one in found})
        return sorted(found, key=lambda vm: vm.created_at, reverse=True)

    def _of_group(self, tags: dict[str, str] | None) -> list[Vm | None]:
        """Observe every machine that the tags of a group speak of.

        A group in which nobody is any more is listed as what remains of node 0.
        """
        run_id = lower_case_names(tags).get(RUN, "").lower()
        nodes = nodes_of(tags)
        names = [
            self.context.names(run_id, generation, node)
            for node, generation in sorted(nodes.items())
        ]
        several = bool(nodes)
        found = [self._of_tags(tags, several=several)] if has_node_0(tags) else []
        found += [self._seen(described(self.context, one)) for one in names]
        if not found:
            left = self.context.names(run_id, network_of(tags))
            found = [replace(vm_from_answer({}, left), power=PowerState.REMNANTS)]
        return found

    def _of_tags(self, tags: dict[str, str] | None, *, several: bool = False) -> Vm | None:
        """Observe the machine that tags describe; None if nothing of it is left."""
        vm = vm_of_tags(tags, subscription_id=self.context.settings.subscription_id)
        return None if vm is None else self._seen(vm, several=several)

    def _seen(self, vm: Vm, *, several: bool = False) -> Vm | None:
        seen = self.observer.observe(vm, several=several)
        if seen.power is PowerState.GONE:
            return None
        return replace(
            vm,
            power=seen.power,
            host=seen.host,
            port=seen.port,
            metadata_url=seen.metadata_url,
            private_host=seen.private_host,
        )

    def _from_record(self, run_id: str) -> Vm | None:
        """Observe a machine that this computer recorded, in a group without our tag."""
        names = self.context.names(run_id, max(self.context.record(run_id).generation, 1))
        answer: dict[str, Any] = {}
        with contextlib.suppress(Gone):  # the group may have no machine
            answer = self.observer.get(names)
        if is_of_run(answer.get("tags"), run_id):
            return self._of_tags(answer["tags"])
        return self._seen(vm_from_answer(answer, names))

    def _tagged(self, listed: set[tuple[str, int]]) -> Iterator[Vm]:
        """Find machines of which only parts carry our tag."""
        parts: list[dict[str, Any]] = []
        with contextlib.suppress(Gone, NotAllowed, Rejected):  # groups are listed all the same
            parts = self.context.arm.pages(
                "list what carries our tag",
                self.context.arm.resources.resources.list,
                filter=f"tagName eq '{RUN}'",
            )
        by_machine = {
            (lower_case_names(one.get("tags")).get(RUN, "").lower(), node_of(one.get("tags"))): one
            for one in parts
        }
        runs = {run_id for run_id, _ in listed}
        for (run_id, node), one in sorted(by_machine.items()):
            group = Names(subscription_id="-", run_id=run_id, generation=1).group
            inside = f"/resourcegroups/{group}/".lower() in str(one.get("id") or "").lower()
            is_listed = (run_id, node) in listed or (node == 0 and run_id in runs)
            vm = self._of_tags(one.get("tags")) if not is_listed and inside else None
            if vm is not None:
                yield vm
