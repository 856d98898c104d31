"""The calls of EC2 about networks: VPCs, subnets, route tables, network interfaces."""

from __future__ import annotations

from typing import Any

from ec2.launching import free_addresses
from ec2.listing import Fields, chosen, filtered, page, tag_list
from ec2.regions import REGIONS
from ec2.replies import ApiCall
from ec2.state import ACCOUNT
from ec2.world import World

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
            "AvailableIpAddressCount": free_addresses(world, one),
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


OPERATIONS = {
    "DescribeVpcs": describe_vpcs,
    "DescribeSubnets": describe_subnets,
    "DescribeRouteTables": describe_route_tables,
    "DescribeNetworkInterfaces": describe_network_interfaces,
}
