"""Reads Azure's public list of retail prices, which needs no account."""

from __future__ import annotations

import math
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from infra.renting.prices import Quote

RETAIL_VERSION = "2023-01-01-preview"
RETAIL_SOURCE = "retail prices api"
PAGES_MAX = 60

Fetch = Callable[[str], Any]
"""Get a URL and return its parsed JSON; raises `OSError` or `ValueError` if that fails."""


def retail_quotes(
    size: str, regions: Sequence[str], *, endpoint: str, fetch: Fetch, now: datetime
) -> dict[str, Quote]:
    """Quote one size in each region. Raises `OSError` or `ValueError`."""
    found = parse_retail(retail_items(retail_url(endpoint, size, regions), fetch), now=now)
    return {
        region: found.get((size.lower(), region)) or _not_sold(size, region, now)
        for region in regions
    }


def retail_url(endpoint: str, size: str, regions: Sequence[str]) -> str:
    """Build the address that lists one size's prices; the values are case-sensitive there."""
    places = " or ".join(f"armRegionName eq '{region}'" for region in regions)
    places = f"({places})" if len(regions) > 1 else places
    wanted = (
        f"serviceName eq 'Virtual Machines' and armSkuName eq '{size}' "
        f"and priceType eq 'Consumption' and {places}"
    )
    query = {"api-version": RETAIL_VERSION, "currencyCode": "USD", "$filter": wanted}
    return f"{endpoint}?{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}"


def retail_items(url: str, fetch: Fetch) -> list[Mapping[str, Any]]:
    """Fetch all items of a paged reply. Raises what `fetch` raises, `ValueError` for nonsense.

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
    """Read the Linux quotes in a retail reply, by (size in lower case, region).

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
    """The quote for what the list does not sell there."""
    return Quote(
        size=size,
        region=region,
        spot_usd_per_h=None,
        on_demand_usd_per_h=None,
        source=RETAIL_SOURCE,
        priced_at=now.isoformat(),
    )
