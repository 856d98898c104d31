"""Quotes are read from Azure's price list as it really answers, and never missing for long."""

from __future__ import annotations

import urllib.parse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.azure.prices import Fetch, parse_retail, retail_items, retail_quotes, retail_url
from infra.catalog.azure import AZURE
from infra.renting.prices import PriceList, Quote, age_s

NOW = datetime(2026, 11, 22, 7, 0, tzinfo=UTC)
T4 = "Standard_NC4as_T4_v3"


def item(price: float, **changes: Any) -> dict[str, Any]:
    """One item as the list shows it: Linux, on demand, begun long ago."""
    return {
        "currencyCode": "USD",
        "retailPrice": price,
        "unitPrice": price,
        "armRegionName": "eastus",
        "effectiveStartDate": "2025-01-01T00:00:00Z",
        "meterName": "NC4as T4 v3",
        "productName": "Virtual Machines NCasT4 v3 Series",
        "skuName": "NC4as T4 v3",
        "serviceName": "Virtual Machines",
        "unitOfMeasure": "1 Hour",
        "type": "Consumption",
        "armSkuName": T4,
    } | changes


SPOT = {"skuName": "NC4as T4 v3 Spot", "meterName": "NC4as T4 v3 Spot"}


class Server:
    """A price list of given pages that counts who asks."""

    def __init__(self, *pages: list[dict[str, Any]]) -> None:
        self.pages = pages
        self.urls: list[str] = []

    def fetch(self, url: str) -> dict[str, Any]:
        """Answer with the page that the address names."""
        self.urls.append(url)
        page = int(dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query)).get("page", "0"))
        following = f"https://prices.test:443/x?page={page + 1}"
        more = page + 1 < len(self.pages)
        return {"Items": self.pages[page], "NextPageLink": following if more else None}


def price_list(tmp_path: Path, fetch: Fetch, **changes: Any) -> PriceList:
    """A price list over a fake server at a fixed time."""

    def ask(size: str, regions: Sequence[str]) -> dict[str, Quote]:
        now = datetime.fromtimestamp(made.clock(), UTC)
        return retail_quotes(size, regions, endpoint="https://prices.test/x", fetch=fetch, now=now)

    settings: dict[str, Any] = {
        "ask": ask,
        "catalog": AZURE,
        "cache": tmp_path / "prices.json",
        "clock": NOW.timestamp,
    }
    made = PriceList(**(settings | changes))
    return made


def refuse(url: str) -> Any:
    """A network that is down."""
    raise ConnectionRefusedError(f"no route to {url}")


def test_spot_and_on_demand_are_distinguished() -> None:
    """A name ending in ` Spot` is the spot price, the other the on-demand price."""
    quotes = parse_retail([item(0.526), item(0.149, **SPOT)], now=NOW)

    quote = quotes[T4.lower(), "eastus"]
    assert (quote.spot_usd_per_h, quote.on_demand_usd_per_h) == (0.149, 0.526)
    assert (quote.size, quote.source, quote.priced_at) == (
        T4,
        "retail prices api",
        NOW.isoformat(),
    )


@pytest.mark.parametrize(
    "other",
    [
        item(0.01, productName="Virtual Machines NCasT4 v3 Series Windows"),
        item(0.01, productName="Virtual Machines NCasT4 v3 Series CloudServices"),
        item(0.01, skuName="NC4as T4 v3 Low Priority", meterName="NC4as T4 v3 Low Priority"),
        item(0.01, type="Reservation"),
        item(0.01, effectiveStartDate="2024-06-01T00:00:00Z"),
        item(0.01, effectiveStartDate="2027-01-01T00:00:00Z"),
        item(0.01, unitOfMeasure="1 Month"),
        item(0.01, currencyCode="EUR"),
        item(0.0),
        item(float("nan")),
        item(float("inf")),
        {"armSkuName": T4},
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_is_not_the_price_is_left_out(other: dict[str, Any], *, first: bool) -> None:
    """Neither its order nor its cheapness makes another item the price of a Linux machine."""
    items = [other, item(0.526)] if first else [item(0.526), other]

    assert parse_retail(items, now=NOW)[T4.lower(), "eastus"].on_demand_usd_per_h == 0.526


@given(
    st.permutations(
        [
            item(0.526),
            item(0.6, effectiveStartDate="2024-01-01T00:00:00Z"),
            item(0.149, **SPOT),
            item(0.2, effectiveStartDate="2024-01-01T00:00:00Z", **SPOT),
            item(0.9, productName="Virtual Machines NCasT4 v3 Series Windows"),
            item(0.658, armRegionName="westeurope"),
        ]
    )
)
def test_order_of_items_does_not_matter(items: list[dict[str, Any]]) -> None:
    """However the list is ordered, the quotes are the same."""
    quotes = parse_retail(items, now=NOW)

    prices = {key[1]: (one.spot_usd_per_h, one.on_demand_usd_per_h) for key, one in quotes.items()}
    assert prices == {"eastus": (0.149, 0.526), "westeurope": (None, 0.658)}


JUNK: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
)


@given(JUNK)
def test_nonsense_never_breaks_the_good(junk: Any) -> None:
    """An item with nonsense in any one place is left out or read, and spoils no other item."""
    good = item(0.526, armRegionName="westus2")
    odd = [item(1.0) | {key: junk} for key in item(1.0)]

    quotes = parse_retail([*odd, good], now=NOW)

    assert quotes[T4.lower(), "westus2"].on_demand_usd_per_h == 0.526


@given(JUNK | st.builds(lambda x: {"Items": x}, st.none() | st.text() | st.integers()))
def test_reply_without_items_is_refused(junk: Any) -> None:
    """What is no list of items is a `ValueError`, which the catalog then stands in for."""
    with pytest.raises(ValueError, match="no list"):
        retail_items("https://prices.test/x", lambda _: junk)


def test_all_pages_are_read() -> None:
    """Items of every page come back in order."""
    server = Server([item(1.0)], [item(2.0)], [item(3.0)])

    items = retail_items("https://prices.test/x", server.fetch)

    assert [one["retailPrice"] for one in items] == [1.0, 2.0, 3.0]


def test_reply_cannot_send_us_elsewhere() -> None:
    """A next page on another host is refused."""
    with pytest.raises(ValueError, match="another host"):
        retail_items(
            "https://prices.test/x", lambda _: {"Items": [], "NextPageLink": "https://evil.test/"}
        )


def test_endless_reply_ends() -> None:
    """A reply whose pages never end is refused after a bounded number of requests."""
    url = "https://prices.test/x"

    with pytest.raises(ValueError, match="does not end"):
        retail_items(url, lambda _: {"Items": [], "NextPageLink": url})


def test_address_asks_for_exactly_the_size_and_regions() -> None:
    """The filter names size and regions with their case, and survives URL encoding."""
    url = retail_url("https://prices.test/x", T4, ["eastus", "westus2"])

    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query))
    assert query["$filter"] == (
        f"serviceName eq 'Virtual Machines' and armSkuName eq '{T4}' and priceType eq "
        "'Consumption' and (armRegionName eq 'eastus' or armRegionName eq 'westus2')"
    )
    assert " " not in url
    alone = urllib.parse.unquote(retail_url("https://prices.test/x", T4, ["eastus"]))
    assert alone.endswith("and priceType eq 'Consumption' and armRegionName eq 'eastus'")


