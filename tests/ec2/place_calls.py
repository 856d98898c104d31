"""The calls of EC2 about regions, zones, sizes and images: what could be rented where."""

from __future__ import annotations

from typing import Any

from ec2.listing import Fields, chosen, filtered, page
from ec2.regions import REGIONS, SIZES, InstanceSize
from ec2.replies import ApiCall, AwsError
from ec2.world import World

REGION_FIELDS: Fields = {
    "region-name": lambda row: [row["RegionName"]],
    "opt-in-status": lambda row: [row["OptInStatus"]],
    "endpoint": lambda row: [row["Endpoint"]],
}
ZONE_FIELDS: Fields = {
    "region-name": lambda row: [row["RegionName"]],
    "zone-name": lambda row: [row["ZoneName"]],
    "zone-id": lambda row: [row["ZoneId"]],
    "zone-type": lambda row: [row["ZoneType"]],
    "state": lambda row: [row["State"]],
    "opt-in-status": lambda row: [row["OptInStatus"]],
}
OFFERING_FIELDS: Fields = {
    "instance-type": lambda row: [row["InstanceType"]],
    "location": lambda row: [row["Location"]],
}
TYPE_FIELDS: Fields = {"instance-type": lambda size: [size.name]}
IMAGE_FIELDS: Fields = {
    "name": lambda one: [one.name],
    "image-id": lambda one: [one.id],
    "state": lambda one: [one.state],
    "owner-id": lambda one: [one.owner_id],
    "owner-alias": lambda _one: ["amazon"],
    "architecture": lambda _one: ["x86_64"],
    "root-device-type": lambda _one: ["ebs"],
    "virtualization-type": lambda _one: ["hvm"],
    "is-public": lambda _one: [True],
}


def describe_regions(world: World, call: ApiCall) -> dict[str, Any]:
    """`DescribeRegions`: the enabled ones, or all."""
    rows = [
        {
            "RegionName": one.name,
            "Endpoint": f"ec2.{one.name}.amazonaws.com",
            "OptInStatus": "opt-in-not-required"
            if not one.opt_in
            else "opted-in"
            if world.is_enabled(one.name)
            else "not-opted-in",
        }
        for one in REGIONS.values()
        if call.parameters.get("AllRegions") or world.is_enabled(one.name)
    ]
    wanted = call.parameters.get("RegionNames")
    if wanted:
        unknown = sorted(set(wanted) - set(REGIONS))
        if unknown:
            raise AwsError("InvalidParameterValue", f"Invalid region name: {unknown[0]}")
        rows = [row for row in rows if row["RegionName"] in wanted]
    return {"Regions": filtered(rows, call.parameters, REGION_FIELDS)}


def describe_availability_zones(world: World, call: ApiCall) -> dict[str, Any]:
    """`DescribeAvailabilityZones` of the region that is asked."""
    del world
    rows = [
        {
            "ZoneName": zone,
            "ZoneId": zone_id,
            "RegionName": call.region,
            "GroupName": f"{call.region}-zg-1",
            "NetworkBorderGroup": call.region,
            "ZoneType": "availability-zone",
            "State": "available",
            "OptInStatus": "opt-in-not-required",
            "Messages": [],
        }
        for zone, zone_id in REGIONS[call.region].zones.items()
    ]
    wanted = call.parameters.get("ZoneNames")
    if wanted:
        rows = [row for row in rows if row["ZoneName"] in wanted]
    return {"AvailabilityZones": filtered(rows, call.parameters, ZONE_FIELDS)}


def describe_instance_type_offerings(world: World, call: ApiCall) -> dict[str, Any]:
    """`DescribeInstanceTypeOfferings` by region, zone or zone id."""
    del world
    kind = call.parameters.get("LocationType", "region")
    region = REGIONS[call.region]
    rows = []
    for size in SIZES:
        zones = [zone for zone in region.zones if region.sells(size, zone)]
        places = {
            "region": [region.name] if zones else [],
            "availability-zone": zones,
            "availability-zone-id": [region.zones[zone] for zone in zones],
        }
        if kind not in places:
            raise AwsError("InvalidParameterValue", f"The location type {kind} is not simulated")
        rows += [
            {"InstanceType": size, "LocationType": kind, "Location": place}
            for place in places[kind]
        ]
    found = filtered(rows, call.parameters, OFFERING_FIELDS)
    return page(found, call.parameters, "InstanceTypeOfferings")


