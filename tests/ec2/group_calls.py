"""The calls of EC2 about security groups, whose rules say who may reach a machine."""

from __future__ import annotations

import ipaddress
from typing import Any

from ec2.launching import tags_for
from ec2.listing import Fields, chosen, filtered, page, tag_list
from ec2.replies import ApiCall, AwsError
from ec2.resources import SecurityGroup
from ec2.state import ACCOUNT
from ec2.tagging import check_specifications
from ec2.world import World

RULES_MAX = 60
HEAD = ("IpProtocol", "FromPort", "ToPort")
"""What rules that `IpPermissions` shows together have in common."""
GROUP_FIELDS: Fields = {
    "group-id": lambda one: [one.id],
    "group-name": lambda one: [one.name],
    "vpc-id": lambda one: [one.vpc_id],
    "description": lambda one: [one.description],
    "owner-id": lambda _one: [ACCOUNT],
}


def _group(world: World, call: ApiCall) -> SecurityGroup:
    group_id = call.parameters.get("GroupId")
    if not group_id:
        message = "The request must contain the parameter groupName or groupId"
        raise AwsError("MissingParameter", message)
    missing = "InvalidGroup.NotFound"
    return world.need(world.groups, group_id, call.region, missing, "security group")


def create_security_group(world: World, call: ApiCall) -> dict[str, Any]:
    """`CreateSecurityGroup`: names are unique in a network."""
    parameters = call.parameters
    check_specifications(parameters, "security-group")
    vpc_id = parameters.get("VpcId") or next(
        (one.id for one in world.vpcs.values() if one.region == call.region and one.is_default), ""
    )
    if not vpc_id:
        raise AwsError("VPCIdNotSpecified", "No default VPC for this user")
    world.need(world.vpcs, vpc_id, call.region, "InvalidVpcID.NotFound", "vpc ID")
    name, words = parameters["GroupName"], parameters["Description"]
    if not name or len(name) > 255 or name.startswith("sg-") or not name.isascii():
        raise AwsError("InvalidParameterValue", f"Invalid security group name '{name}'")
    if not words or len(words) > 255:
        raise AwsError("InvalidParameterValue", "Invalid security group description")
    same = [one for one in world.groups.values() if (one.vpc_id, one.name) == (vpc_id, name)]
    if same:
        message = f"The security group '{name}' already exists for VPC '{vpc_id}'"
        raise AwsError("InvalidGroup.Duplicate", message)
    made = SecurityGroup(
        id=world.new_id("sg"),
        region=call.region,
        born_s=world.now(),
        tags=tags_for(parameters, "security-group"),
        name=name,
        description=words,
        vpc_id=vpc_id,
    )
    world.groups[made.id] = made
    arn = world.arn("security-group", made.id, call.region)
    return {"GroupId": made.id, "SecurityGroupArn": arn, "Tags": tag_list(made.tags)}


def describe_security_groups(world: World, call: ApiCall) -> dict[str, Any]:
    """`DescribeSecurityGroups`."""
    rows = chosen(
        world.visible(world.groups, call.region),
        call.parameters,
        "GroupIds",
        missing="InvalidGroup.NotFound",
        words="security group",
    )
    found = filtered(rows, call.parameters, GROUP_FIELDS)
    answer = page(found, call.parameters, "SecurityGroups")
    egress = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    answer["SecurityGroups"] = [
        {
            "GroupId": one.id,
            "GroupName": one.name,
            "Description": one.description,
            "VpcId": one.vpc_id,
            "OwnerId": ACCOUNT,
            "SecurityGroupArn": world.arn("security-group", one.id, one.region),
            "IpPermissions": _merged(one.ingress),
            "IpPermissionsEgress": [egress],
            "Tags": tag_list(one.tags),
        }
        for one in answer["SecurityGroups"]
    ]
    return answer


def authorize_security_group_ingress(world: World, call: ApiCall) -> dict[str, Any]:
    """`AuthorizeSecurityGroupIngress`: all rules or none."""
    group = _group(world, call)
    rules = _rules(world, call, group)
    there = [_bare(one) for one in group.ingress]
    for rule in rules:
        if _bare(rule) in there:
            source = rule.get("CidrIp") or rule["GroupId"]
            message = f'the specified rule "peer: {source}, ALLOW" already exists'
            raise AwsError("InvalidPermission.Duplicate", message)
    if len(group.ingress) + len(rules) > RULES_MAX:
        message = "The maximum number of rules per security group has been reached."
        raise AwsError("RulesPerSecurityGroupLimitExceeded", message)
    group.ingress += rules
    return {"Return": True}


