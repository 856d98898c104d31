"""The calls of EC2 that make and show machines."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ec2.access import is_denied
from ec2.launching import (
    groups_of,
    in_default_subnet,
    make_instance,
    make_request,
    root_disk,
    subnet_of,
)
from ec2.listing import Fields, chosen, filtered, page
from ec2.regions import SIZES
from ec2.replies import ApiCall, AwsError
from ec2.resources import Instance, SpotRequest
from ec2.run_rules import check_run
from ec2.spot_lifecycle import evaluate, spot_vcpus, watch_expiry
from ec2.state import ACCOUNT
from ec2.views import instance_view
from ec2.world import World

FIELDS: Fields = {
    "instance-id": lambda one: [one.id],
    "instance-state-name": lambda one: [one.state],
    "instance-type": lambda one: [one.size],
    "instance-lifecycle": lambda one: ["spot"] if one.request_id else [],
    "spot-instance-request-id": lambda one: [one.request_id] if one.request_id else [],
    "client-token": lambda one: [one.parameters.get("ClientToken", "")],
    "availability-zone": lambda one: [one.zone],
    "subnet-id": lambda one: [one.subnet_id],
    "vpc-id": lambda one: [one.vpc_id],
    "image-id": lambda one: [one.image_id],
    "instance.group-id": lambda one: one.group_ids,
    "reservation-id": lambda one: [one.reservation_id],
    "ip-address": lambda one: [one.public_ip] if one.public_ip else [],
    "state-reason-code": lambda one: [one.reason_code] if one.reason_code else [],
}


def run_instances(world: World, call: ApiCall) -> dict[str, Any]:
    """`RunInstances`: one machine, on demand or with a spot request."""
    wanted = dict(call.parameters)
    check_run(wanted, now_s=world.now())
    is_dry = wanted.pop("DryRun", False)
    fingerprint = _fingerprint(wanted)
    is_zonal = bool(subnet_of(wanted))
    parameters = wanted if is_zonal else in_default_subnet(world, call.region, wanted)
    zone = _zone(world, call.region, parameters)
    token = (call.region, zone if is_zonal else "", parameters.get("ClientToken", ""))
    if token in world.tokens and not is_dry:
        return _again(world, token, fingerprint)
    _check_parts(world, call.region, zone, parameters)
    if is_dry:
        raise dry_run()
    instance = _launch(world, call.region, zone, parameters)
    if token[2]:
        world.tokens[token] = fingerprint, instance.id
    return _reservation(world, instance)


def _again(world: World, token: tuple[str, str, str], fingerprint: str) -> dict[str, Any]:
    """What a token answers that was sent before."""
    before, instance_id = world.tokens[token]
    if before != fingerprint:
        raise AwsError(
            "IdempotentParameterMismatch",
            "Arguments on this idempotent request are inconsistent with arguments used in previous "
            "request(s).",
        )
    instance = world.instances.get(instance_id)
    if instance is None or instance.state in {"shutting-down", "terminated"}:
        raise AwsError(
            "IdempotentInstanceTerminated",
            f"The instance {instance_id} that this idempotency token launched is terminated.",
        )
    return _reservation(world, instance)


def _launch(world: World, region: str, zone: str, parameters: dict[str, Any]) -> Instance:
    size = parameters["InstanceType"]
    market = world.market
    if parameters.get("InstanceMarketOptions", {}).get("MarketType") != "spot":
        _check_on_demand(world, region, size)
        market.check_room(size, zone)
        return make_instance(world, parameters, request=None)
    _make_spot_role(world)
    market.check_quota(size, region, spot_vcpus(world, region))
    options = parameters["InstanceMarketOptions"].get("SpotOptions", {})
    cap = float(options["MaxPrice"]) if options.get("MaxPrice") else None
    try:
        market.check_price(size, zone, cap)
        market.check_room(size, zone)
    except AwsError as error:
        if world.leaves_requests and options.get("SpotInstanceType") == "persistent":
            _leave_open(world, region, zone, parameters, error)
        raise
    request = make_request(world, region, zone, parameters)
    watch_expiry(world, request)
    return make_instance(world, parameters, request=request)


def _make_spot_role(world: World) -> None:
    """An account's first spot machine makes the service-linked role, if the caller may."""
    if world.has_spot_role:
        return
    if is_denied(world, "iam:CreateServiceLinkedRole"):
        raise AwsError(
            "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
            "The provided credentials do not have permission to create the service-linked role "
            "for EC2 Spot Instances.",
            status=403,
        )
    world.has_spot_role = True


def _leave_open(
    world: World, region: str, zone: str, parameters: dict[str, Any], error: AwsError
) -> SpotRequest:
    """The request of a refused launch stays behind, and may be fulfilled later."""
    request = make_request(world, region, zone, parameters)
    price = error.code == "SpotMaxPriceTooLow"
    world.set_status(request, "open", "price-too-low" if price else "capacity-not-available")
    watch_expiry(world, request)
    world.after(world.timing.relaunch_s, lambda: evaluate(world, request))
    return request


