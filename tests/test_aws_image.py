"""The image that a machine boots is AWS's own, fit for a machine that can be stopped."""

from __future__ import annotations

from typing import Any

import pytest

from infra.aws.image import Image, newest, read_image
from infra.aws.network import route_problem
from infra.errors import NotAllowed

ROW: dict[str, Any] = {
    "ImageId": "ami-0123456789abcdef0",
    "Name": "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) 20261006",
    "State": "available",
    "Architecture": "x86_64",
    "RootDeviceType": "ebs",
    "RootDeviceName": "/dev/sda1",
    "BlockDeviceMappings": [
        {"DeviceName": "/dev/sdb", "VirtualName": "ephemeral0"},
        {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 75, "VolumeType": "gp3"}},
    ],
}


def test_image_says_which_device_its_disk_is_and_how_big() -> None:
    """The size is that of the root device, not of another mapping."""
    assert read_image(ROW) == Image(
        id="ami-0123456789abcdef0",
        name=ROW["Name"],
        root_device="/dev/sda1",
        size_gb=75,
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"State": "deregistered"}, "deregistered"),
        ({"Architecture": "arm64"}, "arm64"),
        ({"Platform": "windows"}, "Windows"),
        ({"RootDeviceType": "instance-store"}, "no EBS volume"),
        ({"BlockDeviceMappings": []}, "no EBS volume"),
        ({"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {}}]}, "no EBS volume"),
        ({"ImageId": None}, "no id"),
    ],
)
def test_image_that_could_not_serve_is_refused(changes: dict[str, Any], words: str) -> None:
    """Withdrawn, for other processors, Windows, or without a disk of its own: each in words."""
    with pytest.raises(NotAllowed, match=words) as caught:
        read_image(ROW | changes)

    assert "vm.aws.image" in caught.value.hint


def test_newest_image_is_the_one_made_last() -> None:
    """The order of the list means nothing."""
    rows = [
        {"ImageId": "ami-2", "CreationDate": "2026-10-06T10:00:00.000Z"},
        {"ImageId": "ami-3", "CreationDate": "2026-11-06T10:00:00.000Z"},
        {"ImageId": "ami-1", "CreationDate": "2025-12-06T10:00:00.000Z"},
    ]

    found = newest(rows)

    assert found is not None
    assert found["ImageId"] == "ami-3"
    assert newest([]) is None


IGW = {"DestinationCidrBlock": "0.0.0.0/0", "GatewayId": "igw-1", "State": "active"}
LOCAL = {"DestinationCidrBlock": "172.31.0.0/16", "GatewayId": "local", "State": "active"}


@pytest.mark.parametrize(
    "routes",
    [
        [LOCAL],
        [LOCAL, {"DestinationCidrBlock": "0.0.0.0/0", "NatGatewayId": "nat-1", "State": "active"}],
        [LOCAL, IGW | {"State": "blackhole"}],
        [LOCAL, IGW | {"DestinationCidrBlock": "10.0.0.0/8"}],
        [LOCAL, {"DestinationIpv6CidrBlock": "::/0", "GatewayId": "igw-1", "State": "active"}],
        [],
    ],
)
def test_routes_on_which_nobody_comes_in_are_noticed(routes: list[dict[str, Any]]) -> None:
    """Only a live route of everything to an internet gateway lets anybody reach the machine."""
    problem, fix = route_problem([{"RouteTableId": "rtb-1", "Routes": routes}], region="eu-west-1")

    assert "no internet gateway" in problem
    assert "aws ec2 create-route --region eu-west-1 --route-table-id rtb-1" in fix


def test_route_to_an_internet_gateway_is_enough() -> None:
    """The table of a default VPC passes."""
    assert route_problem([{"Routes": [LOCAL, IGW]}], region="eu-west-1") == ("", "")
