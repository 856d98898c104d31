"""The GPU sizes of AWS, with quota names, regions and reference prices, all dated.

A quota is for the vCPUs of all G and VT sizes together, one for each region. Not listed: sizes of
the P families, which have 8 cards each and quotas of their own, and bare metal.
"""

from __future__ import annotations

from infra.catalog import aws_regions
from infra.catalog.gpus import GPUS, Driver, Substitute
from infra.catalog.regions import RegionList
from infra.catalog.vendor import GpuSize, VendorCatalog

SPOT_QUOTA = "All G and VT Spot Instance Requests"
"""The quota on which all spot machines of a region draw, as Service Quotas calls it."""
ON_DEMAND_QUOTA = "Running On-Demand G and VT instances"
ON_DEMAND_REGION = "us-east-1"
"""Where the prices of the table are true; other regions are up to twice as dear."""

GP3_USD_PER_GB_MONTH = 0.08
HOURS_PER_MONTH = 730
ADDRESS_USD_PER_H = 0.005
"""What a public IPv4 address costs while the machine runs; nothing while it is stopped."""


def disk_usd_per_h(size_gb: float) -> float:
    """What a gp3 disk of that size costs, USD per hour, whether its machine runs or not.

    In us-east-1, 2026-07; other regions are up to a third dearer.
    """
    return round(size_gb * GP3_USD_PER_GB_MONTH / HOURS_PER_MONTH, 6)


def _size(
    size: str,
    card: tuple[str, int],
    machine: tuple[int, float, int],
    on_demand_usd_per_h: float,
) -> GpuSize:
    """One row of AWS's table.

    `card` is the GPU and how many; `machine` is vCPUs, memory in GiB, local disk in GB.
    """
    gpu, gpu_count = card
    vcpus, memory_gb, local_disk_gb = machine
    return GpuSize(
        provider="aws",
        size=size,
        gpu=gpu,
        gpu_count=gpu_count,
        gpu_memory_gb=GPUS[gpu].memory_gb * gpu_count,
        compute_capability=GPUS[gpu].compute_capability,
        vcpus=vcpus,
        memory_gb=memory_gb,
        local_disk_gb=local_disk_gb,
        driver=Driver.DATACENTER,
        quota_family=ON_DEMAND_QUOTA,
        spot_quota=SPOT_QUOTA,
        on_demand_usd_per_h={ON_DEMAND_REGION: on_demand_usd_per_h},
    )


SIZES = (
    _size("g4dn.xlarge", ("T4", 1), (4, 16, 125), 0.526),
    _size("g4dn.2xlarge", ("T4", 1), (8, 32, 225), 0.752),
    _size("g4dn.4xlarge", ("T4", 1), (16, 64, 225), 1.204),
    _size("g4dn.8xlarge", ("T4", 1), (32, 128, 900), 2.176),
    _size("g4dn.12xlarge", ("T4", 4), (48, 192, 900), 3.912),
    _size("g4dn.16xlarge", ("T4", 1), (64, 256, 900), 4.352),
    _size("g5.xlarge", ("A10G", 1), (4, 16, 250), 1.006),
    _size("g5.2xlarge", ("A10G", 1), (8, 32, 450), 1.212),
    _size("g5.4xlarge", ("A10G", 1), (16, 64, 600), 1.624),
    _size("g5.8xlarge", ("A10G", 1), (32, 128, 900), 2.448),
    _size("g5.12xlarge", ("A10G", 4), (48, 192, 3800), 5.672),
    _size("g5.16xlarge", ("A10G", 1), (64, 256, 1900), 4.096),
    _size("g5.24xlarge", ("A10G", 4), (96, 384, 3800), 8.144),
    _size("g5.48xlarge", ("A10G", 8), (192, 768, 7600), 16.288),
    _size("g6.xlarge", ("L4", 1), (4, 16, 250), 0.8048),
    _size("g6.2xlarge", ("L4", 1), (8, 32, 450), 0.9776),
    _size("g6.4xlarge", ("L4", 1), (16, 64, 600), 1.3232),
    _size("g6.8xlarge", ("L4", 1), (32, 128, 900), 2.0144),
    _size("g6.12xlarge", ("L4", 4), (48, 192, 3760), 4.6016),
    _size("g6.16xlarge", ("L4", 1), (64, 256, 1880), 3.3968),
    _size("g6.24xlarge", ("L4", 4), (96, 384, 3760), 6.6752),
    _size("g6.48xlarge", ("L4", 8), (192, 768, 7520), 13.3504),
)
REGIONS = (
    "us-east-1",
    "us-east-2",
    "us-west-2",
    "ca-central-1",
    "eu-west-1",
    "eu-north-1",
    "eu-central-1",
    "eu-west-3",
    "eu-west-2",
    "ap-south-1",
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-southeast-2",
    "sa-east-1",
)
"""Regions that sell the T4 and the A10G, and that every account has enabled, in the order to try
when the user names none; that they are sold does not mean capacity."""

AWS = VendorCatalog(
    provider="aws",
    sizes=SIZES,
    regions=REGIONS,
    region_list=RegionList(
        vendor="AWS",
        regions=aws_regions.PUBLIC_REGIONS,
        by_gpu=aws_regions.GPU_REGIONS,
        date=aws_regions.DATE,
    ),
    substitutes={
        "A10": Substitute(
            gpu="A10G",
            note="AWS rents out no A10; here it means the A10G, of the same memory and age",
        )
    },
    on_demand_date="2026-07-20",
    on_demand_source="public price lists collected by karpenter's AWS provider",
    spot_date="2026-07-20",
    spot_region=ON_DEMAND_REGION,
    spot_source="half of on demand",
    spot_share=0.5,  # the ones seen by AWS's advisor in 2025: 28-49 %
)