def _check_on_demand(world: World, region: str, size: str) -> None:
    limit = world.market.quota(region, "L-DB2E81BA") or 0.0
    if size.startswith("g") and SIZES[size].vcpus > limit:
        raise AwsError(
            "VcpuLimitExceeded",
            f"You have requested more vCPU capacity than your current vCPU limit of {limit:.0f} "
            "allows for the instance bucket that the specified instance type belongs to. Please "
            "visit http://aws.amazon.com/contact-us/ec2-request to request an adjustment to this "
            "limit.",
        )


def _zone(world: World, region: str, parameters: dict[str, Any]) -> str:
    """The zone of the subnet that a request names; it must not name another one."""
    subnet_id = subnet_of(parameters)
    subnet = world.need(world.subnets, subnet_id, region, "InvalidSubnetID.NotFound", "subnet ID")
    wanted = parameters.get("Placement", {}).get("AvailabilityZone")
    if wanted and wanted != subnet.zone:
        message = f"The subnet '{subnet_id}' is in {subnet.zone}, not in {wanted}."
        raise AwsError("InvalidParameterCombination", message)
    return subnet.zone


def _check_parts(world: World, region: str, zone: str, parameters: dict[str, Any]) -> None:
    """Refuse an image, a size, a group or a disk that cannot be had there."""
    image_id = parameters["ImageId"]
    image = world.images.get(image_id)
    if image is None or image.region != region:
        message = f"The image id '[{image_id}]' does not exist"
        raise AwsError("InvalidAMIID.NotFound", message)
    if image.state != "available":
        raise AwsError("InvalidAMIID.Unavailable", f"The image ID '{image_id}' is not available")
    if parameters.get("InstanceType") not in SIZES:
        message = f"Invalid value '{parameters.get('InstanceType')}' for InstanceType."
        raise AwsError("InvalidParameterValue", message)
    vpc_id = world.subnets[subnet_of(parameters)].vpc_id
    for group_id in groups_of(parameters):
        missing = "InvalidGroup.NotFound"
        group = world.need(world.groups, group_id, region, missing, "security group")
        if group.vpc_id != vpc_id:
            message = f"Security group {group_id} and the subnet belong to different networks."
            raise AwsError("InvalidParameter", message)
    size_gb = root_disk(parameters, image)["VolumeSize"]
    if size_gb < image.size_gb:
        raise AwsError(
            "InvalidBlockDeviceMapping",
            f"Volume of size {size_gb}GB is smaller than snapshot '{image.snapshot_id}', expect "
            f"size>= {image.size_gb}GB",
        )
    if parameters.get("KeyName"):
        message = f"The key pair '{parameters['KeyName']}' does not exist"
        raise AwsError("InvalidKeyPair.NotFound", message)
    if world.pending_verification:
        raise AwsError(
            "PendingVerification",
            "Your request for accessing resources in this region is being validated, and you will "
            "not be able to launch additional resources in this region until the validation is "
            "complete.",
        )
    world.market.check_sold(parameters["InstanceType"], zone)


def _fingerprint(parameters: dict[str, Any]) -> str:
    text = json.dumps(parameters, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def dry_run() -> AwsError:
    """What a request answers that would have been carried out."""
    message = "Request would have succeeded, but DryRun flag is set."
    return AwsError("DryRunOperation", message, status=412)


def _reservation(world: World, instance: Instance) -> dict[str, Any]:
    return {
        "ReservationId": instance.reservation_id,
        "OwnerId": ACCOUNT,
        "Groups": [],
        "Instances": [instance_view(world, instance)],
    }


def describe_instances(world: World, call: ApiCall) -> dict[str, Any]:
    """`DescribeInstances`: every machine is alone in its reservation."""
    for id_ in call.parameters.get("InstanceIds", []):
        if not id_.startswith("i-"):
            raise AwsError("InvalidInstanceID.Malformed", f'Invalid id: "{id_}"')
    rows = chosen(
        world.visible(world.instances, call.region),
        call.parameters,
        "InstanceIds",
        missing="InvalidInstanceID.NotFound",
        words="instance ID",
    )
    found = filtered(rows, call.parameters, FIELDS)
    answer = page(found, call.parameters, "Reservations")
    answer["Reservations"] = [_reservation(world, one) for one in answer["Reservations"]]
    return answer


def describe_instance_attribute(world: World, call: ApiCall) -> dict[str, Any]:
    """`DescribeInstanceAttribute`: user data and how a shutdown inside ends."""
    instance = world.instance(call.parameters["InstanceId"], call.region)
    attribute = call.parameters["Attribute"]
    usual = {
        "userData": ("UserData", instance.user_data),
        "instanceType": ("InstanceType", instance.size),
        "rootDeviceName": ("RootDeviceName", "/dev/sda1"),
        "instanceInitiatedShutdownBehavior": (
            "InstanceInitiatedShutdownBehavior",
            instance.parameters.get("InstanceInitiatedShutdownBehavior", "stop"),
        ),
    }
    if attribute not in usual:
        raise AwsError("UnsupportedOperation", f"The attribute {attribute} is not simulated")
    name, value = usual[attribute]
    return {"InstanceId": instance.id, name: {"Value": value} if value else {}}


OPERATIONS = {
    "RunInstances": run_instances,
    "DescribeInstances": describe_instances,
    "DescribeInstanceAttribute": describe_instance_attribute,
}