def test_fresh_quotes_come_from_disk(tmp_path: Path) -> None:
    """A second look within the hour asks nobody, also from another process."""
    server = Server([item(0.526), item(0.149, **SPOT)])
    first = price_list(tmp_path, server.fetch).quotes([T4], ["eastus"])

    second = price_list(tmp_path, refuse).quotes([T4], ["eastus"])

    assert second == first
    assert len(server.urls) == 1


def test_old_quotes_serve_when_the_list_is_down(tmp_path: Path) -> None:
    """A quote from yesterday with its date beats none, and the problem is told."""
    server = Server([item(0.149, **SPOT)])
    price_list(tmp_path, server.fetch).quotes([T4], ["eastus"])
    tomorrow = NOW.timestamp() + 86400

    prices = price_list(tmp_path, refuse, clock=lambda: tomorrow)
    (quote,) = prices.quotes([T4], ["eastus"])

    assert (quote.spot_usd_per_h, age_s(quote, tomorrow)) == (0.149, 86400)
    assert len(prices.problems) == 1


def test_catalog_serves_when_there_is_nothing_else(tmp_path: Path) -> None:
    """Offline and without a cache, the dated table answers and says where its price is from."""
    quotes = price_list(tmp_path, refuse).quotes([T4], ["westus2", "eastus"])

    assert [(q.spot_usd_per_h, q.on_demand_usd_per_h, q.source) for q in quotes] == [
        (0.149174, None, "catalog of 2026-09-21"),
        (0.149174, 0.526, "catalog of 2026-09-21, westus2"),
    ]


def test_list_that_is_down_is_requested_once(tmp_path: Path) -> None:
    """A dead price list costs one attempt, not one for each size."""
    urls = []

    def fetch(url: str) -> Any:
        urls.append(url)
        raise TimeoutError("no answer")

    price_list(tmp_path, fetch).quotes([T4, "Standard_NC8as_T4_v3"], ["eastus"])

    assert len(urls) == 1


def test_waiting_is_bounded(tmp_path: Path) -> None:
    """When the list is slow, what is left after the patience comes from the catalog."""
    now = [NOW.timestamp()]

    def fetch(_: str) -> Any:
        now[0] += 4
        return {"Items": []}

    sizes = [f"size-{n}" for n in range(9)]
    prices = price_list(tmp_path, fetch, clock=lambda: now[0])
    quotes = prices.quotes(sizes, ["eastus"])

    assert [q.source for q in quotes].count("retail prices api") == 2
    assert len(quotes) == 9


def test_size_that_is_not_sold_has_no_price(tmp_path: Path) -> None:
    """Where the list answers without an item, the catalog does not invent a price."""
    (quote,) = price_list(tmp_path, Server([]).fetch).quotes([T4], ["eastus"])

    assert (quote.spot_usd_per_h, quote.source) == (None, "retail prices api")


@pytest.mark.parametrize("text", ["{", '{"version": 1}', '{"version": 0}', "[]"])
def test_damaged_cache_is_ignored(tmp_path: Path, text: str) -> None:
    """A cache that cannot be read is as good as none, and is replaced."""
    (tmp_path / "prices.json").write_text(text)
    server = Server([item(0.149, **SPOT)])

    (quote,) = price_list(tmp_path, server.fetch).quotes([T4], ["eastus"])

    assert quote.spot_usd_per_h == 0.149
    assert price_list(tmp_path, refuse).quotes([T4], ["eastus"]) == [quote]


def test_unwritable_cache_costs_no_quote(tmp_path: Path) -> None:
    """If the disk refuses the cache, the quote comes back all the same, and the problem is told."""
    (tmp_path / "file").touch()
    server = Server([item(0.149, **SPOT)])
    prices = price_list(tmp_path, server.fetch, cache=tmp_path / "file" / "prices.json")

    (quote,) = prices.quotes([T4], ["eastus"])

    assert quote.spot_usd_per_h == 0.149
    assert "cannot be written" in prices.problems[0]
