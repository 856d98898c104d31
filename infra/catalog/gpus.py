"""The GPU sizes that qft trusts, with what must be known before renting one: dated, and sourced.

Prices here are the fallback for when no price source answers; `prices.py` has today's.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from infra.provider import BadRequest

ON_DEMAND_DATE = "2026-06-18"
ON_DEMAND_SOURCE = "public price lists collected by karpenter's Azure provider"
SPOT_DATE = "2026-09-21"
SPOT_REGION = "westus2"
SPOT_SOURCE = "Azure retail prices API"


class Driver(StrEnum):
    """Which kind of NVIDIA driver a size needs; the wrong kind fails with opaque errors."""

    DATACENTER = "datacenter"
    GRID = "grid"
    """The cloud's own vGPU driver, for sizes that rent out slices of a card."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One model of GPU."""

    name: str
    memory_gb: float
    """Of one whole card."""
    compute_capability: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class GpuSize:
    """One machine size of one vendor, fit for training on a single host."""

    provider: str
    size: str
    gpu: str
    gpu_count: float
    """Cards in the machine; a fraction for a slice of one."""
    gpu_memory_gb: float
    """Of all cards, or of the slice."""
    compute_capability: tuple[int, int]
    vcpus: int
    memory_gb: float
    local_disk_gb: int
    """Scratch disk that is lost on deallocation."""
    driver: Driver
    cuda_max: str = ""
    """Newest CUDA runtime that the size's driver admits, such as `12.8`; empty if not capped."""
    quota_family: str = ""
    """The vendor's name of the on-demand quota; compare with `folded`."""
    spot_quota: str = ""
    """The vendor's name of the quota that spot machines draw on."""
    hypervisor_generations: tuple[int, ...] = (1, 2)
    spot_usd_per_h: float | None = None
    """As seen in `SPOT_REGION` on `SPOT_DATE`; None if not known."""
    on_demand_usd_per_h: Mapping[str, float] = field(default_factory=dict)
    """By region, Linux, on `ON_DEMAND_DATE`."""

    @property
    def whole_card(self) -> bool:
        """Whether the machine has at least one whole card, not a slice."""
        return self.gpu_count >= 1


@dataclass(frozen=True, kw_only=True)
class ResolvedGpu:
    """What a GPU name means at a vendor."""

    gpu: Gpu
    note: str = ""
    """What to tell the user when it is not literally what was asked for."""


class UnknownGpu(BadRequest, ValueError):  # noqa: N818  (the seam's vocabulary)
    """No GPU of that name is in the catalog; the hint lists those that are.

    Also a `ValueError`, so that a config that names it is refused where it is read.
    """

    def __init__(self, name: str, *, candidates: list[str], known: list[str]) -> None:
        guess = " or ".join(f"`{one}`" for one in candidates)
        question = f": did you mean {guess}?" if guess else ""
        super().__init__(
            f"no GPU called `{name}` is in the catalog{question}",
            hint=f"known: {', '.join(known)}",
        )
        self.candidates = candidates


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="T4", memory_gb=16, compute_capability=(7, 5)),
        Gpu(name="A10", memory_gb=24, compute_capability=(8, 6)),
        Gpu(name="A100", memory_gb=80, compute_capability=(8, 0)),
        Gpu(name="H100", memory_gb=94, compute_capability=(9, 0)),
    )
}
_FOREIGN_NAMES = {
    "A10G": ("A10", "A10G is the name of a card that only AWS rents out; here it means the A10"),
    "TESLAT4": ("T4", ""),
    "A100-80GB": ("A100", ""),
    "A10080GB": ("A100", ""),
    "H100NVL": ("H100", ""),
}


def resolve_gpu(name: str) -> ResolvedGpu:
    """Find a GPU by any spelling of its name; raises `UnknownGpu` with candidates.

    `A10G`, asked of a vendor that has none, means the A10, and the note says so.
    """
    key = name.strip().upper().removeprefix("NVIDIA").replace("_", "-").replace(" ", "").strip("-")
    if key in GPUS:
        return ResolvedGpu(gpu=GPUS[key])
    if key in _FOREIGN_NAMES:
        ours, note = _FOREIGN_NAMES[key]
        return ResolvedGpu(gpu=GPUS[ours], note=note)
    candidates = difflib.get_close_matches(key, GPUS, n=3, cutoff=0.6)
    raise UnknownGpu(name, candidates=candidates, known=list(GPUS))


