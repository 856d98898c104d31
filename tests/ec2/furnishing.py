"""Puts into a new account what AWS gives every one: default networks and public images."""

from __future__ import annotations

import hashlib

from ec2.regions import REGIONS, Region
from ec2.resources import Image, RouteTable, SecurityGroup, Subnet, Vpc
from ec2.state import State

DEEP_LEARNING_OWNER = "898082745236"
CANONICAL = "099720109477"
DEEP_LEARNING_GB = 75
UBUNTU_GB = 8


def furnish(state: State, *, default_vpc: bool = True) -> None:
    """Furnish every region; without default networks, as accounts have that deleted them."""
    for region in REGIONS.values():
        for version in ("22.04", "24.04"):
            add_images(state, region.name, version)
        if default_vpc:
            add_network(state, region.name, is_default=True)


def add_network(
    state: State, region: str, *, is_default: bool = False, gateway: bool = True
) -> Vpc:
    """A network with a subnet in each zone, its default group and its main route table."""
    found: Region = REGIONS[region]
    vpc = Vpc(id=state.new_id("vpc"), region=region, is_default=is_default)
    state.vpcs[vpc.id] = vpc
    for index, zone in enumerate(found.zones):
        subnet = Subnet(
            id=state.new_id("subnet"),
            region=region,
            vpc_id=vpc.id,
            zone=zone,
            cidr=f"172.31.{16 * index}.0/20",
            default_for_zone=is_default,
            gives_public_ip=is_default,
        )
        state.subnets[subnet.id] = subnet
    table = RouteTable(
        id=state.new_id("rtb"),
        region=region,
        vpc_id=vpc.id,
        gateway_id=state.new_id("igw") if gateway else "",
    )
    state.tables[table.id] = table
    group = SecurityGroup(
        id=state.new_id("sg"),
        region=region,
        name="default",
        description="default VPC security group",
        vpc_id=vpc.id,
    )
    state.groups[group.id] = group
    return vpc


def add_images(state: State, region: str, version: str, *, date: str = "20260918") -> list[Image]:
    """The public images of one version of Ubuntu, which Systems Manager names from then on."""
    dlami = f"Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu {version}) {date}"
    code = {"22.04": "jammy-22.04", "24.04": "noble-24.04"}[version]
    ubuntu = f"ubuntu/images/hvm-ssd-gp3/ubuntu-{code}-amd64-server-{date}"
    disk = {"22.04": "ebs-gp2", "24.04": "ebs-gp3"}[version]
    names = {
        f"/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-{version}"
        "/latest/ami-id": (dlami, DEEP_LEARNING_OWNER, DEEP_LEARNING_GB),
        f"/aws/service/canonical/ubuntu/server/{version}/stable/current/amd64/hvm/{disk}/ami-id": (
            ubuntu,
            CANONICAL,
            UBUNTU_GB,
        ),
    }
    made = []
    for parameter, (name, owner, size_gb) in names.items():
        digest = hashlib.sha256(f"{region}/{name}".encode()).hexdigest()
        image = Image(
            id=f"ami-0{digest[:16]}",
            region=region,
            name=name,
            owner_id=owner,
            created=f"{date[:4]}-{date[4:6]}-{date[6:]}T06:00:00.000Z",
            size_gb=size_gb,
            snapshot_id=f"snap-0{digest[16:32]}",
        )
        state.images[image.id] = image
        state.parameters[region, parameter] = image.id
        made.append(image)
    return made
