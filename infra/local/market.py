"""Reads the price and capacity of simulated regions over time from a file of the user's.

`market.json` beside the machines; without it every region, whatever its name, is open at the
reference price, so that a `run.yaml` meant for a real cloud can be rehearsed as it is:

    {"version": 1,
     "started_at": "2026-11-22T07:00:00+00:00",
     "regions": {
       "local-1": {"spot_usd_per_h": 0.149, "on_demand_usd_per_h": 0.526,
                   "changes": [{"after_s": 60, "spot_usd_per_h": 0.4},
                               {"after_s": 90, "capacity": false}]},
       "local-2": {"spot_usd_per_h": 0.16, "capacity": true, "machines": 2}}}

`machines` is how many may run there at a time; without it any number. A change holds from `after_s`
seconds after `started_at` (default: when the file was last written) and alters only what it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from infra.catalog.vendors import reference_spot_usd_per_h
from infra.durable import read_json
from infra.errors import BadRequest, NoCapacity, PriceAboveCap

DEFAULT_REGIONS = ("local-1", "local-2")
_REGION_KEYS = {"spot_usd_per_h", "on_demand_usd_per_h", "capacity", "machines", "changes"}
_CHANGE_KEYS = {"after_s", "spot_usd_per_h", "capacity", "machines"}


@dataclass(frozen=True, kw_only=True)
class RegionQuote:
    """One region at one moment."""

    spot_usd_per_h: float | None
    """Of a machine with one card. None means the reference price of the GPU asked for."""
    on_demand_usd_per_h: float | None = None
    capacity: bool = True
    machines: int | None = None
    """How many machines may run there at a time; None for any number."""


@dataclass(frozen=True, kw_only=True)
class Market:
    """All regions at one moment."""

    quotes: Mapping[str, RegionQuote] | None
    """As in the file, in its order; None where there is no file."""

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions to offer when nobody names any."""
        return DEFAULT_REGIONS if self.quotes is None else tuple(self.quotes)

    def quote(self, region: str) -> RegionQuote | None:
        """Return one region's quote; None if there is no such region."""
        if self.quotes is None:
            return RegionQuote(spot_usd_per_h=None)
        return self.quotes.get(region)

    def price(self, region: str, gpu: str, gpu_count: int = 1) -> float:
        """Return the spot price of a machine with so many of a GPU there, USD per hour.

        Each card costs as much as a machine with one. Raises `BadRequest` for no region.
        """
        quote = self.quote(region)
        if quote is None:
            names = ", ".join(self.regions)
            raise BadRequest(f"there is no region `{region}` in market.json, only {names}")
        if quote.spot_usd_per_h is None:
            return gpu_count * reference_spot_usd_per_h(gpu)
        return gpu_count * quote.spot_usd_per_h

    def check_available(
        self,
        region: str,
        gpu: str,
        cap_usd_per_h: float | None,
        *,
        gpu_count: int = 1,
        running: int = 0,
    ) -> None:
        """Refuse a machine as a cloud would, where so many run in the region.

        Raises `BadRequest`, `NoCapacity`, `PriceAboveCap`.
        """
        price, quote = self.price(region, gpu, gpu_count), self.quote(region)
        if quote is not None and not quote.capacity:
            raise NoCapacity(f"no machine is free in {region} now")
        if quote is not None and quote.machines is not None and running >= quote.machines:
            raise NoCapacity(f"no machine is free in {region} now: it has {quote.machines} in all")
        if cap_usd_per_h is not None and price > cap_usd_per_h:
            raise PriceAboveCap(
                f"the price in {region} is ${price:.4f} per hour, above the cap of "
                f"${cap_usd_per_h:.4f}",
                current_usd_per_h=price,
                hint="wait, allow other regions, or raise `vm.max_price`",
            )

    def blocked_by(
        self,
        region: str,
        gpu: str,
        cap_usd_per_h: float | None,
        *,
        gpu_count: int = 1,
        running: int = 0,
    ) -> str:
        """Return why a machine would be refused, in few words; empty if it would not."""
        try:
            self.check_available(region, gpu, cap_usd_per_h, gpu_count=gpu_count, running=running)
        except PriceAboveCap:
            return f"price above the cap of ${cap_usd_per_h:.4f} per hour"
        except NoCapacity:
            return "no capacity"
        except BadRequest as error:
            return str(error)
        return ""

    def blocked_by_count(self, region: str, nodes: int) -> str:
        """Return, in few words, that a region never has so many machines; empty if it may."""
        quote = self.quote(region)
        if quote is None or quote.machines is None or quote.machines >= nodes:
            return ""
        return f"capacity for {quote.machines} of {nodes} machines"


def read_market(path: Path, now: float) -> Market:
    """Return the market at `now` (seconds since 1970).

    Raises `BadRequest` naming the file and what is wrong with it.
    """
    try:
        data = read_json(path)
        if data is None:
            return Market(quotes=None)
        began = data.get("started_at")
        start = datetime.fromisoformat(began).timestamp() if began else path.stat().st_mtime
        quotes = {name: _quote(region, now - start) for name, region in data["regions"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadRequest(
            f"`{path}` is not a market file: {error!r}",
            hint="docs/local.md shows the format; remove the file for the default market",
        ) from error
    return Market(quotes=quotes)


def _quote(region: dict[str, Any], elapsed_s: float) -> RegionQuote:
    """One region's quote after `elapsed_s` seconds."""
    _refuse_unknown(region, _REGION_KEYS)
    now = {key: value for key, value in region.items() if key != "changes"}
    for change in sorted(region.get("changes", []), key=lambda one: float(one["after_s"])):
        _refuse_unknown(change, _CHANGE_KEYS)
        if elapsed_s >= float(change["after_s"]):
            now |= {key: value for key, value in change.items() if key != "after_s"}
    spot, on_demand = now.get("spot_usd_per_h"), now.get("on_demand_usd_per_h")
    return RegionQuote(
        spot_usd_per_h=None if spot is None else float(spot),
        on_demand_usd_per_h=None if on_demand is None else float(on_demand),
        capacity=bool(now.get("capacity", True)),
        machines=_count(now.get("machines")),
    )


def _count(value: object) -> int | None:
    """How many machines a region has; refuses what is no count, such as `true`."""
    if value is not None and (type(value) is not int or value < 0):
        raise ValueError(f"`machines` is a whole number from 0, not {value!r}")
    return value


def _refuse_unknown(table: dict[str, Any], names: set[str]) -> None:
    """Refuse unknown keys: a misspelt one would be a market that never changes."""
    if unknown := set(table) - names:
        raise ValueError(f"unknown keys {sorted(unknown)}, known are {sorted(names)}")
