"""Finds what a call is about, as IAM sees it: actions, resources, and what is true of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ec2.launching import groups_of, subnet_of, tags_for
from ec2.replies import ApiCall
from ec2.resources import Ec2Resource
from ec2.state import ACCOUNT, State

BY_ID = {
    "InstanceIds": "instance",
    "InstanceId": "instance",
    "SpotInstanceRequestIds": "spot-instances-request",
    "VolumeId": "volume",
    "GroupId": "security-group",
}
"""The kind of what a parameter of EC2 names."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One thing that must be allowed."""

    action: str
    arn: str = "*"
    context: Mapping[str, str] = field(default_factory=dict)


def targets(state: State, call: ApiCall) -> list[Target]:
    """Everything that must be allowed for a call to be; all of it, not some."""
    if call.service == "ec2" and not call.operation.startswith(("Describe", "Get")):
        found = list(_changes(state, call))
    else:
        found = [Target(action=call.action, arn=arn) for arn in _named(call)]
    return found or [Target(action=call.action)]


def _changes(state: State, call: ApiCall) -> Iterator[Target]:
    """What a call changes or makes in EC2."""
    parameters = call.parameters
    made = {
        "RunInstances": ("instance", "volume", "network-interface", "spot-instances-request"),
        "CreateSecurityGroup": ("security-group",),
    }.get(call.operation, ())
    for kind in made:
        tags = tags_for(parameters, kind)
        if kind == "spot-instances-request" and not tags:
            continue
        arn = state.arn(kind, "*", call.region)
        context = {f"aws:RequestTag/{key}": value for key, value in tags.items()}
        yield Target(action=call.action, arn=arn, context=context)
        if tags:
            born = {**context, "ec2:CreateAction": call.operation}
            yield Target(action="ec2:CreateTags", arn=arn, context=born)
    if call.operation == "RunInstances":
        image = f"arn:aws:ec2:{call.region}::image/{parameters.get('ImageId', '')}"
        yield Target(action=call.action, arn=image)
        yield from _present(state, call, "subnet", state.subnets, [subnet_of(parameters)])
        yield from _present(state, call, "security-group", state.groups, groups_of(parameters))
    elif call.operation == "CreateSecurityGroup":
        vpc_id = parameters.get("VpcId", "")
        yield from _present(state, call, "vpc", state.vpcs, [vpc_id])
    for name, kind in BY_ID.items():
        value = parameters.get(name, [])
        ids = [value] if isinstance(value, str) else value
        yield from _present(state, call, kind, _store(state, kind), ids)


def _present(
    state: State, call: ApiCall, kind: str, store: Mapping[str, Ec2Resource], ids: list[str]
) -> Iterator[Target]:
    """The targets among ids that exist: what does not is refused as unknown, later."""
    for id_ in ids:
        if id_ in store:
            context = {f"aws:ResourceTag/{key}": one for key, one in store[id_].tags.items()}
            arn = state.arn(kind, id_, call.region)
            yield Target(action=call.action, arn=arn, context=context)


def _store(state: State, kind: str) -> Mapping[str, Ec2Resource]:
    stores: dict[str, Mapping[str, Ec2Resource]] = {
        "instance": state.instances,
        "spot-instances-request": state.requests,
        "volume": state.volumes,
        "security-group": state.groups,
    }
    return stores[kind]


def _named(call: ApiCall) -> list[str]:
    """The ARNs of what a call names in services other than EC2; empty for calls about all."""
    parameters: Mapping[str, Any] = call.parameters
    match call.service:
        case "ssm":
            return [f"arn:aws:ssm:{call.region}::parameter{parameters.get('Name', '')}"]
        case "scheduler" if "Name" in parameters:
            group = parameters.get("GroupName", "default")
            at = f"arn:aws:scheduler:{call.region}:{ACCOUNT}:schedule"
            return [f"{at}/{group}/{parameters['Name']}"]
        case "monitoring" if call.operation != "DescribeAlarms":
            names = parameters.get("AlarmNames") or [parameters.get("AlarmName", "")]
            return [f"arn:aws:cloudwatch:{call.region}:{ACCOUNT}:alarm:{name}" for name in names]
        case "iam" if "RoleName" in parameters:
            return [f"arn:aws:iam::{ACCOUNT}:role/{parameters['RoleName']}"]
    return []
