"""The GPU sizes of Azure, with drivers, quota names, regions and reference prices, all dated."""

from __future__ import annotations

from infra.catalog import azure_regions
from infra.catalog.gpus import GPUS, Driver, Substitute
from infra.catalog.regions import RegionList
from infra.catalog.vendor import GpuSize, VendorCatalog

SPOT_QUOTA = "lowPriorityCores"
"""The quota on which all spot machines of a region draw, as the usage list calls it."""


def _size(
    size: str,
    card: tuple[str, float],
    machine: tuple[int, float, int],
    prices: tuple[float, float | None, float | None],
    spot: float | None = None,
) -> GpuSize:
    """One row of Azure's table.

    `card` is the GPU and how many; `machine` is vCPUs, memory in GiB, local disk in GB; `prices`
    are those of eastus, southcentralus, westeurope.
    """
    gpu, gpu_count = card
    family, driver, cuda_max, generations = _AZURE_FAMILIES[gpu]
    regions = ("eastus", "southcentralus", "westeurope")
    vcpus, memory_gb, local_disk_gb = machine
    return GpuSize(
        provider="azure",
        size=size,
        gpu=gpu,
        gpu_count=gpu_count,
        gpu_memory_gb=GPUS[gpu].memory_gb * gpu_count,
        compute_capability=GPUS[gpu].compute_capability,
        vcpus=vcpus,
        memory_gb=memory_gb,
        local_disk_gb=local_disk_gb,
        driver=driver,
        cuda_max=cuda_max,
        quota_family=family,
        spot_quota=SPOT_QUOTA,
        hypervisor_generations=generations,
        spot_usd_per_h=spot,
        on_demand_usd_per_h={
            region: price
            for region, price in zip(regions, prices, strict=True)
            if price is not None
        },
    )


# A10_v5 hosts are held at driver branch R570, which ends at CUDA 12.8: wheels for CUDA 13 do not
# run there. The others take the ordinary driver of their image.
_AZURE_FAMILIES: dict[str, tuple[str, Driver, str, tuple[int, ...]]] = {
    "T4": ("Standard NCASv3_T4 Family", Driver.DATACENTER, "", (1, 2)),
    "A10": ("StandardNVADSA10v5Family", Driver.GRID, "12.8", (1, 2)),
    "A100": ("StandardNCADSA100v4Family", Driver.DATACENTER, "", (2,)),
    "H100": ("StandardNCadsH100v5Family", Driver.DATACENTER, "", (2,)),
}
SIZES = (
    _size("Standard_NC4as_T4_v3", ("T4", 1), (4, 28, 176), (0.526, 0.631, 0.658), 0.149174),
    _size("Standard_NC8as_T4_v3", ("T4", 1), (8, 56, 352), (0.752, 0.902, 0.940), 0.213267),
    _size("Standard_NC16as_T4_v3", ("T4", 1), (16, 110, 352), (1.204, 1.445, 1.505)),
    _size("Standard_NC64as_T4_v3", ("T4", 4), (64, 440, 2816), (4.352, 5.222, 5.44)),
    _size("Standard_NV6ads_A10_v5", ("A10", 1 / 6), (6, 55, 180), (0.454, None, None)),
    _size("Standard_NV12ads_A10_v5", ("A10", 1 / 3), (12, 110, 360), (0.908, None, None)),
    _size("Standard_NV18ads_A10_v5", ("A10", 1 / 2), (18, 220, 720), (1.60, None, None)),
    _size("Standard_NV36ads_A10_v5", ("A10", 1), (36, 440, 1440), (3.20, 3.84, 4.16), 0.591360),
    _size("Standard_NV72ads_A10_v5", ("A10", 2), (72, 880, 2880), (6.52, 7.824, 8.476)),
    _size("Standard_NC24ads_A100_v4", ("A100", 1), (24, 220, 64), (3.673, 4.408, 4.775)),
    _size("Standard_NC48ads_A100_v4", ("A100", 2), (48, 440, 128), (7.346, 8.815, 9.55)),
    _size("Standard_NC96ads_A100_v4", ("A100", 4), (96, 880, 256), (14.692, 17.63, 19.1)),
    _size("Standard_NC40ads_H100_v5", ("H100", 1), (40, 320, 3576), (6.98, 8.38, 9.08)),
    _size("Standard_NC80adis_H100_v5", ("H100", 2), (80, 640, 7152), (13.96, 16.76, 18.16)),
)
REGIONS = (
    "westus2",
    "eastus",
    "southcentralus",
    "eastus2",
    "westus3",
    "northeurope",
    "westeurope",
    "swedencentral",
    "uksouth",
    "francecentral",
    "germanywestcentral",
    "japaneast",
    "koreacentral",
    "centralindia",
    "australiaeast",
)
"""Regions that list a price for the T4, in the order to try when the user names none; a listed
price does not mean capacity."""

AZURE = VendorCatalog(
    provider="azure",
    sizes=SIZES,
    regions=REGIONS,
    region_list=RegionList(
        vendor="Azure",
        regions=azure_regions.PUBLIC_REGIONS,
        by_gpu=azure_regions.GPU_REGIONS,
        date=azure_regions.DATE,
    ),
    on_demand_date="2026-06-18",
    on_demand_source="public price lists collected by karpenter's Azure provider",
    spot_date="2026-09-21",
    spot_region="westus2",
    spot_source="Azure retail prices API",
    spot_share=0.3,  # the ones seen: T4 28 %, A10 18 %
    family_word="family",
    substitutes={
        "A10G": Substitute(
            gpu="A10",
            note="A10G is the name of a card that only AWS rents out; here it means the A10",
        )
    },
)