def sizes(*, provider: str = "azure", gpu: str = "", whole_cards: bool = True) -> list[GpuSize]:
    """List a vendor's sizes, cheapest first by reference price; all GPUs if `gpu` is empty.

    Slices of a card are left out unless `whole_cards` is false: 4 GB train nothing of interest.
    Raises `UnknownGpu`.
    """
    wanted = resolve_gpu(gpu).gpu.name if gpu else ""
    found = [
        one
        for one in SIZES
        if one.provider == provider
        and (not wanted or one.gpu == wanted)
        and (one.whole_card or not whole_cards)
    ]
    return sorted(found, key=lambda one: (min(one.on_demand_usd_per_h.values()), one.size))


def find_size(size: str, *, provider: str = "azure") -> GpuSize | None:
    """Find a size by the vendor's name for it, ignoring case; None if the catalog lacks it."""
    for one in SIZES:
        if one.provider == provider and one.size.lower() == size.lower():
            return one
    return None


def reference_spot_usd_per_h(gpu: str) -> float:
    """The reference spot price of the cheapest whole card of that name, USD per hour.

    Raises `UnknownGpu`.
    """
    return reference_spot_of(sizes(gpu=gpu)[0])


def reference_spot_of(size: GpuSize) -> float:
    """The reference spot price of one size, USD per hour.

    Where no spot price was seen, 30 % of the on-demand price: what the seen ones come to
    (T4 28 %, A10 18 %), rounded towards caution.
    """
    if size.spot_usd_per_h is not None:
        return size.spot_usd_per_h
    return round(0.3 * min(size.on_demand_usd_per_h.values()), 4)


def reference_on_demand_usd_per_h(gpu: str) -> float:
    """The lowest reference on-demand price of a whole card, USD per hour. Raises `UnknownGpu`."""
    return min(sizes(gpu=gpu)[0].on_demand_usd_per_h.values())


def on_demand_max_usd_per_h(*, gpu: str = "", size: str = "") -> float:
    """The highest reference on-demand price of a size, or of the sizes of a GPU; 0 if unknown.

    It bounds the spot price of a machine without a cap. Raises `UnknownGpu`.
    """
    known = find_size(size) if size else None
    some = ([known] if known else []) if size else sizes(gpu=gpu)
    return max((max(one.on_demand_usd_per_h.values()) for one in some), default=0.0)


def quota_covers(told: str, *, refused: str, size: str) -> bool:
    """Whether a lack of quota for one size, in the vendor's words, is one for another size, too.

    The pool of a family is for its sizes only; every other pool is for all sizes of its region.
    """
    if "family" not in told.lower() or size.lower() == refused.lower():
        return True
    known = find_size(size)
    return known is not None and folded(known.quota_family) in folded(told)


def folded(quota_name: str) -> str:
    """A quota name as it can be compared: vendors differ in case and spaces within one account."""
    return quota_name.replace(" ", "").lower()


def _azure(
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
        spot_quota="lowPriorityCores",
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
SIZES: tuple[GpuSize, ...] = (
    _azure("Standard_NC4as_T4_v3", ("T4", 1), (4, 28, 176), (0.526, 0.631, 0.658), 0.149174),
    _azure("Standard_NC8as_T4_v3", ("T4", 1), (8, 56, 352), (0.752, 0.902, 0.940), 0.213267),
    _azure("Standard_NC16as_T4_v3", ("T4", 1), (16, 110, 352), (1.204, 1.445, 1.505)),
    _azure("Standard_NC64as_T4_v3", ("T4", 4), (64, 440, 2816), (4.352, 5.222, 5.44)),
    _azure("Standard_NV6ads_A10_v5", ("A10", 1 / 6), (6, 55, 180), (0.454, None, None)),
    _azure("Standard_NV12ads_A10_v5", ("A10", 1 / 3), (12, 110, 360), (0.908, None, None)),
    _azure("Standard_NV18ads_A10_v5", ("A10", 1 / 2), (18, 220, 720), (1.60, None, None)),
    _azure("Standard_NV36ads_A10_v5", ("A10", 1), (36, 440, 1440), (3.20, 3.84, 4.16), 0.591360),
    _azure("Standard_NV72ads_A10_v5", ("A10", 2), (72, 880, 2880), (6.52, None, None)),
    _azure("Standard_NC24ads_A100_v4", ("A100", 1), (24, 220, 64), (3.673, 4.408, 4.775)),
    _azure("Standard_NC40ads_H100_v5", ("H100", 1), (40, 320, 3576), (6.98, 8.38, 9.08)),
)
REGIONS: Mapping[str, tuple[str, ...]] = {
    "azure": (
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
    ),
}
"""Regions that list a price for the T4, in the order to try when the user names none; a listed
price does not mean capacity."""
