"""Builds the body of `RunInstances`, and compares what EC2 made with what was asked for; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.aws.image import Image
from infra.aws.network import Subnet
from infra.aws.security_group import specify
from infra.aws.user_data import user_data
from infra.catalog.aws import disk_usd_per_h
from infra.errors import BadRequest
from infra.provider import VmSpec
from infra.timestamps import format_utc
from infra.untrusted import table, text

CAP_USD_MIN = 0.001
"""EC2 refuses a cap that is not above it."""
CAP_STEP_USD = 1e-5
VALID_AFTER_LIMIT_S = 3600.0
"""How long after the limit EC2 may still restart a machine by itself: the request ends then."""
TAGGED = ("instance", "volume", "network-interface", "spot-instances-request")
"""What one request makes, and tags at birth."""


@dataclass(frozen=True, kw_only=True)
class LaunchTarget:
    """What the machine of a request is made from."""

    image: Image
    subnet: Subnet
    group: str
    """The id of its security group."""


def check_spec(spec: VmSpec) -> None:
    """Raise `BadRequest` at once for what EC2 would refuse late and at a cost."""
    if spec.offer.provider != "aws":
        raise BadRequest(f"an offer of `{spec.offer.provider}` cannot be rented from aws")
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", spec.user) or spec.user == "root":
        raise BadRequest(f"`{spec.user}` cannot be the user of a machine", hint="use `qft`")
    if "\n" in spec.public_key.strip() or not spec.public_key.strip():
        raise BadRequest("the user's public key is not one line of `authorized_keys`")
    max_price(spec)
    user_data(spec)


def max_price(spec: VmSpec) -> str | None:
    """The cap as EC2 takes it: USD per hour as text; None leaves it to EC2, which takes on demand.

    Raises `BadRequest` for a cap that EC2 refuses.
    """
    cap = spec.max_price_usd_per_h
    if cap is None:
        return None
    if not cap > CAP_USD_MIN or round(cap, 5) <= CAP_USD_MIN:
        raise BadRequest(f"a cap of {cap} USD/h rents nothing", hint="raise `vm.max_price`")
    return f"{cap:.5f}"


def disk_gb(spec: VmSpec, image: Image) -> int:
    """How big the disk becomes, in GiB: as asked for, or what the image needs if that is more."""
    return max(spec.disk_gb, image.size_gb)


def disk_note(spec: VmSpec, image: Image) -> str:
    """What to say of a disk that is bigger than asked for; empty if it is not."""
    made_gb = disk_gb(spec, image)
    if made_gb == spec.disk_gb:
        return ""
    return (
        f"the disk has {made_gb} GB instead of {spec.disk_gb}: the image `{image.id}` needs them"
        f" (about {idle_usd_per_h(spec, made_gb):.4f} USD/h while the machine is stopped)"
    )


def idle_usd_per_h(spec: VmSpec, size_gb: int) -> float:
    """What a stopped machine costs per hour: its disk, since its address is given back."""
    if spec.offer.idle_usd_per_h > 0 and spec.disk_gb > 0:
        return round(spec.offer.idle_usd_per_h * size_gb / spec.disk_gb, 6)
    return disk_usd_per_h(size_gb)


def run_instances_body(
    spec: VmSpec, target: LaunchTarget, *, tags: Mapping[str, str], token: str
) -> dict[str, Any]:
    """Build the parameters of `RunInstances` for one persistent spot machine; JSON-safe.

    The subnet is always named, so that the token counts for its zone. Interruptions stop the
    machine and keep its disk. No key pair, no instance profile: the only key is in the user data,
    and there are no credentials on the machine.
    """
    spot: dict[str, Any] = {
        "SpotInstanceType": "persistent",
        "InstanceInterruptionBehavior": "stop",
    }
    cap = max_price(spec)
    if cap is not None:
        spot["MaxPrice"] = cap
    if spec.until_s is not None:
        spot["ValidUntil"] = format_utc(spec.until_s + VALID_AFTER_LIMIT_S)
    return {
        "ClientToken": token,
        "MinCount": 1,
        "MaxCount": 1,
        "ImageId": target.image.id,
        "InstanceType": spec.offer.size,
        "InstanceMarketOptions": {"MarketType": "spot", "SpotOptions": spot},
        "InstanceInitiatedShutdownBehavior": "stop",
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,
        },
        "NetworkInterfaces": [
            {
                "DeviceIndex": 0,
                "SubnetId": target.subnet.id,
                "Groups": [target.group],
                "AssociatePublicIpAddress": True,
                "DeleteOnTermination": True,
            }
        ],
        "BlockDeviceMappings": [
            {
                "DeviceName": target.image.root_device,
                "Ebs": {
                    "VolumeSize": disk_gb(spec, target.image),
                    "VolumeType": "gp3",
                    "Encrypted": True,
                    "DeleteOnTermination": True,
                },
            }
        ],
        "UserData": user_data(spec),
        "TagSpecifications": [specify(tags, kind) for kind in TAGGED],
    }


def difference_from(
    instance: Mapping[str, Any], request: Mapping[str, Any] | None, spec: VmSpec
) -> str:
    """Why what EC2 describes is not the spot machine of `spec` under its cap; empty if it is.

    `request` is its spot request, None if EC2 does not show it yet.
    """
    lifecycle = text(instance.get("InstanceLifecycle")) or "on demand"
    size = text(instance.get("InstanceType")) or "unknown"
    zone = text(table(instance.get("Placement")).get("AvailabilityZone")) or "unknown"
    tokens = table(instance.get("MetadataOptions")).get("HttpTokens", "required")
    if lifecycle != "spot":
        return f"it is {lifecycle}, which is billed at the on-demand price"
    if size != spec.offer.size:
        return f"its size is {size} instead of {spec.offer.size}"
    if spec.offer.zone and zone != spec.offer.zone:
        return f"it is in the zone {zone} instead of {spec.offer.zone}"
    if tokens != "required":
        return "its metadata service answers without a token"
    return _request_difference(request, spec) if request is not None else ""


def _request_difference(request: Mapping[str, Any], spec: VmSpec) -> str:
    kind = text(request.get("Type")) or "unknown"
    behavior = text(request.get("InstanceInterruptionBehavior")) or "terminate"
    cap = text(request.get("SpotPrice")) or ""
    if kind != "persistent":
        return f"its spot request is {kind}, so that it could not be stopped and started"
    if behavior != "stop":
        return f"an interruption would {behavior} it, which loses the disk"
    wanted = max_price(spec)
    try:
        is_wanted = wanted is None or abs(float(cap) - float(wanted)) <= CAP_STEP_USD
    except ValueError:
        is_wanted = False
    return "" if is_wanted else f"its price cap is {cap or 'none'} instead of {wanted} USD/h"
