"""The calls of EC2 about networks: VPCs, subnets, route tables, security groups."""

from __future__ import annotations

import ipaddress
from typing import Any

from ec2.launching import tags_for
from ec2.listing import Fields, chosen, filtered, page, tag_list
from ec2.regions import REGIONS
from ec2.replies import ApiCall, AwsError
from ec2.resources import SecurityGroup
from ec2.state import ACCOUNT
from ec2.tagging import check_specifications
from ec2.world import World

GROUPS_MAX = 2500
RULES_MAX = 60
VPC_FIELDS: Fields = {
    "vpc-id": lambda one: [one.id],
    "is-default": lambda one: [one.is_default],
    "isDefault": lambda one: [one.is_default],
    "state": lambda _one: ["available"],
}
SUBNET_FIELDS: Fields = {
    "subnet-id": lambda one: [one.id],
    "vpc-id": lambda one: [one.vpc_id],
    "availability-zone": lambda one: [one.zone],
    "availabilityZone": lambda one: [one.zone],
    "default-for-az": lambda one: [one.default_for_zone],
    "defaultForAz": lambda one: [one.default_for_zone],
    "map-public-ip-on-launch": lambda one: [one.gives_public_ip],
    "state": lambda _one: ["available"],
}
TABLE_FIELDS: Fields = {
    "route-table-id": lambda one: [one.id],
    "vpc-id": lambda one: [one.vpc_id],
    "association.main": lambda one: [one.is_main],
    "association.subnet-id": lambda one: one.subnet_ids,
    "route.destination-cidr-block": lambda one: ["0.0.0.0/0"] if one.gateway_id else [],
    "route.gateway-id": lambda one: ["local", one.gateway_id],
}
GROUP_FIELDS: Fields = {
    "group-id": lambda one: [one.id],
    "group-name": lambda one: [one.name],
    "vpc-id": lambda one: [one.vpc_id],
    "description": lambda one: [one.description],
    "owner-id": lambda _one: [ACCOUNT],
}
INTERFACE_FIELDS: Fields = {
    "network-interface-id": lambda one: [one.id],
    "group-id": lambda one: one.group_ids,
    "subnet-id": lambda one: [one.subnet_id],
    "vpc-id": lambda one: [one.vpc_id],
    "attachment.instance-id": lambda one: [one.instance_id],
    "status": lambda _one: ["in-use"],
}


def describe_vpcs(world: World, call: ApiCall) -> dict[str, Any]:
    """`DescribeVpcs`."""
    rows = chosen(
        world.visible(world.vpcs, call.region),
        call.parameters,
        "VpcIds",
        missing="InvalidVpcID.NotFound",
        words="vpc ID",
    )
    answer = page(filtered(rows, call.parameters, VPC_FIELDS), call.parameters, "Vpcs")
    answer["Vpcs"] = [
        {
            "VpcId": one.id,
            "OwnerId": ACCOUNT,
            "IsDefault": one.is_default,
            "CidrBlock": one.cidr,
            "State": "available",
            "InstanceTenancy": "default",
            "DhcpOptionsId": "dopt-0a1b2c3d",
            "Tags": tag_list(one.tags),
        }
        for one in answer["Vpcs"]
    ]
    return answer


def describe_subnets(world: World, call: ApiCall) -> dict[str, Any]:
    """`DescribeSubnets`."""
    rows = chosen(
        world.visible(world.subnets, call.region),
        call.parameters,
        "SubnetIds",
        missing="InvalidSubnetID.NotFound",
        words="subnet ID",
    )
    answer = page(filtered(rows, call.parameters, SUBNET_FIELDS), call.parameters, "Subnets")
    answer["Subnets"] = [
        {
            "SubnetId": one.id,
            "SubnetArn": world.arn("subnet", one.id, one.region),
            "OwnerId": ACCOUNT,
            "State": "available",
            "VpcId": one.vpc_id,
            "CidrBlock": one.cidr,
            "AvailableIpAddressCount": 4091,
            "AvailabilityZone": one.zone,
            "AvailabilityZoneId": REGIONS[one.region].zones[one.zone],
            "DefaultForAz": one.default_for_zone,
            "MapPublicIpOnLaunch": one.gives_public_ip,
            "Ipv6Native": False,
            "Tags": tag_list(one.tags),
        }
        for one in answer["Subnets"]
    ]
    return answer