def describe_instance_types(world: World, call: ApiCall) -> dict[str, Any]:
    """`DescribeInstanceTypes`: cores, memory and cards of a size."""
    del world
    wanted = call.parameters.get("InstanceTypes") or list(SIZES)
    unknown = [name for name in wanted if name not in SIZES]
    if unknown:
        message = f"The following supplied instance types do not exist: [{', '.join(unknown)}]"
        raise AwsError("InvalidInstanceType", message)
    rows = filtered([SIZES[name] for name in wanted], call.parameters, TYPE_FIELDS)
    answer = page(rows, call.parameters, "InstanceTypes")
    return {**answer, "InstanceTypes": [_type_view(size) for size in answer["InstanceTypes"]]}


def _type_view(size: InstanceSize) -> dict[str, Any]:
    view: dict[str, Any] = {
        "InstanceType": size.name,
        "CurrentGeneration": True,
        "SupportedUsageClasses": ["on-demand", "spot"],
        "BareMetal": False,
        "HibernationSupported": False,
        "VCpuInfo": {"DefaultVCpus": size.vcpus, "DefaultCores": size.vcpus // 2},
        "MemoryInfo": {"SizeInMiB": size.memory_mib},
        "InstanceStorageSupported": size.nvme_gb > 0,
    }
    if size.nvme_gb:
        view["InstanceStorageInfo"] = {"TotalSizeInGB": size.nvme_gb}
    if size.gpus:
        card = {
            "Name": size.gpu,
            "Manufacturer": "NVIDIA",
            "Count": size.gpus,
            "MemoryInfo": {"SizeInMiB": size.gpu_mib},
        }
        view["GpuInfo"] = {"Gpus": [card], "TotalGpuMemoryInMiB": size.gpus * size.gpu_mib}
    return view


def describe_images(world: World, call: ApiCall) -> dict[str, Any]:
    """`DescribeImages`, with their root disk."""
    parameters = call.parameters
    for id_ in parameters.get("ImageIds", []):
        if not id_.startswith("ami-"):
            raise AwsError("InvalidAMIID.Malformed", f'Invalid id: "{id_}" (expecting "ami-...")')
    rows = chosen(
        world.visible(world.images, call.region),
        parameters,
        "ImageIds",
        missing="InvalidAMIID.NotFound",
        words="image id",
    )
    owners = parameters.get("Owners")
    if owners:
        rows = [one for one in rows if one.owner_id in owners or "amazon" in owners]
    answer = page(filtered(rows, parameters, IMAGE_FIELDS), parameters, "Images")
    answer["Images"] = [
        {
            "ImageId": one.id,
            "Name": one.name,
            "OwnerId": one.owner_id,
            "ImageLocation": f"amazon/{one.name}",
            "ImageOwnerAlias": "amazon",
            "CreationDate": one.created,
            "State": one.state,
            "Public": True,
            "Architecture": "x86_64",
            "ImageType": "machine",
            "RootDeviceName": "/dev/sda1",
            "RootDeviceType": "ebs",
            "VirtualizationType": "hvm",
            "Hypervisor": "xen",
            "EnaSupport": True,
            "PlatformDetails": "Linux/UNIX",
            "UsageOperation": "RunInstances",
            "BlockDeviceMappings": [
                {
                    "DeviceName": "/dev/sda1",
                    "Ebs": {
                        "DeleteOnTermination": True,
                        "SnapshotId": one.snapshot_id,
                        "VolumeSize": one.size_gb,
                        "VolumeType": "gp3",
                        "Encrypted": False,
                    },
                },
                {"DeviceName": "/dev/sdb", "VirtualName": "ephemeral0"},
            ],
        }
        for one in answer["Images"]
    ]
    return answer


OPERATIONS = {
    "DescribeRegions": describe_regions,
    "DescribeAvailabilityZones": describe_availability_zones,
    "DescribeInstanceTypeOfferings": describe_instance_type_offerings,
    "DescribeInstanceTypes": describe_instance_types,
    "DescribeImages": describe_images,
}
