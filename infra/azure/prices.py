"""Spot and on-demand quotes, each with its source and date; never waits long, never without one.

In order of preference: a fresh quote from disk, the vendor's price list, an older quote from disk,
the dated table of `gpus.py`. The quote says which it is.
"""

from __future__ import annotations

import math
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.catalog.azure import AZURE
from infra.durable import read_json, write_json

RETAIL_ENDPOINT = "https://prices.azure.com/api/retail/prices"
RETAIL_VERSION = "2023-01-01-preview"
RETAIL_SOURCE = "retail prices api"
PAGES_MAX = 60
CACHE_VERSION = 1

Fetch = Callable[[str], Any]
"""Get a URL and return its parsed JSON; raises `OSError` or `ValueError` if that fails."""


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


@dataclass(frozen=True, kw_only=True)
class PriceList:
    """The vendor's price list behind a cache on disk."""

    fetch: Fetch
    cache: Path
    clock: Callable[[], float]
    """Seconds since 1970."""
    endpoint: str = RETAIL_ENDPOINT
    fresh_s: float = 3600.0
    """How old a quote may be before the list is asked again."""
    timeout_s: float = 5.0
    """After this long in all, what is left is answered from disk and catalog."""
    problems: list[str] = field(default_factory=list)
    """What went wrong, for people; a quote always comes back all the same."""

    def quotes(self, sizes: Sequence[str], regions: Sequence[str]) -> list[Quote]:
        """One quote for each size in each region, in that order. Writes the cache if it learnt."""
        quotes_by_place = self._cached()
        began = self.clock()
        learnt = False
        for size in sizes:
            if all(
                self._is_fresh(quotes_by_place.get((size.lower(), region))) for region in regions
            ):
                continue
            if self.clock() - began > self.timeout_s:
                self.problems.append(f"the price list took over {self.timeout_s:.0f} s")
                break
            try:
                items = retail_items(retail_url(self.endpoint, size, regions), self.fetch)
            except (OSError, ValueError) as error:
                self.problems.append(f"the price list did not answer: {error}")
                break
            now = datetime.fromtimestamp(self.clock(), UTC)
            found = parse_retail(items, now=now)
            for region in regions:
                key = (size.lower(), region)
                quotes_by_place[key] = found.get(key) or _not_sold(size, region, now)
            learnt = True
        if learnt:
            self._remember(quotes_by_place.values())
        return [
            quotes_by_place.get((size.lower(), region)) or catalog_quote(size, region)
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


def age_s(quote: Quote, now: float) -> float:
    """How old a quote is at `now` (seconds since 1970)."""
    priced_at = datetime.fromisoformat(quote.priced_at)
    if priced_at.tzinfo is None:
        priced_at = priced_at.replace(tzinfo=UTC)
    return now - priced_at.timestamp()


def catalog_quote(size: str, region: str) -> Quote:
    """The quote of last resort. Its spot price is that of one region, which its source names."""
    listed = AZURE.find(size)
    spot = listed.spot_usd_per_h if listed else None
    on_demand = listed.on_demand_usd_per_h.get(region) if listed else None
    elsewhere = f", {AZURE.spot_region}" if spot is not None and region != AZURE.spot_region else ""
    date = AZURE.spot_date if spot is not None else AZURE.on_demand_date
    return Quote(
        size=size,
        region=region,
        spot_usd_per_h=spot,
        on_demand_usd_per_h=on_demand,
        source=f"catalog of {date}{elsewhere}",
        priced_at=date,
    )


def retail_url(endpoint: str, size: str, regions: Sequence[str]) -> str:
    """The address that lists one size's prices; the values are case-sensitive there."""
    places = " or ".join(f"armRegionName eq '{region}'" for region in regions)
    places = f"({places})" if len(regions) > 1 else places
    wanted = (
        f"serviceName eq 'Virtual Machines' and armSkuName eq '{size}' "
        f"and priceType eq 'Consumption' and {places}"
    )
    query = {"api-version": RETAIL_VERSION, "currencyCode": "USD", "$filter": wanted}
    return f"{endpoint}?{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}"


def retail_items(url: str, fetch: Fetch) -> list[Mapping[str, Any]]:
    """All items of a paged reply. Raises what `fetch` raises, and `ValueError` for nonsense.

    A next page on another host is refused: the reply must not be able to send us elsewhere.
    """
    items: list[Mapping[str, Any]] = []
    home = urllib.parse.urlsplit(url).netloc.lower().removesuffix(":443")
    for _ in range(PAGES_MAX):
        reply = fetch(url)
        if not isinstance(reply, dict) or not isinstance(reply.get("Items"), list):
            raise ValueError("the reply has no list of items")  # noqa: TRY004  (a wrong value)
        items.extend(item for item in reply["Items"] if isinstance(item, dict))
        url = reply.get("NextPageLink") or ""
        if not url:
            return items
        if urllib.parse.urlsplit(url).netloc.lower().removesuffix(":443") != home:
            raise ValueError(f"the next page is on another host: {url}")
    raise ValueError(f"the reply does not end after {PAGES_MAX} pages")


def parse_retail(
    items: Iterable[Mapping[str, Any]], *, now: datetime
) -> dict[tuple[str, str], Quote]:
    """The Linux quotes in a retail reply, by (size in lower case, region).

    Left out: Windows, the retired low-priority meters, reservations, and prices that begin after
    `now`. Of several prices for one thing the newest holds.
    """
    newest: dict[tuple[str, str, bool], tuple[str, float, str]] = {}
    for item in items:
        size, region = str(item.get("armSkuName", "")), str(item.get("armRegionName", ""))
        price, begins = item.get("retailPrice"), str(item.get("effectiveStartDate", ""))
        if not size or not region or not isinstance(price, int | float):
            continue
        if not 0 < price < math.inf:
            continue
        if not _is_linux_by_the_hour(item) or _begins_after(begins, now):
            continue
        is_spot = str(item.get("skuName", "")).endswith(" Spot")
        key = (size.lower(), region, is_spot)
        newest[key] = max(newest.get(key, ("", 0.0, "")), (begins, float(price), size))
    quotes = {}
    for size, region in {(size, region) for size, region, _ in newest}:
        spot, on_demand = newest.get((size, region, True)), newest.get((size, region, False))
        name = (spot or on_demand or ("", 0.0, size))[2]
        quotes[size, region] = Quote(
            size=name,
            region=region,
            spot_usd_per_h=spot[1] if spot else None,
            on_demand_usd_per_h=on_demand[1] if on_demand else None,
            source=RETAIL_SOURCE,
            priced_at=now.isoformat(),
        )
    return quotes


def _is_linux_by_the_hour(item: Mapping[str, Any]) -> bool:
    """Whether a retail item prices a plain Linux machine in US dollars by the hour."""
    product = str(item.get("productName", ""))
    return (
        item.get("type", "Consumption") == "Consumption"
        and item.get("currencyCode", "USD") == "USD"
        and item.get("unitOfMeasure", "1 Hour") == "1 Hour"
        and not product.endswith(" Windows")
        and not product.replace(" ", "").endswith("CloudServices")
        and not str(item.get("meterName", "")).endswith(" Low Priority")
    )


def _begins_after(begins: str, now: datetime) -> bool:
    """Whether a price is only announced; a date that cannot be read counts as begun."""
    try:
        moment = datetime.fromisoformat(begins)
    except ValueError:
        return False
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) > now


def _not_sold(size: str, region: str, now: datetime) -> Quote:
    """The list answered, and does not sell this there."""
    return Quote(
        size=size,
        region=region,
        spot_usd_per_h=None,
        on_demand_usd_per_h=None,
        source=RETAIL_SOURCE,
        priced_at=now.isoformat(),
    )
