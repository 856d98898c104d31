"""Tries the requests that make a machine, with `DryRun`: EC2 checks them and makes nothing."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from infra.aws.context import AwsContext
from infra.aws.errors import DryRunPassedError
from infra.aws.image import ImageFinder
from infra.aws.naming import TAG_NAME_CHARS_MAX
from infra.aws.network import Subnet
from infra.aws.request import LaunchTarget, run_instances_body
from infra.aws.security_group import specify
from infra.catalog.aws import AWS
from infra.catalog.vendor import GpuSize
from infra.offer import Offer
from infra.provider import VmSpec
from infra.renting.tags import tags_of
from infra.timestamps import format_utc
from infra.untrusted import table, text

RUN_ID = "doctor"
HOUR_S = 3600.0


def try_renting(context: AwsContext, region: str, subnet: Subnet, size: GpuSize) -> None:
    """Try what renting a machine of that size asks of EC2. Says nothing of capacity.

    Raises what the request itself would, such as `NotAllowed` for a right that is missing.
    """
    for operation, parameters in _requests(context, region, subnet, size):
        try:
            context.clients.call(
                "ec2",
                region,
                operation,
                doing=f"try `{operation}`",
                once=True,
                DryRun=True,
                **parameters,
            )
        except DryRunPassedError:
            continue


def _requests(
    context: AwsContext, region: str, subnet: Subnet, size: GpuSize
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The requests that make something, each by its operation."""
    now_s = context.clock()
    spec = _spec(region, subnet, size, until_s=now_s + HOUR_S)
    tags = tags_of(
        spec,
        created_at=format_utc(now_s),
        idle_usd_per_h=0.0,
        name_chars_max=TAG_NAME_CHARS_MAX,
    )
    yield (
        "create_security_group",
        {
            "GroupName": f"qft-{RUN_ID}",
            "Description": "SSH from the computer that rented this machine",
            "VpcId": subnet.vpc,
            "TagSpecifications": [specify(tags, "security-group")],
        },
    )
    target = LaunchTarget(
        image=ImageFinder(context=context).find(region),
        subnet=subnet,
        group=_default_group(context, region, subnet),
    )
    yield "run_instances", run_instances_body(spec, target, tags=tags, token=secrets.token_hex(32))


def _default_group(context: AwsContext, region: str, subnet: Subnet) -> str:
    """The security group that every VPC has: a machine needs one, and none is made here."""
    answer = context.clients.call(
        "ec2",
        region,
        "describe_security_groups",
        doing="look for a security group",
        Filters=[
            {"Name": "vpc-id", "Values": [subnet.vpc]},
            {"Name": "group-name", "Values": ["default"]},
        ],
    )
    rows = answer.get("SecurityGroups") or [{}]
    return text(table(rows[0]).get("GroupId")) or ""


def _spec(region: str, subnet: Subnet, size: GpuSize, *, until_s: float) -> VmSpec:
    """A machine that nobody wants."""
    return VmSpec(
        run_id=RUN_ID,
        generation=1,
        offer=Offer(
            provider="aws",
            region=region,
            zone=subnet.zone,
            size=size.size,
            spot_usd_per_h=AWS.reference_spot(size),
        ),
        max_price_usd_per_h=max(size.on_demand_usd_per_h.values()),
        public_key="ssh-ed25519 AAAA",
        host_private_key="none",
        host_public_key="ssh-ed25519 AAAA",
        until_s=until_s,
    )
