"""Lists what could be rented now, best first: price, its age, band, quota, and what blocks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from infra.azure.availability import POOR, Availability
from infra.azure.context import AzureContext
from infra.azure.errors import QUOTA_PORTAL
from infra.azure.naming import idle_usd_per_h
from infra.azure.prices import retail_quotes
from infra.catalog.azure import AZURE, SPOT_QUOTA
from infra.catalog.vendor import GpuSize, folded
from infra.errors import NoCapacity, OverQuota, PriceAboveCap, ProviderError
from infra.offer import Offer, Want
from infra.renting.gather import Findings
from infra.renting.http import fetch_json
from infra.renting.prices import PRICES_FRESH_S, PriceList, Quote, free_first, price_obstacle
from infra.renting.refusal_cache import CachedRefusal, RefusalCache

RETAIL_PATH = "/api/retail/prices"
REFUSALS_TTL_S: Mapping[type[ProviderError], float] = {
    NoCapacity: 3600.0,  # karpenter backs off as long: what Azure lists as free often is not
    PriceAboveCap: 300.0,
    OverQuota: 3600.0,  # unless the usage list can be read: then it decides
}
ZONED_PLACES_MAX = 3
"""Of how many places the zones are offered: each costs a refusal of its own to find out."""


@dataclass(frozen=True, kw_only=True)
class Offers:
    """Offers of sizes in regions, with what could be learnt of each in a few seconds."""

    context: AzureContext
    availability: Availability
    refusal_cache: RefusalCache

    def list(self, want: Want) -> list[Offer]:
        """List machines with whole cards of `want.gpu`; creates nothing, waits seconds at most.

        Free offers come first. Named regions keep the user's order for each size; otherwise the
        cheapest comes first. Places that Azure scores as poor come behind, single zones last.
        """
        sizes_wanted = AZURE.with_cards(want.gpu, want.gpu_count)
        regions = places_of(want.regions) or [*AZURE.regions]
        quotes: list[Quote] = []
        prices = self.prices(fresh_s=PRICES_FRESH_S)
        names = [one.size for one in sizes_wanted]
        found = self.availability.gather(
            names, regions, also=lambda: quotes.extend(prices.quotes(names, regions))
        )
        table = {(one.size.lower(), one.region): one for one in list_of(quotes)}
        if not table:
            offline = replace(prices, ask=_refuse, fresh_s=float("inf"))
            table = {(one.size.lower(), one.region): one for one in offline.quotes(names, regions)}
        offers = [
            self._offer(size, region, table[size.size.lower(), region], want, found)
            for size in sizes_wanted
            for region in regions
        ]
        region_rank = {region: index for index, region in enumerate(regions)}
        size_rank = {one.size: index for index, one in enumerate(sizes_wanted)}
        if want.regions:
            offers.sort(key=lambda o: (size_rank[o.size], _is_poor(o), region_rank[o.region]))
        else:
            offers.sort(
                key=lambda o: (
                    _is_poor(o),
                    o.spot_usd_per_h,
                    o.gpu_count,
                    o.eviction_band,
                    region_rank[o.region],
                )
            )
        zonal = self._zonal(offers, found, want.max_price_usd_per_h)
        return free_first([*offers, *zonal])

    def _zonal(
        self, offers: Sequence[Offer], found: Findings, cap: float | None
    ) -> tuple[Offer, ...]:
        """Offer the zones of the first few places, to be tried when every region has refused.

        A machine without a zone and one in a zone are granted from different stocks.
        """
        affordable = [o for o in offers if not price_obstacle(o.spot_usd_per_h, cap)]
        places = [o for o in affordable if not o.blocked_by or o.clears]
        return tuple(
            self._in_zone(offer, zone, found)
            for offer in places[:ZONED_PLACES_MAX]
            for zone in found.zones.get(offer.region, {}).get(offer.size.lower(), [])
        )

    def _in_zone(self, offer: Offer, zone: str, found: Findings) -> Offer:
        """The same offer in one zone; a region's refusal for capacity says nothing about it."""
        past = self.refusal_cache.against(
            offer.size, offer.region, zone=zone, quota_is_listed=offer.region in found.quota
        )
        return replace(
            offer,
            zone=zone,
            blocked_by=past.detail if past else "",
            clears=past is not None and past.clears,
        )

    def prices(self, *, fresh_s: float) -> PriceList:
        """Open the vendor's price list, from disk if it is younger than `fresh_s`."""
        endpoint = self.context.settings.prices_endpoint
        self.context.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        url = endpoint if RETAIL_PATH in endpoint else f"{endpoint}{RETAIL_PATH}"

        def ask(size: str, regions: Sequence[str]) -> Mapping[str, Quote]:
            now = datetime.fromtimestamp(self.context.clock(), UTC)
            return retail_quotes(size, regions, endpoint=url, fetch=fetch_json, now=now)

        return PriceList(
            ask=ask,
            catalog=AZURE,
            cache=self.context.state_dir / "prices.json",
            clock=self.context.clock,
            fresh_s=fresh_s,
            timeout_s=self.context.settings.offers_wait_s,
        )

    def price_now(self, size: str, region: str, *, fresh_s: float = 60.0) -> float | None:
        """Get the spot price from the price list, at most that old; None if it does not answer."""
        prices = self.prices(fresh_s=fresh_s)
        (quote,) = prices.quotes([size], [region])
        return None if prices.problems else quote.spot_usd_per_h

    def _offer(
        self, size: GpuSize, region: str, quote: Quote, want: Want, found: Findings
    ) -> Offer:
        price = quote.spot_usd_per_h or AZURE.reference_spot(size)
        quota = found.quota.get(region, {}).get(folded(SPOT_QUOTA))
        left = None if quota is None else max(quota[1] - quota[0], 0) // size.vcpus
        offer = Offer(
            provider="azure",
            region=region,
            size=size.size,
            gpu=size.gpu,
            gpu_count=int(size.gpu_count),
            gpu_memory_gb=size.gpu_memory_gb,
            spot_usd_per_h=price,
            on_demand_usd_per_h=quote.on_demand_usd_per_h,
            idle_usd_per_h=idle_usd_per_h(want.disk_gb),
            eviction_band=found.bands.get((size.size.lower(), region), ""),
            placement_score=found.scores.get((size.size.lower(), region), ""),
            quota_left=left,
            price_source=quote.source,
            priced_at=quote.priced_at,
        )
        past = self.refusal_cache.against(size.size, region, quota_is_listed=quota is not None)
        listed = "catalog" not in quote.source
        unsold = quote.spot_usd_per_h is None and listed
        # Without the price list the catalog still says where a card is not sold at all.
        absent = "" if listed else AZURE.region_list.sale_problem(size.gpu, [region])
        stays = (
            found.restricted.get(region, {}).get(size.size.lower(), "")
            or ("the price list has no spot price for it there" if unsold else absent)
            or _quota_obstacle(size, region, quota, nodes=want.nodes)
            or (past.detail if past and not past.clears else "")
        )
        dear = price_obstacle(price, want.max_price_usd_per_h)
        return replace(
            offer,
            blocked_by=stays or dear or (past.detail if past else ""),
            clears=not stays and (bool(dear) or past is not None),
        )


