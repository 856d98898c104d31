"""Says what of a run is left in a region, and what it costs; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.aws.inventory import Inventory
from infra.aws.machine_view import PENDING, RUNNING, state_of
from infra.catalog.aws import disk_usd_per_h
from infra.untrusted import whole


def idle_usd_per_h(found: Inventory) -> float:
    """What the disks of an inventory cost per hour; groups and requests cost nothing."""
    size_gb = sum(whole(one.get("Size")) or 0 for one in found.volumes)
    return disk_usd_per_h(size_gb)


def describe(found: Inventory) -> str:
    """What is left, each thing with its price or its danger, in one line; empty if nothing is."""
    words = [
        *(
            _machine(one)
            for one in [*found.live_instances, *found.ending_instances, *found.untagged]
        ),
        *(
            f"spot request `{one.get('SpotInstanceRequestId')}` ({one.get('State')}: it may launch"
            " a machine)"
            for one in found.live_requests
        ),
        *(_volume(one) for one in found.volumes),
        *(f"security group `{one.get('GroupId')}` (free)" for one in found.groups),
    ]
    return ", ".join(words)


def _machine(instance: Mapping[str, Any]) -> str:
    state = state_of(instance)
    bills = "bills compute" if state in {PENDING, RUNNING} else "bills no compute"
    return f"machine `{instance.get('InstanceId')}` ({state}, {bills})"


def _volume(volume: Mapping[str, Any]) -> str:
    size_gb = whole(volume.get("Size")) or 0
    price = disk_usd_per_h(size_gb)
    return f"disk `{volume.get('VolumeId')}` ({size_gb} GB, about {price:.4f} USD/h)"
