"""Keeps the resource group that the machines of a run share: who is in it, and for how long.

Machines join and leave by a change of the group's tags, which is read and written under a lock: the
threads that rent the machines of one run at the same time are threads of one process.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from infra.azure.context import AzureContext
from infra.azure.delete import Deleter
from infra.azure.group_tags import (
    NETWORK,
    NODES,
    is_of_several,
    network_of,
    nodes_of,
    others_of,
    with_node,
    with_node_0,
    without,
)
from infra.azure.naming import VNET, Names
from infra.azure.resources import Parts
from infra.catalog.vendor import folded
from infra.errors import Gone, NotAllowed
from infra.provider import VmSpec
from infra.renting.run_record import RunRecord
from infra.renting.tags import GENERATION, is_of_run, lower_case_names

_LOCKS: dict[str, threading.RLock] = {}
_LOCKS_LOCK = threading.Lock()


@contextlib.contextmanager
def locked_group(names: Names) -> Iterator[None]:
    """Hold the group of a run alone among the threads of this process."""
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(names.group_id.lower(), threading.RLock())
    with lock:
        yield


@dataclass(frozen=True, kw_only=True)
class RunGroup:
    """Lets machines join and leave the resource group of their run."""

    context: AzureContext
    deleter: Deleter

    def join(
        self, spec: VmSpec, names: Names, record: RunRecord, tags: dict[str, str]
    ) -> tuple[Names, dict[str, str]]:
        """Create the group or change its tags, before anything of the machine bills.

        Returns the names, with those of the network, and the machine's own tags: those that it was
        made with, where this very create was begun before. To be called under `locked_group`.
        """
        found = self._group_in_region(spec, names)
        existing = (found or {}).get("tags")
        if found is not None and not is_of_run(existing, spec.run_id):
            raise NotAllowed(f"the resource group `{names.group}` does not carry our tag")
        network = network_of(existing) or spec.generation
        names = replace(names, network_generation=network)
        record.ids |= dict(zip(("firewall", "network"), names.shared_ids(), strict=True))
        record.save()
        made_with = self._tags_made_with(spec, names, existing)
        tags = made_with or tags
        wanted = (
            with_node(existing, spec.node, tags, network)
            if spec.node
            else with_node_0(existing, tags, network)
        )
        if wanted != existing:
            location = found["location"] if found else spec.offer.region
            self._write(names, location, wanted)
        return names, tags

    def leave(self, names: Names) -> None:
        """Take a machine that is gone out of the group's tags."""
        with locked_group(names):
            group = self.deleter.group(names)
            tags = (group or {}).get("tags")
            if group is None or not is_of_run(tags, names.run_id):
                return
            if names.node == 0:
                there = lower_case_names(tags).get(GENERATION) == str(names.generation)
            else:
                there = nodes_of(tags).get(names.node) == names.generation
            if there:
                self._write(names, group["location"], without(tags, names))

    def is_alone(self, names: Names) -> bool:
        """Whether no other machine of the run is in the group."""
        group = self.deleter.group(names)
        return group is None or not others_of(group.get("tags"), names.node)

    def _group_in_region(self, spec: VmSpec, names: Names) -> dict[str, Any] | None:
        """Get the group; one whose network is in another region is removed, if nobody is in it."""
        group = self.deleter.existing_group(spec.run_id)
        tags = (group or {}).get("tags")
        if group is None or not is_of_several(tags) or others_of(tags, spec.node):
            return group
        names = replace(names, network_generation=network_of(tags))
        network = Parts(context=self.context).get(names.id_of(VNET, names.vnet))
        place = str((network or {}).get("location") or "")
        if network is None or folded(place) == folded(spec.offer.region):
            return group
        self.deleter.remove(spec.run_id)
        return None

    def _tags_made_with(
        self, spec: VmSpec, names: Names, existing: dict[str, str] | None
    ) -> dict[str, str]:
        """The tags with which this very create made things before; empty if it made none."""
        if spec.node == 0:
            shared = {NODES, NETWORK}
            own = {key: one for key, one in (existing or {}).items() if key.lower() not in shared}
            return own if is_made_for(own, spec) else {}
        if nodes_of(existing).get(spec.node) != spec.generation:
            return {}
        addresses = self.context.arm.network.public_ip_addresses
        with contextlib.suppress(Gone):  # its address was not made
            found = self.context.arm.call(
                "look at the address", addresses.get, names.group, names.public_ip
            )
            tags = dict(found.get("tags") or {})
            return tags if is_made_for(tags, spec) else {}
        return {}

    def _write(self, names: Names, location: str, tags: dict[str, str]) -> None:
        groups = self.context.arm.resources.resource_groups
        self.context.arm.call(
            f"make the resource group `{names.group}`",
            groups.create_or_update,
            names.group,
            {"location": location, "tags": tags},
        )


def is_made_for(tags: Mapping[str, str] | None, spec: VmSpec) -> bool:
    """Whether tags are of a machine that was made for this very request, with its key."""
    found = lower_case_names(tags)
    same = same_key(found.get("qft-host-key", ""), spec.host_public_key)
    return same and found.get(GENERATION) == str(spec.generation)


def same_key(one: str, other: str) -> bool:
    """Whether two public lines are one key, whatever their comments."""
    return one.split()[:2] == other.split()[:2]