def describe_route_tables(world: World, call: ApiCall) -> dict[str, Any]:
    """`DescribeRouteTables`."""
    rows = chosen(
        world.visible(world.tables, call.region),
        call.parameters,
        "RouteTableIds",
        missing="InvalidRouteTableID.NotFound",
        words="routeTable ID",
    )
    answer = page(filtered(rows, call.parameters, TABLE_FIELDS), call.parameters, "RouteTables")
    views = []
    for one in answer["RouteTables"]:
        local = {
            "DestinationCidrBlock": world.vpcs[one.vpc_id].cidr,
            "GatewayId": "local",
            "Origin": "CreateRouteTable",
            "State": "active",
        }
        out = {
            "DestinationCidrBlock": "0.0.0.0/0",
            "NatGatewayId" if one.gateway_id.startswith("nat-") else "GatewayId": one.gateway_id,
            "Origin": "CreateRoute",
            "State": "active",
        }
        links = [{"SubnetId": id_, "Main": False} for id_ in one.subnet_ids] or [{"Main": True}]
        views.append(
            {
                "RouteTableId": one.id,
                "VpcId": one.vpc_id,
                "OwnerId": ACCOUNT,
                "Tags": tag_list(one.tags),
                "Routes": [local, out] if one.gateway_id else [local],
                "Associations": [
                    {
                        **link,
                        "RouteTableId": one.id,
                        "RouteTableAssociationId": f"{one.id.replace('rtb-', 'rtbassoc-')}",
                        "AssociationState": {"State": "associated"},
                    }
                    for link in links
                ],
            }
        )
    return {**answer, "RouteTables": views}


def describe_network_interfaces(world: World, call: ApiCall) -> dict[str, Any]:
    """`DescribeNetworkInterfaces`."""
    rows = filtered(world.visible(world.interfaces, call.region), call.parameters, INTERFACE_FIELDS)
    answer = page(rows, call.parameters, "NetworkInterfaces")
    answer["NetworkInterfaces"] = [
        {
            "NetworkInterfaceId": one.id,
            "SubnetId": one.subnet_id,
            "VpcId": one.vpc_id,
            "OwnerId": ACCOUNT,
            "PrivateIpAddress": one.private_ip,
            "Status": "in-use",
            "Groups": [{"GroupId": id_} for id_ in one.group_ids],
            "TagSet": tag_list(one.tags),
            "Attachment": {
                "InstanceId": one.instance_id,
                "DeleteOnTermination": True,
                "DeviceIndex": 0,
                "Status": "attached",
            },
        }
        for one in answer["NetworkInterfaces"]
    ]
    return answer


# ---- security groups ----


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
    rules = _rules(call)
    for rule in rules:
        if rule in group.ingress:
            source = rule["CidrIp"]
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
    plain = [{k: v for k, v in one.items() if k != "Description"} for one in group.ingress]
    for rule in _rules(call):
        bare = {key: value for key, value in rule.items() if key != "Description"}
        if bare not in plain:
            message = "The specified rule does not exist in this security group."
            raise AwsError("InvalidPermission.NotFound", message)
        index = plain.index(bare)
        del plain[index], group.ingress[index]
    return {"Return": True}


def delete_security_group(world: World, call: ApiCall) -> dict[str, Any]:
    """`DeleteSecurityGroup`: refused while a network interface is in it."""
    group = _group(world, call)
    if group.name == "default":
        message = f'the specified group: "{group.id}" name: "default" cannot be deleted'
        raise AwsError("CannotDelete", message)
    if any(group.id in one.group_ids for one in world.interfaces.values()):
        message = f"resource {group.id} has a dependent object"
        raise AwsError("DependencyViolation", message)
    del world.groups[group.id]
    return {"Return": True, "GroupId": group.id}


def _rules(call: ApiCall) -> list[dict[str, Any]]:
    """The rules of a request one by one: protocol, ports and one source each."""
    parameters = call.parameters
    rows = list(parameters.get("IpPermissions", []))
    if parameters.get("CidrIp"):
        ports: dict[str, Any] = {
            k: parameters[k] for k in ("IpProtocol", "FromPort", "ToPort") if k in parameters
        }
        rows.append({**ports, "IpRanges": [{"CidrIp": parameters["CidrIp"]}]})
    rules = []
    for row in rows:
        head = {key: row[key] for key in ("IpProtocol", "FromPort", "ToPort") if key in row}
        if head.get("IpProtocol") == "tcp" and not {"FromPort", "ToPort"} <= set(head):
            message = "Invalid value for portRange. Must specify both from and to ports"
            raise AwsError("InvalidParameterValue", message)
        for source in row.get("IpRanges", []):
            _check_source(source.get("CidrIp", ""))
            rules.append({**head, **source})
    if not rules:
        message = "The request must contain the parameter ipPermissions"
        raise AwsError("MissingParameter", message)
    return rules


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
        head = {key: rule[key] for key in ("IpProtocol", "FromPort", "ToPort") if key in rule}
        source = {key: rule[key] for key in ("CidrIp", "Description") if key in rule}
        row = made.setdefault(tuple(head.items()), {**head, "IpRanges": []})
        row["IpRanges"].append(source)
    return list(made.values())


OPERATIONS = {
    "DescribeVpcs": describe_vpcs,
    "DescribeSubnets": describe_subnets,
    "DescribeRouteTables": describe_route_tables,
    "DescribeNetworkInterfaces": describe_network_interfaces,
    "CreateSecurityGroup": create_security_group,
    "DescribeSecurityGroups": describe_security_groups,
    "AuthorizeSecurityGroupIngress": authorize_security_group_ingress,
    "RevokeSecurityGroupIngress": revoke_security_group_ingress,
    "DeleteSecurityGroup": delete_security_group,
}