def places_of(regions: Sequence[str]) -> list[str]:
    """Spell regions as Azure's codes, each once: the portal writes `West US 2` for `westus2`."""
    return [*dict.fromkeys(folded(one) for one in regions)]


def quota_covers(refusal: CachedRefusal, size: str, quota_is_listed: bool) -> bool:  # noqa: FBT001  (a callback)
    """Whether a refusal for quota still counts for a size of its region.

    The spot quota is one pool for a whole region, so its refusal counts for every size there;
    where the usage list could be read, that decides. It does not list other quotas.
    """
    if quota_is_listed and folded(SPOT_QUOTA) in folded(refusal.why):
        return False
    return AZURE.quota_covers(refusal.why, refused=refusal.size, size=size)


def _is_poor(offer: Offer) -> bool:
    return offer.placement_score in POOR


def _quota_obstacle(
    size: GpuSize, region: str, quota: tuple[int, int] | None, *, nodes: int
) -> str:
    if quota is None or quota[1] - quota[0] >= nodes * size.vcpus:
        return ""
    used, limit = quota
    admitted = max(limit - used, 0) // size.vcpus
    if nodes > 1 and admitted:
        return (
            f"spot quota ({SPOT_QUOTA}) of {region} admits {admitted} of the {nodes} machines that "
            f"the run needs: {used} of {limit} vCPUs used, {size.vcpus} needed for each; ask for "
            f"more at {QUOTA_PORTAL}"
        )
    return (
        f"spot quota ({SPOT_QUOTA}) of {region}: {used} of {limit} vCPUs used, {size.vcpus} needed;"
        f" ask for more at {QUOTA_PORTAL}"
    )


def _refuse(size: str, regions: Sequence[str]) -> Mapping[str, Quote]:
    raise OSError(f"the price of {size} in {len(regions)} regions is not asked for again")


def list_of(quotes: Sequence[Quote]) -> list[Quote]:
    """A copy taken in one step: a late answer may still be adding to the original."""
    return [*quotes]
