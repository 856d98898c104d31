"""Builds a machine with its disk and network interface out of what `RunInstances` was asked."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from ec2.regions import REGIONS
from ec2.replies import AwsError
from ec2.resources import Image, Instance, NetworkInterface, SpotRequest, Subnet, Volume
from ec2.world import World

RESERVED_FIRST = 4
RESERVED_LAST = 1


def subnet_of(parameters: Mapping[str, Any]) -> str:
    """The subnet that a request names, on the machine or on its interface; empty for none."""
    return str(interface_of(parameters).get("SubnetId") or parameters.get("SubnetId") or "")


def in_default_subnet(world: World, region: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The same request in a subnet of the default network: of the zone it names, or with room."""
    vpcs = [one for one in world.vpcs.values() if one.region == region and one.is_default]
    if not vpcs:
        raise AwsError("VPCIdNotSpecified", "No default VPC for this user")
    zone = parameters.get("Placement", {}).get("AvailabilityZone")
    size = parameters.get("InstanceType", "")
    subnets = [
        one
        for one in world.subnets.values()
        if one.vpc_id == vpcs[0].id and one.default_for_zone and zone in {None, one.zone}
    ]
    if not subnets:
        message = f"No subnets found for the default VPC '{vpcs[0].id}'. Please specify a subnet."
        raise AwsError("MissingInput", message)
    sold = [one for one in subnets if REGIONS[region].sells(size, one.zone)]
    roomy = [one for one in sold if world.market.has_room(size, one.zone)]
    subnet_id = (*roomy, *sold, *subnets)[0].id
    if not parameters.get("NetworkInterfaces"):
        return {**parameters, "SubnetId": subnet_id}
    first, *others = parameters["NetworkInterfaces"]
    return {**parameters, "NetworkInterfaces": [{**first, "SubnetId": subnet_id}, *others]}


def interface_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The first network interface that a request describes; empty for none."""
    rows = parameters.get("NetworkInterfaces") or [{}]
    return dict(rows[0])


def groups_of(parameters: Mapping[str, Any]) -> list[str]:
    """The security groups that a request names."""
    return list(interface_of(parameters).get("Groups") or parameters.get("SecurityGroupIds") or [])


def root_disk(parameters: Mapping[str, Any], image: Image) -> dict[str, Any]:
    """The root disk: the image's, changed as the request wants."""
    wanted = {
        row.get("DeviceName"): dict(row.get("Ebs", {}))
        for row in parameters.get("BlockDeviceMappings", [])
    }
    usual = {"VolumeSize": image.size_gb, "VolumeType": "gp3", "DeleteOnTermination": True}
    return usual | {"Encrypted": False} | wanted.get("/dev/sda1", {})


def tags_for(parameters: Mapping[str, Any], kind: str) -> dict[str, str]:
    """The tags that a request gives one kind of resource at birth."""
    return {
        tag["Key"]: tag.get("Value", "")
        for row in parameters.get("TagSpecifications", [])
        if row.get("ResourceType") == kind
        for tag in row.get("Tags", [])
    }


def make_request(world: World, region: str, zone: str, parameters: dict[str, Any]) -> SpotRequest:
    """Let a spot request exist, open."""
    options = parameters.get("InstanceMarketOptions", {}).get("SpotOptions", {})
    until = options.get("ValidUntil")
    made = SpotRequest(
        id=world.new_id("sir").replace("-0", "-")[:12],
        region=region,
        born_s=world.now(),
        tags=tags_for(parameters, "spot-instances-request"),
        zone=zone,
        size=parameters.get("InstanceType", "m1.small"),
        parameters=parameters,
        type=options.get("SpotInstanceType", "one-time"),
        behavior=options.get("InstanceInterruptionBehavior", "terminate"),
        cap=float(options["MaxPrice"]) if options.get("MaxPrice") else None,
        valid_until_s=until.timestamp() if until else None,
    )
    world.requests[made.id] = made
    world.set_status(made, "open", "pending-evaluation")
    return made


