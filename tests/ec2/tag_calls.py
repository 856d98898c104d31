"""The calls of EC2 about disks and tags."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ec2.listing import Fields, chosen, filtered, page
from ec2.replies import ApiCall, AwsError
from ec2.resources import Ec2Resource
from ec2.tagging import check_tags
from ec2.views import volume_view
from ec2.world import World

VOLUME_FIELDS: Fields = {
    "volume-id": lambda one: [one.id],
    "status": lambda one: ["in-use" if one.instance_id else "available"],
    "attachment.instance-id": lambda one: [one.instance_id] if one.instance_id else [],
    "availability-zone": lambda one: [one.zone],
    "size": lambda one: [one.size_gb],
    "volume-type": lambda one: [one.kind],
    "encrypted": lambda one: [one.encrypted],
}
TAG_FIELDS: Fields = {
    "key": lambda row: [row["Key"]],
    "value": lambda row: [row["Value"]],
    "resource-id": lambda row: [row["ResourceId"]],
    "resource-type": lambda row: [row["ResourceType"]],
}


def describe_volumes(world: World, call: ApiCall) -> dict[str, Any]:
    """`DescribeVolumes`."""
    rows = chosen(
        world.visible(world.volumes, call.region),
        call.parameters,
        "VolumeIds",
        missing="InvalidVolume.NotFound",
        words="volume",
    )
    answer = page(filtered(rows, call.parameters, VOLUME_FIELDS), call.parameters, "Volumes")
    return {**answer, "Volumes": [volume_view(world, one) for one in answer["Volumes"]]}


def delete_volume(world: World, call: ApiCall) -> dict[str, Any]:
    """`DeleteVolume`: refused while a machine has it."""
    id_ = call.parameters["VolumeId"]
    volume = world.need(world.volumes, id_, call.region, "InvalidVolume.NotFound", "volume")
    if volume.instance_id:
        message = f"Volume {id_} is currently attached to {volume.instance_id}"
        raise AwsError("VolumeInUse", message)
    world.drop_volume(id_)
    return {}


def _taggable(world: World, region: str) -> Iterator[tuple[str, Ec2Resource]]:
    """Everything of a region that can carry tags, with the name of its kind."""
    stores: list[tuple[str, dict[str, Any]]] = [
        ("instance", world.instances),
        ("spot-instances-request", world.requests),
        ("volume", world.volumes),
        ("network-interface", world.interfaces),
        ("security-group", world.groups),
        ("subnet", world.subnets),
        ("vpc", world.vpcs),
    ]
    for kind, store in stores:
        for one in store.values():
            if one.region == region and world.is_visible(one):
                yield kind, one


def _named(world: World, call: ApiCall) -> list[Ec2Resource]:
    by_id = {one.id: one for _, one in _taggable(world, call.region)}
    for id_ in call.parameters["Resources"]:
        if id_ not in by_id:
            raise AwsError("InvalidID", f"The ID '{id_}' is not valid")
    return [by_id[id_] for id_ in call.parameters["Resources"]]


def create_tags(world: World, call: ApiCall) -> dict[str, Any]:
    """`CreateTags`: adds or changes."""
    tags = call.parameters["Tags"]
    rows = _named(world, call)
    for one in rows:
        check_tags(tags, present=len(set(one.tags) - {tag["Key"] for tag in tags}))
    for one in rows:
        one.tags.update({tag["Key"]: tag.get("Value", "") for tag in tags})
    return {}


def delete_tags(world: World, call: ApiCall) -> dict[str, Any]:
    """`DeleteTags`: of these keys, and of these values where they are named; all if none is."""
    for one in _named(world, call):
        if "Tags" not in call.parameters:
            one.tags.clear()
        for tag in call.parameters.get("Tags", []):
            if tag.get("Value") in {None, one.tags.get(tag["Key"])}:
                one.tags.pop(tag["Key"], None)
    return {}


def describe_tags(world: World, call: ApiCall) -> dict[str, Any]:
    """`DescribeTags`: every tag of every resource, terminated machines included."""
    rows = [
        {"ResourceId": one.id, "ResourceType": kind, "Key": key, "Value": value}
        for kind, one in _taggable(world, call.region)
        for key, value in one.tags.items()
    ]
    found = filtered(rows, call.parameters, TAG_FIELDS)
    return page(found, call.parameters, "Tags")


OPERATIONS = {
    "DescribeVolumes": describe_volumes,
    "DeleteVolume": delete_volume,
    "CreateTags": create_tags,
    "DeleteTags": delete_tags,
    "DescribeTags": describe_tags,
}