def revoke_security_group_ingress(world: World, call: ApiCall) -> dict[str, Any]:
    """`RevokeSecurityGroupIngress`: rules that are not there are an error."""
    group = _group(world, call)
    plain = [_bare(one) for one in group.ingress]
    for rule in _rules(world, call, group):
        bare = _bare(rule)
        if bare not in plain:
            message = "The specified rule does not exist in this security group."
            raise AwsError("InvalidPermission.NotFound", message)
        index = plain.index(bare)
        del plain[index], group.ingress[index]
    return {"Return": True}


def delete_security_group(world: World, call: ApiCall) -> dict[str, Any]:
    """`DeleteSecurityGroup`: refused while a network interface is in it, or another group names it.

    A rule of its own that names it is no obstacle.
    """
    group = _group(world, call)
    if group.name == "default":
        message = f'the specified group: "{group.id}" name: "default" cannot be deleted'
        raise AwsError("CannotDelete", message)
    others = [one for one in world.groups.values() if one.id != group.id]
    is_named = any(rule.get("GroupId") == group.id for one in others for rule in one.ingress)
    if is_named or any(group.id in one.group_ids for one in world.interfaces.values()):
        message = f"resource {group.id} has a dependent object"
        raise AwsError("DependencyViolation", message)
    del world.groups[group.id]
    return {"Return": True, "GroupId": group.id}


def _bare(rule: dict[str, Any]) -> dict[str, Any]:
    """What makes a rule the same as another: everything but its description."""
    return {key: value for key, value in rule.items() if key != "Description"}


def _rules(world: World, call: ApiCall, group: SecurityGroup) -> list[dict[str, Any]]:
    """The rules of a request one by one: protocol, ports and one source each.

    A source is a range of addresses, or all machines of a group in the same network.
    """
    parameters = call.parameters
    rows = list(parameters.get("IpPermissions", []))
    if parameters.get("CidrIp"):
        ports = {key: parameters[key] for key in HEAD if key in parameters}
        rows.append({**ports, "IpRanges": [{"CidrIp": parameters["CidrIp"]}]})
    rules = []
    for row in rows:
        head = {key: row[key] for key in HEAD if key in row}
        if head.get("IpProtocol") == "-1":  # all ports of all protocols, whatever ports are named
            head = {"IpProtocol": "-1"}
        if head.get("IpProtocol") == "tcp" and not {"FromPort", "ToPort"} <= set(head):
            message = "Invalid value for portRange. Must specify both from and to ports"
            raise AwsError("InvalidParameterValue", message)
        for source in row.get("IpRanges", []):
            _check_source(source.get("CidrIp", ""))
            rules.append({**head, **source})
        rules += [
            {**head, **_peer(world, call.region, group, pair)}
            for pair in row.get("UserIdGroupPairs", [])
        ]
    if not rules:
        message = "The request must contain the parameter ipPermissions"
        raise AwsError("MissingParameter", message)
    return rules


def _peer(world: World, region: str, group: SecurityGroup, pair: dict[str, Any]) -> dict[str, Any]:
    """The source of a rule that names a group by its id; names of groups are for EC2-Classic."""
    peer_id = pair.get("GroupId", "")
    missing = "InvalidGroup.NotFound"
    peer = world.need(world.groups, peer_id, region, missing, "security group")
    if peer.vpc_id != group.vpc_id:
        message = f"You have specified two resources that belong to different networks: {peer_id}"
        raise AwsError("InvalidGroup.NotFound", message)
    words = {"Description": pair["Description"]} if pair.get("Description") else {}
    return {"GroupId": peer_id, "UserId": pair.get("UserId") or ACCOUNT, **words}


def _check_source(cidr: str) -> None:
    try:
        network = ipaddress.IPv4Network(cidr, strict=True)
    except ValueError as error:
        message = f"CIDR block {cidr} is malformed"
        raise AwsError("InvalidParameterValue", message) from error
    if "/" not in cidr:
        raise AwsError("InvalidParameterValue", f"CIDR block {network} needs its length")


def _merged(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rules as `IpPermissions`: the sources of the same ports together."""
    made: dict[tuple[Any, ...], dict[str, Any]] = {}
    for rule in rules:
        head = {key: rule[key] for key in HEAD if key in rule}
        source = {key: value for key, value in rule.items() if key not in HEAD}
        empty: dict[str, Any] = {"IpRanges": [], "UserIdGroupPairs": []}
        row = made.setdefault(tuple(head.items()), {**head, **empty})
        row["UserIdGroupPairs" if "GroupId" in rule else "IpRanges"].append(source)
    return list(made.values())


OPERATIONS = {
    "CreateSecurityGroup": create_security_group,
    "DescribeSecurityGroups": describe_security_groups,
    "AuthorizeSecurityGroupIngress": authorize_security_group_ingress,
    "RevokeSecurityGroupIngress": revoke_security_group_ingress,
    "DeleteSecurityGroup": delete_security_group,
}
