"""Lists what could be rented now, zone by zone: price, interruption rate, quota, obstacles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from infra.aws.advisor import Advisor
from infra.aws.availability import Availability, AwsFindings
from infra.aws.context import AwsContext
from infra.aws.errors import SPOT_QUOTA_NAME
from infra.aws.offerings import Offerings
from infra.aws.prices import HISTORY_SOURCE, SpotPrices
from infra.catalog.aws import ADDRESS_USD_PER_H, AWS, ON_DEMAND_REGION, disk_usd_per_h
from infra.catalog.vendor import GpuSize
from infra.errors import ProviderError
from infra.offer import Offer, Want
from infra.renting.eviction_rate import MONTH
from infra.renting.prices import free_first, price_obstacle
from infra.renting.refusal_cache import CachedRefusal, RefusalCache


@dataclass(frozen=True)
class Place:
    """One zone as a place for one size; without a zone where nobody could say which there are."""

    size: GpuSize
    region: str
    zone: str


@dataclass(frozen=True, kw_only=True)
class Offers:
    """Offers of sizes in zones, with what could be learnt of each in a few seconds."""

    context: AwsContext
    refusal_cache: RefusalCache
    met: list[ProviderError] = field(default_factory=list)
    """Why the account could not be asked, as of the last list; empty if it could."""

    def list(self, want: Want) -> list[Offer]:
        """List machines with whole cards of `want.gpu`; creates nothing, waits seconds at most.

        Each zone is a place of its own, with its price and its capacity. Free offers come first.
        Named regions keep the user's order for each size; otherwise the cheapest comes first.
        """
        sizes = AWS.with_cards(want.gpu, want.gpu_count)
        regions = regions_of(want.regions) or [*AWS.regions]
        existing = [one for one in regions if one in AWS.region_list.regions]
        found = self._availability.gather([one.size for one in sizes], existing)
        self.met[:] = [found.error] if found.error else []
        offers = [self._offer(place, want, found) for place in _places(sizes, regions, found)]
        region_rank = {region: index for index, region in enumerate(regions)}
        size_rank = {one.size: index for index, one in enumerate(sizes)}
        if want.regions:
            offers.sort(
                key=lambda o: (size_rank[o.size], region_rank[o.region], o.spot_usd_per_h, o.zone)
            )
        else:
            offers.sort(
                key=lambda o: (o.spot_usd_per_h, o.gpu_count, region_rank[o.region], o.zone)
            )
        return free_first(offers)

    def price_now(self, size: str, region: str, zone: str) -> float | None:
        """The spot price, USD per hour, at most 15 minutes old; None if nobody answers."""
        return self._prices.now(size, region, zone)

    def account_problem(self) -> ProviderError | None:
        """Return why the account could not be asked by the last list; asks nothing."""
        return self.met[0] if self.met else None

    def _offer(self, place: Place, want: Want, found: AwsFindings) -> Offer:
        size, region = place.size, place.region
        price, source, priced_at = _price(place, found)
        quota = found.vcpus.get(region)
        past = self.refusal_cache.against(
            size.size, region, zone=place.zone, quota_is_listed=quota is not None
        )
        stays = (
            _never(place, found)
            or (quota.shortage(size.vcpus, want.nodes) if quota else "")
            or (past.detail if past and not past.clears else "")
        )
        dear = price_obstacle(price, want.max_price_usd_per_h)
        return Offer(
            provider="aws",
            region=region,
            zone=place.zone,
            size=size.size,
            gpu=size.gpu,
            gpu_count=int(size.gpu_count),
            gpu_memory_gb=size.gpu_memory_gb,
            spot_usd_per_h=price,
            on_demand_usd_per_h=size.on_demand_usd_per_h.get(region),
            idle_usd_per_h=disk_usd_per_h(want.disk_gb),
            address_usd_per_h=ADDRESS_USD_PER_H,
            eviction_band=found.bands.get((size.size, region), ""),
            eviction_period=MONTH,
            quota_left=quota.left // size.vcpus if quota else None,
            price_source=source,
            priced_at=priced_at,
            blocked_by=stays or dear or (past.detail if past else ""),
            clears=not stays and (bool(dear) or past is not None),
        )

    @cached_property
    def _prices(self) -> SpotPrices:
        return SpotPrices(context=self.context)

    @cached_property
    def _availability(self) -> Availability:
        return Availability(
            context=self.context,
            prices=self._prices,
            offerings=Offerings(context=self.context),
            advisor=Advisor(context=self.context),
        )


def regions_of(names: Sequence[str]) -> list[str]:
    """Spell regions as AWS's codes, each once."""
    return [*dict.fromkeys(AWS.region_list.code(one) for one in names)]


def quota_covers(refusal: CachedRefusal, size: str, quota_is_listed: bool) -> bool:  # noqa: FBT001  (a callback)
    """Whether a refusal for quota still counts for a size of its region.

    All G and VT sizes of a region share the spot quota; where it could be read, that decides. Other
    limits, such as that on volumes, are not read.
    """
    if quota_is_listed and SPOT_QUOTA_NAME in refusal.why:
        return False
    return AWS.quota_covers(refusal.why, refused=refusal.size, size=size)


def _places(
    sizes: Sequence[GpuSize], regions: Sequence[str], found: AwsFindings
) -> Iterator[Place]:
    """Each zone of each region for each size; the region alone where no zone is on record."""
    for size in sizes:
        for region in regions:
            zones = found.zones.get(region, {}).get(size.size, [])
            if not zones and region in found.prices:
                zones = found.prices[region].zones(size.size)
            for zone in zones or [""]:
                yield Place(size, region, zone)


def _price(place: Place, found: AwsFindings) -> tuple[float, str, str]:
    """The spot price in a place, where it comes from, and when it was true."""
    history = found.prices.get(place.region)
    price = history.price(place.size.size, place.zone) if history else None
    if history is not None and price is not None:
        return price, HISTORY_SOURCE, history.priced_at
    elsewhere = f", {ON_DEMAND_REGION}" if place.region != ON_DEMAND_REGION else ""
    source = f"half of on demand, catalog of {AWS.on_demand_date}{elsewhere}"
    return AWS.reference_spot(place.size), source, AWS.on_demand_date


def _never(place: Place, found: AwsFindings) -> str:
    """Why a size cannot be had in a place on any day, as far as was learnt; empty if it can."""
    size, region = place.size.size, place.region
    if unknown := AWS.region_list.name_problem(region):
        return unknown
    if region in found.not_enabled:
        return found.not_enabled[region]
    if region in found.zones:
        if not found.zones[region].get(size):
            return f"no zone of {region} rents out a {size}"
    elif region not in found.prices:
        return AWS.region_list.sale_problem(place.size.gpu, [region])
    history = found.prices.get(region)
    if history is not None and history.price(size, place.zone) is None:
        where = place.zone or region
        return f"EC2 has no spot price for a {size} in {where}"
    return ""
