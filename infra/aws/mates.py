"""Finds the other machines of a run: the next one joins their zone, subnet and security group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from infra.aws.context import AwsContext
from infra.aws.inventory import Inventories
from infra.aws.machine_view import node_of, run_of, view_of
from infra.aws.naming import group_name
from infra.aws.security_group import SecurityGroups, is_shared
from infra.provider import Vm, VmSpec
from infra.untrusted import text

FIRST = 1
"""Machines that are made at the same time have to agree on a name for their group: whatever their
generations are, it is that of a first machine, and EC2 lets one of them make it."""


@dataclass(frozen=True, kw_only=True)
class Mates:
    """What the other machines of a run decide for the next one; empty where there are none."""

    zone: str = ""
    subnet: str = ""
    groups: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    """The run's security groups in the region, the one that its machines are in first."""

    def joined_by(self, spec: VmSpec) -> VmSpec:
        """The request for a machine in the zone of the others, whatever zone it named."""
        zone = self.zone or spec.offer.zone
        return replace(spec, offer=replace(spec.offer, zone=zone))

    def group_in(self, vpc: str) -> Mapping[str, Any] | None:
        """The security group that the run has in a network; None if it has none there."""
        return next((one for one in self.groups if one.get("VpcId") == vpc), None)


@dataclass(frozen=True, kw_only=True)
class MatesFinder:
    """Looks for the other machines of a run; a run with one machine asks nothing."""

    context: AwsContext

    def find(self, spec: VmSpec) -> Mates:
        """Look for those that somebody has yet to terminate, in the region of `spec`."""
        if spec.nodes == 1:
            return Mates()
        found = Inventories(context=self.context).of_run(spec.offer.region, spec.run_id)
        others = [one for one in found.live_instances if run_of(one) and node_of(one) != spec.node]
        first = min(others, key=node_of, default={})
        held, usual = view_of(first).groups, group_name(spec.run_id, FIRST)

        def rank(group: Mapping[str, Any]) -> tuple[bool, bool, str]:
            name = str(group.get("GroupName"))
            return group.get("GroupId") not in held, name != usual, name

        return Mates(
            zone=view_of(first).zone,
            subnet=text(first.get("SubnetId")) or "",
            groups=tuple(sorted(found.groups, key=rank)),
        )

    def share(self, vm: Vm) -> None:
        """Let the machines in the groups of a run reach each other, where they do not yet."""
        groups = SecurityGroups(context=self.context)
        for one in Inventories(context=self.context).groups(vm.region, vm.run_id):
            if not is_shared(one):
                groups.share(vm.region, str(one.get("GroupId")))
