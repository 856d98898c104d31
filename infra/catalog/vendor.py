"""The machine sizes that one vendor rents out, with dated reference prices; and how to search them.

Prices here are the fallback for when no price source answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from infra.catalog.gpus import Driver, ResolvedGpu, Substitute, resolve_gpu, several_cards
from infra.catalog.regions import RegionList


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
    """In the `spot_region` of its catalog on its `spot_date`; None if not known."""
    on_demand_usd_per_h: Mapping[str, float] = field(default_factory=dict)
    """By region, Linux, on the `on_demand_date` of its catalog."""

    @property
    def whole_card(self) -> bool:
        """Whether the machine has at least one whole card, not a slice."""
        return self.gpu_count >= 1


@dataclass(frozen=True, kw_only=True)
class VendorCatalog:
    """Sizes, regions and reference prices of one vendor."""

    provider: str
    sizes: tuple[GpuSize, ...]
    regions: tuple[str, ...]
    """In the order to try when the user names none."""
    region_list: RegionList
    """All that there are, and where each GPU has a price."""
    on_demand_date: str
    on_demand_source: str
    spot_date: str
    spot_region: str
    """Where the reference spot prices were seen."""
    spot_source: str
    spot_share: float
    """Spot price as a share of on demand where none was seen, rounded towards caution."""
    family_word: str = ""
    """What a refusal for quota contains if it is about one family of sizes, in lower case; empty
    where every quota is for all sizes of a region."""
    substitutes: Mapping[str, Substitute] = field(default_factory=dict)
    """What is rented in place of GPUs that this vendor does not have, by their names."""

    def resolve(self, gpu: str) -> ResolvedGpu:
        """Find what a GPU's name means to this vendor. Raises `UnknownGpu`."""
        return resolve_gpu(gpu, self.substitutes)

    @property
    def gpus(self) -> tuple[str, ...]:
        """The GPUs of which it rents out at least a whole card, in the order of its table."""
        return tuple(dict.fromkeys(one.gpu for one in self.sizes if one.whole_card))

    def gpu_problem(self, gpu: str, count: int = 1) -> str:
        """Return why so many of a GPU cannot be had in one machine of this vendor; empty if so.

        Any GPU will do if `gpu` is empty. Raises `UnknownGpu`.
        """
        wanted = self.resolve(gpu).gpu.name if gpu else ""
        vendor = self.region_list.vendor
        if not wanted or wanted in self.gpus:
            if self.with_cards(wanted, count):
                return ""
            cards = several_cards(wanted, count)
            most = int(max(one.gpu_count for one in self.matching(wanted)))
            return f"{vendor} rents out no machine with {cards}, only up to {most}"
        names = ", ".join(self.gpus)
        return f"{vendor} rents out no machine with one {wanted}; name one of {names}"

    def matching(self, gpu: str = "", *, whole_cards: bool = True) -> list[GpuSize]:
        """List sizes, cheapest first by reference price; all GPUs if `gpu` is empty.

        Slices of a card are left out unless `whole_cards` is false: 4 GB train nothing of interest.
        None for a GPU that this vendor does not have. Raises `UnknownGpu`.
        """
        wanted = self.resolve(gpu).gpu.name if gpu else ""
        found = [
            one
            for one in self.sizes
            if (not wanted or one.gpu == wanted) and (one.whole_card or not whole_cards)
        ]
        return sorted(found, key=lambda one: (min(one.on_demand_usd_per_h.values()), one.size))

    def with_cards(self, gpu: str = "", count: int = 1) -> list[GpuSize]:
        """List sizes with so many whole cards of a GPU, cheapest first by reference price.

        For several also those with more, behind an exact one of the same price: one with four may
        be all there is for two. For one card there are always exact ones. Raises `UnknownGpu`.
        """
        fit = [
            one
            for one in self.matching(gpu)
            if one.gpu_count == count or (one.gpu_count > count > 1)
        ]
        return sorted(fit, key=lambda one: (min(one.on_demand_usd_per_h.values()), one.gpu_count))

    def find(self, size: str) -> GpuSize | None:
        """Find a size by the vendor's name for it, ignoring case; None if it is not listed."""
        return next((one for one in self.sizes if one.size.lower() == size.lower()), None)

    def reference_spot(self, size: GpuSize) -> float:
        """The reference spot price of one size, USD per hour; guessed where none was seen."""
        if size.spot_usd_per_h is not None:
            return size.spot_usd_per_h
        return round(self.spot_share * min(size.on_demand_usd_per_h.values()), 4)

    def on_demand_max(self, *, gpu: str = "", gpu_count: int = 1, size: str = "") -> float:
        """The highest on-demand price of a size, or of those with so many of a GPU; 0 if unknown.

        It bounds the spot price of a machine without a cap. Raises `UnknownGpu`.
        """
        listed = self.find(size) if size else None
        some = ([listed] if listed else []) if size else self.with_cards(gpu, gpu_count)
        return max((max(one.on_demand_usd_per_h.values()) for one in some), default=0.0)

    def quota_covers(self, message: str, *, refused: str, size: str) -> bool:
        """Whether a refusal of `refused` for quota, in the vendor's words, covers `size`, too.

        The quota of a family is for its sizes only; every other one is for all of its region.
        """
        if not self.family_word or self.family_word not in message.lower():
            return True
        if size.lower() == refused.lower():
            return True
        listed = self.find(size)
        return listed is not None and folded(listed.quota_family) in folded(message)


def folded(quota_name: str) -> str:
    """A quota name as it can be compared: vendors differ in case and spaces within one account."""
    return quota_name.replace(" ", "").lower()
