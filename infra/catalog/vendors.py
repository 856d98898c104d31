"""Every vendor's catalog by the name of its provider, and what is asked of all of them."""

from __future__ import annotations

from collections.abc import Mapping

from infra.catalog.aws import AWS
from infra.catalog.azure import AZURE
from infra.catalog.gpus import ResolvedGpu, resolve_gpu
from infra.catalog.vendor import GpuSize, VendorCatalog

CATALOGS: Mapping[str, VendorCatalog] = {one.provider: one for one in (AZURE, AWS)}


def resolve_gpu_at(provider: str, gpu: str) -> ResolvedGpu:
    """Find what a GPU's name means to a provider: a vendor without that card has a substitute.

    Without a catalog, as on this computer, the name means itself. Raises `UnknownGpu`.
    """
    catalog = CATALOGS.get(provider)
    return catalog.resolve(gpu) if catalog else resolve_gpu(gpu)


def find_size(size: str, *, provider: str) -> GpuSize | None:
    """Find a provider's size by its name, ignoring case; None if no catalog lists it."""
    catalog = CATALOGS.get(provider)
    return catalog.find(size) if catalog else None


def quota_covers(message: str, *, provider: str, refused: str, size: str) -> bool:
    """Whether a provider's refusal of one size for quota covers another; yes without a catalog."""
    catalog = CATALOGS.get(provider)
    return catalog is None or catalog.quota_covers(message, refused=refused, size=size)


def cheapest_size(gpu: str) -> tuple[VendorCatalog, GpuSize]:
    """The size with a whole card of that name and the lowest reference spot price of any vendor.

    Raises `UnknownGpu`.
    """
    wanted = resolve_gpu(gpu).gpu.name  # itself: no vendor's substitute
    found = [
        (one.reference_spot(size), one.provider, size)
        for one in CATALOGS.values()
        for size in one.matching(wanted)[:1]
        if size.gpu == wanted
    ]
    _, provider, size = min(found, key=lambda row: row[:2])
    return CATALOGS[provider], size


def reference_spot_usd_per_h(gpu: str) -> float:
    """The reference spot price of the cheapest whole card of that name. Raises `UnknownGpu`."""
    catalog, size = cheapest_size(gpu)
    return catalog.reference_spot(size)


def reference_on_demand_usd_per_h(gpu: str) -> float:
    """The lowest reference on-demand price of that size, USD per hour. Raises `UnknownGpu`."""
    return min(cheapest_size(gpu)[1].on_demand_usd_per_h.values())
