"""Reads a machine of the seam from an instance and its tags; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from infra.aws.machine_view import tags_of_answer
from infra.aws.naming import MachineId, node_of_tags
from infra.aws.settings import AwsSettings
from infra.provider import Observation, PowerState, Vm
from infra.renting.tags import vm_from_tags
from infra.untrusted import table, text


def vm_from_instance(
    row: Mapping[str, Any], *, account: str, region: str, settings: AwsSettings
) -> Vm | None:
    """The machine that an instance's tags describe, not yet observed; None if it is not ours."""
    id_ = MachineId(account=account, region=region, instance=text(row.get("InstanceId")) or "")
    found = vm_from_tags(
        tags_of_answer(row),
        provider="aws",
        id_of=lambda _run, _generation: str(id_),
        default_idle_usd_per_h=0.0,
    )
    if found is None:
        return None
    return replace(
        found,
        region=region,
        node=node_of_tags(tags_of_answer(row)),
        size=text(row.get("InstanceType")) or found.size,
        zone=text(table(row.get("Placement")).get("AvailabilityZone")) or found.zone,
        port=settings.ssh_port,
        metadata_url=settings.metadata_url,
        metadata_api="aws",
        host_key_is_readable=True,  # by `ec2:DescribeInstanceAttribute`, and in the machine
        interruption_is_free=True,
        power=PowerState.CREATING,
    )


def as_seen(vm: Vm, seen: Observation) -> Vm:
    """The machine with the address and the power of a look at it."""
    return replace(
        vm,
        host=seen.host,
        port=seen.port,
        private_host=seen.private_host,
        power=seen.power,
        metadata_url=seen.metadata_url,
    )
