"""Keeps the security group of a machine: the caller's address reaches port 22, nobody else does."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.aws.context import AwsContext
from infra.aws.errors import AlreadyThereError, NotYetVisibleError
from infra.errors import NotAllowed, Transient
from infra.renting.tags import RUN
from infra.untrusted import table

SSH = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
RULE = "qft: the computer that rented this machine"
"""The description by which our own rule is recognised; other rules are their maker's."""
ALL = {"IpProtocol": "-1"}
MATES = "qft: the machines of this run"
VISIBLE_WAIT_S = 60.0
"""How long something that was just made may be unknown to the next call."""


@dataclass(frozen=True, kw_only=True)
class SecurityGroups:
    """Security groups of one account, each for one machine."""

    context: AwsContext

    def create(
        self, region: str, vpc: str, *, name: str, run_id: str, tags: Mapping[str, str]
    ) -> tuple[str, bool]:
        """Create the group of that name in a VPC; return its id, and whether it is new.

        A name is unique in its VPC, whoever asks. Returns when other calls know the group. Raises
        `NotAllowed` if the name is taken by something that does not carry our tag.
        """
        try:
            answer = self.context.clients.call(
                "ec2",
                region,
                "create_security_group",
                doing=f"make the security group `{name}`",
                GroupName=name,
                Description="SSH from the computer that rented this machine",
                VpcId=vpc,
                TagSpecifications=[specify(tags, "security-group")],
            )
        except AlreadyThereError:
            return self._existing(region, vpc, name=name, run_id=run_id), False
        id_ = str(answer["GroupId"])
        self._wait_for(region, f"`{id_}`", GroupIds=[id_])
        return id_, True

    def allow_source(self, region: str, group_id: str, source: str) -> bool:
        """Let `source`, a CIDR, through to port 22 and no earlier one; whether a rule changed.

        The new rule is made before the old one goes, so that nobody is locked out in between.
        Raises `NotYetVisibleError` if there is no such group.
        """
        sources = _our_sources(self._described(region, GroupIds=[group_id]))
        is_new = source not in sources
        if is_new:
            try:
                self._change("authorize_security_group_ingress", region, group_id, _rule(source))
            except AlreadyThereError:  # made by an earlier call, or by hand
                is_new = False
        for other in sorted(sources - {source}):
            with contextlib.suppress(NotYetVisibleError):  # another machine of the run was quicker
                self._change("revoke_security_group_ingress", region, group_id, _rule(other))
        return is_new or bool(sources - {source})

    def share(self, region: str, group_id: str) -> bool:
        """Let the machines in the group reach each other on every port; whether that is new.

        The rule names the group itself as its source: it admits their private addresses only, and
        opens nothing to anybody else.
        """
        if is_shared(self._described(region, GroupIds=[group_id])):
            return False
        rule = {**ALL, "UserIdGroupPairs": [{"GroupId": group_id, "Description": MATES}]}
        try:
            self._change("authorize_security_group_ingress", region, group_id, rule)
        except AlreadyThereError:  # another node was quicker
            return False
        return True

    def _existing(self, region: str, vpc: str, *, name: str, run_id: str) -> str:
        filters = [
            {"Name": "group-name", "Values": [name]},
            {"Name": "vpc-id", "Values": [vpc]},
        ]
        group = self._wait_for(region, f"`{name}`", Filters=filters)
        tags = {str(one.get("Key")): one.get("Value") for one in group.get("Tags") or []}
        if tags.get(RUN) != run_id:
            raise NotAllowed(
                f"the security group `{name}` exists in {region} and does not carry our tag",
                hint="rename the run with `name:`, or remove that group yourself",
            )
        return str(group["GroupId"])

    def _wait_for(self, region: str, name: str, **parameters: Any) -> dict[str, Any]:
        """Look until a group is found. Raises `Transient` after a minute."""
        deadline = self.context.clock() + VISIBLE_WAIT_S
        while True:
            try:
                found = self._described(region, **parameters)
            except NotYetVisibleError:
                found = {}
            if found:
                return found
            if self.context.clock() >= deadline:
                raise Transient(
                    f"EC2 has a security group {name} in {region} and does not show it yet",
                    hint="the same call is safe to repeat",
                )
            self.context.sleep(self.context.settings.polling_s)

    def _described(self, region: str, **parameters: Any) -> dict[str, Any]:
        """The first group that is found; empty if none is."""
        answer = self.context.clients.call(
            "ec2",
            region,
            "describe_security_groups",
            doing=f"look at the security groups of {region}",
            **parameters,
        )
        rows = answer.get("SecurityGroups") or []
        return table(rows[0]) if rows else {}

    def _change(self, operation: str, region: str, group_id: str, rule: dict[str, Any]) -> None:
        self.context.clients.call(
            "ec2",
            region,
            operation,
            doing=f"change who reaches the security group `{group_id}`",
            GroupId=group_id,
            IpPermissions=[rule],
        )


def specify(tags: Mapping[str, str], kind: str) -> dict[str, Any]:
    """The tags of one kind of resource, as requests that make it carry them."""
    return {
        "ResourceType": kind,
        "Tags": [{"Key": name, "Value": value} for name, value in sorted(tags.items())],
    }


def is_shared(group: Mapping[str, Any]) -> bool:
    """Whether the machines in a group may reach each other, as those of one run do."""
    return any(
        rule.get("IpProtocol") == ALL["IpProtocol"]
        and any(
            table(pair).get("GroupId") == group.get("GroupId")
            for pair in rule.get("UserIdGroupPairs") or []
        )
        for rule in map(table, group.get("IpPermissions") or [])
    )


def _rule(source: str) -> dict[str, Any]:
    """The rule that lets one source in; EC2 compares all but the description to revoke one."""
    return {**SSH, "IpRanges": [{"CidrIp": source, "Description": RULE}]}


def _our_sources(group: Mapping[str, Any]) -> set[str]:
    """The sources that our own rules of a group let in to port 22."""
    return {
        str(table(address).get("CidrIp"))
        for rule in map(table, group.get("IpPermissions") or [])
        if all(rule.get(key) == value for key, value in SSH.items())
        for address in rule.get("IpRanges") or []
        if table(address).get("Description") == RULE
    }
