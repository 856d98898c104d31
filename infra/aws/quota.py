"""Reads how many vCPUs of spot machines an account may run in a region, and how many it runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.aws.errors import SPOT_QUOTA, SPOT_QUOTA_NAME, quota_page
from infra.catalog.aws import AWS
from infra.errors import OverQuota, Transient
from infra.untrusted import number, table, whole

if TYPE_CHECKING:
    from infra.aws.sdk import AwsClients

QUOTA_FAMILIES = ("g", "vt")
"""How the names of the sizes begin that share this quota."""
VCPUS_XLARGE = 4


@dataclass(frozen=True, kw_only=True)
class SpotQuota:
    """The quota of one region, in vCPUs of all G and VT sizes together."""

    region: str
    limit: int
    used: int
    """By what runs, starts, or is requested and open; what is stopped does not count."""

    @property
    def left(self) -> int:
        """The vCPUs that can still be rented."""
        return max(self.limit - self.used, 0)

    def shortage(self, vcpus: int, machines: int = 1) -> str:
        """Explain why so many machines of so many vCPUs are too much for it; empty if they fit."""
        needed = vcpus * machines
        if self.left >= needed:
            return ""
        fewer = f"admits {self.left // vcpus} of {machines} machines: it "
        admitted = fewer if machines > 1 else ""
        return (
            f"the spot quota of {self.region} {admitted}leaves {self.left} of {needed} vCPUs needed"
            f" ({self.used} of {self.limit} in use); ask for more at {quota_page(self.region)}"
        )


def read_quota(clients: AwsClients, region: str) -> SpotQuota:
    """Read the spot quota of a region and what is used of it.

    One request, and two more unless the limit is 0. Raises `ProviderError`.
    """
    doing = f"read the spot quota of {region}"
    answer = clients.call(
        "service-quotas",
        region,
        "get_service_quota",
        doing=doing,
        ServiceCode="ec2",
        QuotaCode=SPOT_QUOTA,
    )
    limit = number(table(answer.get("Quota")).get("Value"), most=1e9)
    if limit is None:
        raise Transient(f"cannot {doing}: the answer names no number")
    used = _used_vcpus(clients, region, doing) if limit >= 1 else 0
    return SpotQuota(region=region, limit=max(int(limit), 0), used=used)


def explained(error: OverQuota, quota: SpotQuota, vcpus: int) -> OverQuota:
    """Return a refusal for quota with the figures that AWS's own answer lacks.

    The refusal as it is, where they do not explain it.
    """
    shortage = quota.shortage(vcpus)
    if not shortage or error.family != SPOT_QUOTA_NAME:
        return error
    return OverQuota(
        f"{error}; {shortage}", family=error.family, limit=quota.limit, hint=error.hint
    )


def _used_vcpus(clients: AwsClients, region: str, doing: str) -> int:
    """Count the vCPUs of spot machines that run or start, and of requests that are open."""
    reservations = clients.pages(
        "ec2",
        region,
        "describe_instances",
        "Reservations",
        doing=doing,
        Filters=[
            {"Name": "instance-lifecycle", "Values": ["spot"]},
            {"Name": "instance-state-name", "Values": ["pending", "running"]},
        ],
    )
    machines = [table(one) for row in reservations for one in row.get("Instances") or []]
    requests = clients.pages(
        "ec2",
        region,
        "describe_spot_instance_requests",
        "SpotInstanceRequests",
        doing=doing,
        Filters=[{"Name": "state", "Values": ["open"]}],
    )
    wanted = [table(table(one).get("LaunchSpecification")) for one in requests]
    return sum(_vcpus(one) for one in (*machines, *wanted))


def _vcpus(row: Mapping[str, Any]) -> int:
    """The vCPUs that a machine or a request takes of the quota; 0 if it draws on another one."""
    size = str(row.get("InstanceType") or "").lower()
    if not size.startswith(QUOTA_FAMILIES):
        return 0
    options = table(row.get("CpuOptions"))
    counted = (whole(options.get("CoreCount")) or 0) * (whole(options.get("ThreadsPerCore")) or 0)
    listed = AWS.find(size)
    if counted or listed:
        return counted or (listed.vcpus if listed else 0)
    found = re.search(r"\.(\d*)xlarge", size)
    return VCPUS_XLARGE * int(found[1] or 1) if found else VCPUS_XLARGE
