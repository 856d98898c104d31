"""Plays IAM as far as services need it: roles, their trust, and what their policies allow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ec2.access import refusal, user_may
from ec2.policies import CONDITIONS, allowed, conditions_hold, listed
from ec2.replies import ApiCall, AwsError
from ec2.state import ACCOUNT
from ec2.targets import Target
from ec2.world import World

KEY = "iam"
ARN = f"arn:aws:iam::{ACCOUNT}:role/"
SPOT_SERVICE = "spot.amazonaws.com"
SPREADS_S = 10.0
"""How long a new role is not yet accepted by the services that are to assume it."""
RESOURCE_PARAMETERS = ("InstanceIds", "SpotInstanceRequestIds", "VolumeId", "GroupId")


@dataclass(kw_only=True)
class Role:
    """A role: who may assume it, and its policies by name."""

    name: str
    trust: Mapping[str, Any]
    born_s: float
    policies: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def arn(self) -> str:
        """Its ARN."""
        return f"{ARN}{self.name}"

    def view(self, world: World) -> dict[str, Any]:
        """What IAM answers about it."""
        return {
            "Path": "/",
            "RoleName": self.name,
            "RoleId": f"AROA{abs(hash(self.name)) % 10**16:016d}",
            "Arn": self.arn,
            "CreateDate": world.moment(self.born_s),
            "AssumeRolePolicyDocument": json.dumps(self.trust),
        }


def roles(world: World) -> dict[str, Role]:
    """The account's roles by name."""
    found: dict[str, Role] = world.data.setdefault(KEY, {})
    return found


def add_role(
    world: World,
    name: str,
    *,
    trust: Mapping[str, Any],
    policy: Mapping[str, Any] | None = None,
) -> Role:
    """Let a role exist for long already, as an administrator made it."""
    role = Role(name=name, trust=trust, born_s=world.now() - 86400)
    if policy is not None:
        role.policies["inline"] = policy
    roles(world)[name] = role
    world.permissions[role.arn] = lambda call: allows(world, role, call)
    return role


# ---- the API ----


def create_role(world: World, call: ApiCall) -> dict[str, Any]:
    """CreateRole."""
    name = call.parameters["RoleName"]
    if name in roles(world):
        raise AwsError("EntityAlreadyExists", f"Role with name {name} already exists.", status=409)
    trust = _document(call.parameters["AssumeRolePolicyDocument"])
    role = add_role(world, name, trust=trust)
    role.born_s = world.now()
    return {"Role": role.view(world)}


def get_role(world: World, call: ApiCall) -> dict[str, Any]:
    """GetRole."""
    return {"Role": need(world, call.parameters["RoleName"]).view(world)}


def delete_role(world: World, call: ApiCall) -> dict[str, Any]:
    """DeleteRole; its inline policies must be gone."""
    role = need(world, call.parameters["RoleName"])
    if role.policies:
        message = "Cannot delete entity, must delete policies first."
        raise AwsError("DeleteConflict", message, status=409)
    del roles(world)[role.name]
    world.permissions.pop(role.arn, None)
    return {}


def put_role_policy(world: World, call: ApiCall) -> dict[str, Any]:
    """PutRolePolicy."""
    role = need(world, call.parameters["RoleName"])
    role.policies[call.parameters["PolicyName"]] = _document(call.parameters["PolicyDocument"])
    return {}


def get_role_policy(world: World, call: ApiCall) -> dict[str, Any]:
    """GetRolePolicy."""
    role, name = need(world, call.parameters["RoleName"]), call.parameters["PolicyName"]
    if name not in role.policies:
        raise AwsError("NoSuchEntity", f"The role policy {name} cannot be found.", status=404)
    document = json.dumps(role.policies[name])
    return {"RoleName": role.name, "PolicyName": name, "PolicyDocument": document}


def delete_role_policy(world: World, call: ApiCall) -> dict[str, Any]:
    """DeleteRolePolicy."""
    role, name = need(world, call.parameters["RoleName"]), call.parameters["PolicyName"]
    if role.policies.pop(name, None) is None:
        raise AwsError("NoSuchEntity", f"The role policy {name} cannot be found.", status=404)
    return {}


def list_role_policies(world: World, call: ApiCall) -> dict[str, Any]:
    """ListRolePolicies."""
    role = need(world, call.parameters["RoleName"])
    return {"PolicyNames": sorted(role.policies), "IsTruncated": False}


