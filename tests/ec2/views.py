"""How machines, spot requests and disks look in the answers of EC2."""

from __future__ import annotations

from typing import Any

from ec2.listing import tag_list
from ec2.regions import REGIONS, SIZES
from ec2.resources import STATE_CODES, Instance, SpotRequest, Volume
from ec2.state import ACCOUNT
from ec2.world import World

STATUS_WORDS = {
    "fulfilled": "Your spot request is fulfilled.",
    "marked-for-stop": "Your Spot Instance has been marked for stopping.",
    "instance-stopped-by-user": "Your Spot Instance was stopped by user.",
    "instance-stopped-no-capacity": (
        "Your Spot Instance was stopped because there is no longer enough Spot capacity available."
    ),
    "instance-stopped-by-price": (
        "Your Spot Instance was stopped because the Spot price exceeded your maximum price."
    ),
    "instance-stopped-by-experiment": "Your Spot Instance was stopped by an experiment.",
}


def state_view(state: str) -> dict[str, Any]:
    """A state with its number."""
    return {"Code": STATE_CODES[state], "Name": state}


def instance_view(world: World, instance: Instance) -> dict[str, Any]:
    """A machine as `DescribeInstances` shows it."""
    group = [
        {"GroupId": one, "GroupName": world.groups[one].name}
        for one in instance.group_ids
        if one in world.groups
    ]
    view: dict[str, Any] = {
        "InstanceId": instance.id,
        "ImageId": instance.image_id,
        "State": state_view(instance.state),
        "PrivateDnsName": "",
        "PublicDnsName": "",
        "StateTransitionReason": instance.transition,
        "AmiLaunchIndex": 0,
        "ProductCodes": [],
        "InstanceType": instance.size,
        "LaunchTime": world.moment(instance.launch_s),
        "Placement": {
            "AvailabilityZone": instance.zone,
            "AvailabilityZoneId": REGIONS[instance.region].zones[instance.zone],
            "GroupName": "",
            "Tenancy": "default",
        },
        "Monitoring": {"State": "disabled"},
        "Architecture": "x86_64",
        "ClientToken": instance.parameters.get("ClientToken", ""),
        "EbsOptimized": bool(instance.parameters.get("EbsOptimized", False)),
        "EnaSupport": True,
        "Hypervisor": "xen",
        "RootDeviceName": "/dev/sda1",
        "RootDeviceType": "ebs",
        "VirtualizationType": "hvm",
        "CpuOptions": {"CoreCount": SIZES[instance.size].vcpus // 2, "ThreadsPerCore": 2},
        "HibernationOptions": {"Configured": False},
        "MetadataOptions": {"State": "applied", **instance.metadata_options},
        "EnclaveOptions": {"Enabled": False},
        "PlatformDetails": "Linux/UNIX",
        "UsageOperation": "RunInstances",
        "SecurityGroups": group,
        "BlockDeviceMappings": [],
        "NetworkInterfaces": [],
    }
    if instance.request_id:
        view |= {"InstanceLifecycle": "spot", "SpotInstanceRequestId": instance.request_id}
    if instance.tags:
        view["Tags"] = tag_list(instance.tags)
    if instance.reason_code:
        view["StateReason"] = {"Code": instance.reason_code, "Message": instance.reason_message}
    if instance.state in {"shutting-down", "terminated"}:
        return view
    return view | _attached(world, instance, group)


def _attached(world: World, instance: Instance, group: list[dict[str, str]]) -> dict[str, Any]:
    """The disk and the network of a machine that is not terminated."""
    volume, interface = world.volumes[instance.volume_id], world.interfaces[instance.interface_id]
    since = world.moment(instance.born_s)
    private_name = f"ip-{instance.private_ip.replace('.', '-')}.{instance.region}.compute.internal"
    network: dict[str, Any] = {
        "NetworkInterfaceId": interface.id,
        "SubnetId": interface.subnet_id,
        "VpcId": interface.vpc_id,
        "OwnerId": ACCOUNT,
        "Status": "in-use",
        "InterfaceType": "interface",
        "SourceDestCheck": True,
        "PrivateIpAddress": interface.private_ip,
        "PrivateDnsName": private_name,
        "Groups": group,
        "Attachment": {
            "AttachTime": since,
            "AttachmentId": interface.id.replace("eni-", "eni-attach-"),
            "DeleteOnTermination": True,
            "DeviceIndex": 0,
            "Status": "attached",
        },
    }
    public: dict[str, Any] = {}
    if instance.public_ip:
        name = f"ec2-{instance.public_ip.replace('.', '-')}.compute.amazonaws.com"
        public = {"PublicIpAddress": instance.public_ip, "PublicDnsName": name}
        network["Association"] = {
            "IpOwnerId": "amazon",
            "PublicIp": instance.public_ip,
            "PublicDnsName": name,
        }
    ebs = {
        "AttachTime": since,
        "DeleteOnTermination": volume.goes_with_instance,
        "Status": "attached",
        "VolumeId": volume.id,
    }
    return public | {
        "PrivateDnsName": private_name,
        "PrivateIpAddress": instance.private_ip,
        "SubnetId": instance.subnet_id,
        "VpcId": instance.vpc_id,
        "BlockDeviceMappings": [{"DeviceName": volume.device, "Ebs": ebs}],
        "NetworkInterfaces": [network],
    }


def request_view(world: World, request: SpotRequest) -> dict[str, Any]:
    """A spot request as `DescribeSpotInstanceRequests` shows it."""
    cap = request.cap if request.cap is not None else SIZES[request.size].on_demand_usd_per_h
    view: dict[str, Any] = {
        "SpotInstanceRequestId": request.id,
        "CreateTime": world.moment(request.born_s),
        "ProductDescription": "Linux/UNIX",
        "SpotPrice": f"{cap:.6f}",
        "State": request.state,
        "Status": {
            "Code": request.status,
            "Message": STATUS_WORDS.get(request.status, request.status.replace("-", " ")),
            "UpdateTime": world.moment(request.status_s),
        },
        "Type": request.type,
        "InstanceInterruptionBehavior": request.behavior,
        "LaunchSpecification": {
            "ImageId": request.parameters["ImageId"],
            "InstanceType": request.size,
            "Placement": {"AvailabilityZone": request.zone},
        },
    }
    if request.valid_until_s is not None:
        view["ValidUntil"] = world.moment(request.valid_until_s)
    if request.tags:
        view["Tags"] = tag_list(request.tags)
    if request.instance_id:
        view["InstanceId"] = request.instance_id
        view["LaunchedAvailabilityZone"] = request.zone
        view["LaunchedAvailabilityZoneId"] = REGIONS[request.region].zones[request.zone]
    return view


def volume_view(world: World, volume: Volume) -> dict[str, Any]:
    """A disk as `DescribeVolumes` shows it."""
    since = world.moment(volume.born_s)
    view: dict[str, Any] = {
        "VolumeId": volume.id,
        "Size": volume.size_gb,
        "SnapshotId": volume.snapshot_id,
        "AvailabilityZone": volume.zone,
        "State": "in-use" if volume.instance_id else "available",
        "CreateTime": since,
        "Encrypted": volume.encrypted,
        "VolumeType": volume.kind,
        "Iops": 3000,
        "Throughput": 125,
        "MultiAttachEnabled": False,
        "Attachments": [],
    }
    if volume.instance_id:
        attachment = {
            "AttachTime": since,
            "Device": volume.device,
            "InstanceId": volume.instance_id,
            "State": "attached",
            "VolumeId": volume.id,
            "DeleteOnTermination": volume.goes_with_instance,
        }
        view["Attachments"] = [attachment]
    return view | ({"Tags": tag_list(volume.tags)} if volume.tags else {})
