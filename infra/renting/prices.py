"""Gives spot and on-demand prices with source and date; never waits long, never without one.

In order of preference: a fresh quote from disk, the vendor's price list, an older quote from disk,
the vendor's dated catalog. The quote says which it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from infra.catalog.vendor import VendorCatalog
from infra.durable import read_json, write_json
from infra.offer import Offer

CACHE_VERSION = 1
PRICES_FRESH_S = 900.0
"""How old the price of an offer, or of a running machine, may be."""


@dataclass(frozen=True, kw_only=True)
class Quote:
    """What one size costs in one region, USD per hour, Linux."""

    size: str
    region: str
    spot_usd_per_h: float | None
    """None if the size is not sold as spot there, or nobody knows."""
    on_demand_usd_per_h: float | None
    source: str
    priced_at: str
    """When this was true, ISO 8601 (UTC, or a bare date)."""


Ask = Callable[[str, Sequence[str]], Mapping[str, Quote]]
"""Size and regions in, a quote for each region out; raises `OSError` or `ValueError`."""


@dataclass(frozen=True, kw_only=True)
class PriceList:
    """The vendor's price list behind a cache on disk."""

    ask: Ask
    catalog: VendorCatalog
    cache: Path
    clock: Callable[[], float]
    """Seconds since 1970."""
    fresh_s: float = 3600.0
    """How old a quote may be before the list is asked again."""
    timeout_s: float = 5.0
    """After this long in all, what is left is answered from disk and catalog."""
    problems: list[str] = field(default_factory=list)
    """What went wrong, for people; a quote always comes back all the same."""

    def quotes(self, sizes: Sequence[str], regions: Sequence[str]) -> list[Quote]:
        """Quote each size in each region, in that order; writes the cache if anything is new."""
        quotes_by_place = self._cached()
        began_s = self.clock()
        learnt = False
        for size in sizes:
            if all(
                self._is_fresh(quotes_by_place.get((size.lower(), region))) for region in regions
            ):
                continue
            if self.clock() - began_s > self.timeout_s:
                self.problems.append(f"the price list took over {self.timeout_s:.0f} s")
                break
            try:
                found = self.ask(size, regions)
            except (OSError, ValueError) as error:
                self.problems.append(f"the price list did not answer: {error}")
                break
            quotes_by_place |= {(size.lower(), region): one for region, one in found.items()}
            learnt = True
        if learnt:
            self._remember(quotes_by_place.values())
        return [
            quotes_by_place.get((size.lower(), region)) or catalog_quote(self.catalog, size, region)
            for size in sizes
            for region in regions
        ]

    def _remember(self, quotes: Iterable[Quote]) -> None:
        """Write the cache; a disk that refuses costs the next look a request, not this one."""
        data = {"version": CACHE_VERSION, "quotes": [asdict(quote) for quote in quotes]}
        try:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.cache, data)
        except OSError as error:
            self.problems.append(f"the price cache cannot be written: {error}")

    def _is_fresh(self, quote: Quote | None) -> bool:
        """Whether a quote need not be asked for again."""
        return quote is not None and 0 <= age_s(quote, self.clock()) < self.fresh_s

    def _cached(self) -> dict[tuple[str, str], Quote]:
        """What is on disk; a file of another version or make is ignored, and written anew."""
        try:
            data = read_json(self.cache)
            if not isinstance(data, dict) or data.get("version") != CACHE_VERSION:
                return {}
            quotes = [Quote(**one) for one in data["quotes"]]
        except (ValueError, TypeError, KeyError) as error:
            self.problems.append(f"the price cache is unreadable and ignored: {error}")
            return {}
        return {(quote.size.lower(), quote.region): quote for quote in quotes}


@dataclass(frozen=True, kw_only=True)
class PriceMonitor:
    """The price of a running machine for observations every few seconds: asks the list seldom."""

    ask: Callable[..., float | None]
    """Size, region and `fresh_s` in, the price out; None if the list is silent."""
    clock: Callable[[], float]
    prices: dict[tuple[str, str], tuple[float, float | None]] = field(default_factory=dict)
    """By size and region: when the list was asked, and what it said."""

    def __call__(self, size: str, region: str) -> float | None:
        """The spot price, at most `PRICES_FRESH_S` old; None if the list was silent then."""
        at_s, price = self.prices.get((size, region), (-math.inf, None))
        if self.clock() - at_s >= PRICES_FRESH_S:
            price = self.ask(size, region, fresh_s=PRICES_FRESH_S)
            self.prices[size, region] = (self.clock(), price)
        return price


def age_s(quote: Quote, now: float) -> float:
    """How old a quote is at `now` (seconds since 1970)."""
    priced_at = datetime.fromisoformat(quote.priced_at)
    if priced_at.tzinfo is None:
        priced_at = priced_at.replace(tzinfo=UTC)
    return now - priced_at.timestamp()


def catalog_quote(catalog: VendorCatalog, size: str, region: str) -> Quote:
    """Quote from the catalog. Its spot price is that of one region, which its source names."""
    listed = catalog.find(size)
    spot = listed.spot_usd_per_h if listed else None
    on_demand = listed.on_demand_usd_per_h.get(region) if listed else None
    elsewhere = (
        f", {catalog.spot_region}" if spot is not None and region != catalog.spot_region else ""
    )
    date = catalog.spot_date if spot is not None else catalog.on_demand_date
    return Quote(
        size=size,
        region=region,
        spot_usd_per_h=spot,
        on_demand_usd_per_h=on_demand,
        source=f"catalog of {date}{elsewhere}",
        priced_at=date,
    )


def price_obstacle(price: float, cap: float | None) -> str:
    """Explain why a price, USD per hour, is above a cap; empty if it is not."""
    if cap is None or price <= cap:
        return ""
    return f"costs {price:.4f} USD/h now, above the cap of {cap:.4f}"


def free_first(offers: Iterable[Offer]) -> list[Offer]:
    """Sort offers so that blocked ones come last, in their own order otherwise."""
    return sorted(offers, key=lambda one: bool(one.blocked_by))