def create_service_linked_role(world: World, call: ApiCall) -> dict[str, Any]:
    """CreateServiceLinkedRole: that of spot machines is the one that EC2 misses."""
    service = call.parameters["AWSServiceName"]
    name = f"AWSServiceRoleFor{service.partition('.')[0].title()}"
    name = "AWSServiceRoleForEC2Spot" if service == SPOT_SERVICE else name
    if name in roles(world) or (service == SPOT_SERVICE and world.has_spot_role):
        message = f"Service role name {name} has been taken in this account, please try a"
        raise AwsError("InvalidInput", f"{message} different suffix.")
    if service == SPOT_SERVICE:
        world.has_spot_role = True
    role = add_role(world, name, trust=trust_of(service))
    return {"Role": role.view(world)}


def need(world: World, name: str) -> Role:
    """The role of that name, or IAM's error."""
    found = roles(world).get(name)
    if found is None:
        message = f"The role with name {name} cannot be found."
        raise AwsError("NoSuchEntity", message, status=404)
    return found


OPERATIONS = {
    "CreateRole": create_role,
    "CreateServiceLinkedRole": create_service_linked_role,
    "DeleteRole": delete_role,
    "DeleteRolePolicy": delete_role_policy,
    "GetRole": get_role,
    "GetRolePolicy": get_role_policy,
    "ListRolePolicies": list_role_policies,
    "PutRolePolicy": put_role_policy,
}


# ---- what services ask ----


def trust_of(service: str, **conditions: Any) -> dict[str, Any]:
    """A trust policy for one service."""
    statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    if conditions:
        statement["Condition"] = conditions
    return {"Version": "2012-10-17", "Statement": [statement]}


def can_assume(world: World, arn: str, service: str, *, source_arn: str) -> bool:
    """Whether a service may assume a role for something of this account; not at once when new."""
    role = roles(world).get(arn.removeprefix(ARN))
    if role is None or role.arn != arn or world.now() - role.born_s < SPREADS_S:
        return False
    context = {"aws:SourceAccount": ACCOUNT, "aws:SourceArn": source_arn}
    return any(
        one["Effect"] == "Allow"
        and service in listed(one.get("Principal", {}).get("Service", []))
        and "sts:AssumeRole" in listed(one["Action"])
        and conditions_hold(one.get("Condition", {}), context)
        for one in listed(role.trust["Statement"])
    )


def check_pass_role(world: World, call: ApiCall, arn: str, service: str) -> None:
    """Raise the service's error if the caller may not pass a role to it."""
    target = Target(action="iam:PassRole", arn=arn, context={"iam:PassedToService": service})
    if not user_may(world, target):
        raise refusal(call, target)


def allows(world: World, role: Role, call: ApiCall) -> bool:
    """Whether a role's policies allow a call on everything that it names."""
    named = [
        (id_, _tags(world, id_))
        for parameter in RESOURCE_PARAMETERS
        for id_ in listed(call.parameters.get(parameter, []))
    ]
    return all(
        _allows(role, call, world.arn(_kind(id_), id_, call.region) if id_ else "*", tags)
        for id_, tags in named or [("", {})]
    )


def _allows(role: Role, call: ApiCall, arn: str, tags: Mapping[str, str]) -> bool:
    context = {f"aws:ResourceTag/{name}": value for name, value in tags.items()}
    return allowed(list(role.policies.values()), call.action, arn, context)


def _tags(world: World, id_: str) -> dict[str, str]:
    for store in (world.instances, world.requests, world.volumes, world.groups):
        if id_ in store:
            return store[id_].tags
    return {}


def _kind(id_: str) -> str:
    prefix = id_.partition("-")[0]
    return {"i": "instance", "sir": "spot-instances-request", "vol": "volume"}.get(
        prefix, "security-group"
    )


def _document(text: str) -> dict[str, Any]:
    """A policy document; raises IAM's error for one that is not, or that is not played."""
    try:
        found = json.loads(text)
        rows = listed(found["Statement"])
        played = all(
            {"Effect", "Action"} <= set(one) and set(one.get("Condition", {})) <= set(CONDITIONS)
            for one in rows
        )
    except (ValueError, KeyError, TypeError):
        played = False
    if not played:
        raise AwsError("MalformedPolicyDocument", "This policy contains invalid Json")
    document: dict[str, Any] = found
    return document
