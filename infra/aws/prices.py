"""Reads the spot price of each zone from EC2's price history, and keeps it on disk for a while."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.aws.context import AwsContext
from infra.catalog.aws import AWS
from infra.durable import read_json, write_json
from infra.errors import ProviderError
from infra.renting.prices import PRICES_FRESH_S
from infra.untrusted import number

HISTORY_SOURCE = "EC2 spot price history"
PRODUCT = "Linux/UNIX"
PRICE_MAX = 1000.0
"""USD per hour; no machine of the catalog costs a tenth of it."""


@dataclass(frozen=True, kw_only=True)
class ZonePrice:
    """The spot price of one size in one zone, USD per hour."""

    size: str
    zone: str
    usd_per_h: float


@dataclass(frozen=True, kw_only=True)
class RegionPrices:
    """The spot prices of some sizes in all zones of a region, at one time."""

    region: str
    at_s: float
    """Seconds since 1970."""
    sizes: tuple[str, ...]
    """All that were asked for: one without a price in a zone is not sold there as spot."""
    prices: tuple[ZonePrice, ...]

    @property
    def priced_at(self) -> str:
        """When the prices were in force, ISO 8601 UTC."""
        return datetime.fromtimestamp(self.at_s, UTC).isoformat()

    def price(self, size: str, zone: str) -> float | None:
        """The price in a zone; the highest of all zones if `zone` is empty; None if unknown."""
        found = [
            one.usd_per_h for one in self.prices if one.size == size and zone in {"", one.zone}
        ]
        return max(found, default=None)

    def zones(self, size: str) -> list[str]:
        """The zones that have a price for a size."""
        return sorted({one.zone for one in self.prices if one.size == size})


@dataclass(frozen=True, kw_only=True)
class SpotPrices:
    """The price history of an account's regions, behind a cache on disk; safe from threads."""

    context: AwsContext
    observed: dict[tuple[str, str, str], tuple[float, float | None]] = field(default_factory=dict)
    """By size, region and zone: when a running machine's price was asked for, and the answer."""

    def read(
        self, region: str, sizes: Sequence[str], *, fresh_s: float = PRICES_FRESH_S
    ) -> RegionPrices:
        """Return the prices of a region, at most `fresh_s` old. Raises `ProviderError`."""
        kept = self.kept(region, sizes)
        if kept is not None and 0 <= self.context.clock() - kept.at_s < fresh_s:
            return kept
        return self._ask(region, sizes)

    def now(self, size: str, region: str, zone: str) -> float | None:
        """Return the price that a running machine pays; None if nobody answers.

        Asks at most once in `PRICES_FRESH_S`, also when nobody answers.
        """
        at_s, price = self.observed.get((size, region, zone), (-math.inf, None))
        if self.context.clock() - at_s >= PRICES_FRESH_S:
            try:
                price = self.read(region, [size]).price(size, zone)
            except ProviderError:  # the machine is observed all the same
                price = None
            self.observed[size, region, zone] = (self.context.clock(), price)
        return price

    def kept(self, region: str, sizes: Sequence[str]) -> RegionPrices | None:
        """Return what is on disk for all those sizes, however old; None if nothing is."""
        try:
            kept = _from_json(region, read_json(self._path(region)))
        except (ValueError, TypeError, KeyError):  # of another version or make: asked for anew
            return None
        return kept if kept is not None and set(sizes) <= set(kept.sizes) else None

    def _ask(self, region: str, sizes: Sequence[str]) -> RegionPrices:
        """Ask for the sizes, and for those on disk, so that nobody's prices are lost."""
        before = self.kept(region, [])
        sizes = sorted({*sizes, *(before.sizes if before else ())})
        now_s = self.context.clock()
        rows = self.context.clients.pages(
            "ec2",
            region,
            "describe_spot_price_history",
            "SpotPriceHistory",
            doing=f"read the spot prices of {region}",
            InstanceTypes=sizes,
            ProductDescriptions=[PRODUCT],
            StartTime=datetime.fromtimestamp(now_s, UTC),
        )
        found = RegionPrices(
            region=region, at_s=now_s, sizes=tuple(sizes), prices=prices_in(rows, region)
        )
        path = self._path(region)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(path, asdict(found))
        return found

    def _path(self, region: str) -> Path:
        return self.context.state_dir / "prices" / f"{region}.json"


def prices_in(rows: Sequence[Mapping[str, Any]], region: str) -> tuple[ZonePrice, ...]:
    """Read the prices in an answer of EC2; of several for one zone the newest holds.

    What is not a price of Linux in an ordinary zone of the region is left out.
    """
    newest: dict[tuple[str, str], tuple[float, float]] = {}
    for row in rows:
        size, zone = str(row.get("InstanceType", "")), str(row.get("AvailabilityZone", ""))
        price, since = _amount(row.get("SpotPrice")), row.get("Timestamp")
        if AWS.find(size) is None or price is None or not is_zone(zone, region):
            continue
        if row.get("ProductDescription", PRODUCT) != PRODUCT:
            continue
        since_s = since.timestamp() if isinstance(since, datetime) else 0.0
        newest[size, zone] = max(newest.get((size, zone), (0.0, 0.0)), (since_s, price))
    return tuple(
        ZonePrice(size=size, zone=zone, usd_per_h=price)
        for (size, zone), (_, price) in sorted(newest.items())
    )


def is_zone(zone: str, region: str) -> bool:
    """Whether a name is that of an ordinary zone, and not of a local or wavelength zone."""
    return re.fullmatch(rf"{re.escape(region)}[a-z]", zone) is not None


def _amount(value: object) -> float | None:
    """A price in dollars, which EC2 writes as text; None for what is none."""
    try:
        price = float(str(value))
    except ValueError:
        return None
    return price if 0 < price <= PRICE_MAX else None


def _from_json(region: str, data: Any) -> RegionPrices | None:
    if data is None:
        return None
    at_s = number(data["at_s"])
    prices = tuple(ZonePrice(**one) for one in data["prices"])
    if at_s is None or any(_amount(one.usd_per_h) is None for one in prices):
        raise ValueError("a price or its time is no number")
    return RegionPrices(
        region=region, at_s=at_s, sizes=tuple(str(one) for one in data["sizes"]), prices=prices
    )
