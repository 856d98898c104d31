"""Says what of a run is left in a region, and what it costs; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.aws.inventory import Inventory
from infra.aws.machine_view import PENDING, RUNNING, state_of
from infra.untrusted import whole

GP3_USD_PER_GB_MONTH = 0.08
"""In us-east-1; other regions are up to a third dearer."""
HOURS_PER_MONTH = 730.0


def idle_usd_per_h(found: Inventory) -> float:
    """What the disks of an inventory cost per hour; groups and requests cost nothing."""
    size_gb = sum(whole(one.get("Size")) or 0 for one in found.volumes)
    return round(size_gb * GP3_USD_PER_GB_MONTH / HOURS_PER_MONTH, 6)


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
    price = size_gb * GP3_USD_PER_GB_MONTH / HOURS_PER_MONTH
    return f"disk `{volume.get('VolumeId')}` ({size_gb} GB, about {price:.4f} USD/h)"