def make_instance(
    world: World,
    parameters: dict[str, Any],
    *,
    request: SpotRequest | None,
    tagged: bool = True,
) -> Instance:
    """Let a machine exist and begin to run.

    One that EC2 launches by itself for a live request is not `tagged`, nor is its disk.
    """
    subnet = world.subnets[subnet_of(parameters)]
    image = world.images[parameters["ImageId"]]
    instance_id, reservation = world.new_id("i"), world.new_id("r")
    at: dict[str, Any] = {"region": subnet.region, "born_s": world.now()}

    def tags(kind: str) -> dict[str, str]:
        return tags_for(parameters, kind) if tagged else {}

    disk = root_disk(parameters, image)
    volume = Volume(
        **at,
        id=world.new_id("vol"),
        tags=tags("volume"),
        zone=subnet.zone,
        size_gb=disk["VolumeSize"],
        kind=disk["VolumeType"],
        encrypted=disk["Encrypted"],
        snapshot_id=image.snapshot_id,
        instance_id=instance_id,
        goes_with_instance=disk["DeleteOnTermination"],
    )
    private_ip = free_address(world, subnet)
    wanted = interface_of(parameters).get("AssociatePublicIpAddress")
    interface = NetworkInterface(
        **at,
        id=world.new_id("eni"),
        tags=tags("network-interface"),
        subnet_id=subnet.id,
        vpc_id=subnet.vpc_id,
        group_ids=groups_of(parameters) or [_default_group(world, subnet.vpc_id)],
        instance_id=instance_id,
        private_ip=private_ip,
        has_public_ip=subnet.gives_public_ip if wanted is None else wanted,
    )
    instance = Instance(
        **at,
        id=instance_id,
        tags=tags("instance"),
        zone=subnet.zone,
        size=parameters.get("InstanceType", "m1.small"),
        image_id=image.id,
        subnet_id=subnet.id,
        vpc_id=subnet.vpc_id,
        group_ids=interface.group_ids,
        volume_id=volume.id,
        interface_id=interface.id,
        parameters=parameters,
        reservation_id=reservation,
        request_id=request.id if request else "",
        private_ip=private_ip,
    )
    world.instances[instance.id] = instance
    world.interfaces[interface.id] = interface
    world.add_volume(volume)
    world.machines_made.append(instance.id)
    if request is not None:
        request.instance_id = instance.id
        world.set_status(request, "active", "fulfilled")
    world.launch(instance)
    return instance


def free_address(world: World, subnet: Subnet) -> str:
    """A private address of a subnet that no network interface has, stopped machines included.

    Refused where there is none: EC2 keeps the first four of a subnet and its last to itself.
    """
    addresses = ipaddress.ip_network(subnet.cidr)
    taken = {one.private_ip for one in world.interfaces.values() if one.subnet_id == subnet.id}
    count = addresses.num_addresses - RESERVED_FIRST - RESERVED_LAST
    begin = len(world.machines_made) % count
    for number in range(count):
        found = str(addresses[RESERVED_FIRST + (begin + number) % count])
        if found not in taken:
            return found
    raise AwsError(
        "InsufficientFreeAddressesInSubnet",
        f"The specified subnet '{subnet.id}' does not have enough free addresses to satisfy the "
        "request.",
    )


def free_addresses(world: World, subnet: Subnet) -> int:
    """How many private addresses of a subnet are left."""
    taken = sum(one.subnet_id == subnet.id for one in world.interfaces.values())
    size = ipaddress.ip_network(subnet.cidr).num_addresses
    return size - RESERVED_FIRST - RESERVED_LAST - taken


def _default_group(world: World, vpc_id: str) -> str:
    groups = [one for one in world.groups.values() if one.vpc_id == vpc_id]
    return next(one.id for one in groups if one.name == "default")
