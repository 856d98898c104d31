"""What can be rented: the question that a run asks its providers, and the offers that answer it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from infra.catalog.gpus import several_cards


@dataclass(frozen=True, kw_only=True)
class Want:
    """What the user asked for: the question that `offers` answers."""

    gpu: str = ""
    """A name from the catalog (`T4`, `A10`, …); empty means any."""
    gpus: Sequence[str] = field(default=(), repr=False)
    """Names of which any will do, where more than one is named; `gpu` is empty then."""
    gpu_count: int = field(default=1, repr=False)
    """How many whole cards the machine is to have at least; exactly one, if one."""
    nodes: int = field(default=1, repr=False)
    """How many such machines the run cannot do without: an offer whose quota admits fewer is listed
    as blocked."""
    regions: Sequence[str] = ()
    """In order of preference; empty means the provider's own default order."""
    max_price_usd_per_h: float | None = None
    """The hard cap per hour; an offer above it is listed as blocked."""
    disk_gb: int = 128
    """How big the disk is to be: it bills even while nothing else does."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One way to rent a machine now."""

    provider: str
    region: str
    size: str
    zone: str = ""
    gpu: str = ""
    gpu_count: int = 1
    """Whole cards in the machine; price and memory are those of all of them."""
    gpu_memory_gb: float = 0.0
    """Of all its cards together."""
    spot_usd_per_h: float
    """Of the whole machine."""
    on_demand_usd_per_h: float | None = None
    idle_usd_per_h: float = 0.0
    """What disk and address cost per hour while the machine is deallocated."""
    address_usd_per_h: float = 0.0
    """What the address costs per hour beside that, where it bills only while the machine runs."""
    eviction_band: str = ""
    """Evictions as the vendor publishes them, percent of machines such as `0-5`; empty if unknown.
    """
    eviction_period: str = "hour"
    """The time that the band is about: `hour`, or `month` where the vendor counts by months."""
    placement_score: str = ""
    """The vendor's guess of being granted such a machine now, in its words; empty if unknown."""
    quota_left: int | None = None
    """How many machines of this size the spot quota still admits; None if it cannot be read."""
    price_source: str = ""
    """Where the price comes from, such as `retail prices api` or `catalog of 2026-09-21`."""
    priced_at: str = ""
    """When that price was true, ISO 8601 UTC."""
    blocked_by: str = ""
    """Why this offer cannot be taken now (quota, price above cap, restriction); empty if it can."""
    clears: bool = False
    """Whether what blocks it passes by itself, as a lack of capacity or a high price does."""

    @property
    def beside_compute_usd_per_h(self) -> float:
        """What disk and address cost per hour while the machine runs."""
        return self.idle_usd_per_h + self.address_usd_per_h

    @property
    def running_usd_per_h(self) -> float:
        """What a machine costs per hour in all while it runs."""
        return self.spot_usd_per_h + self.beside_compute_usd_per_h

    @property
    def place(self) -> str:
        """Where it is, for people: `region`, or `region/zone`."""
        return f"{self.region}/{self.zone}" if self.zone else self.region

    @property
    def cards(self) -> str:
        """Its cards where it has several, for people: `4 × T4`; empty for one."""
        return several_cards(self.gpu, self.gpu_count)

    @property
    def machine(self) -> str:
        """Its size for people, with the cards where it has several."""
        return f"{self.size} ({self.cards})" if self.cards else self.size

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `from_json`; what only several cards have is left out for one."""
        values = asdict(self)
        if self.gpu_count == 1:
            del values["gpu_count"]
        return values

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Offer:
        """Rebuild an offer that `asdict` wrote; unknown keys of later versions are ignored."""
        return cls(**{one.name: data[one.name] for one in fields(cls) if one.name in data})
