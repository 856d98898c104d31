"""The price and capacity of simulated regions over time, as one file of the user's tells them.

`market.json` beside the machines; without it every region is open at the reference price:

    {"version": 1,
     "started_at": "2026-11-22T07:00:00+00:00",
     "regions": {
       "local-1": {"spot_usd_per_h": 0.149, "on_demand_usd_per_h": 0.526,
                   "changes": [{"after_s": 60, "spot_usd_per_h": 0.4},
                               {"after_s": 90, "capacity": false}]},
       "local-2": {"spot_usd_per_h": 0.16, "capacity": true}}}

A change holds from `after_s` seconds after `started_at` (default: when the file was last written)
and alters only what it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from infra.durable import read_json
from infra.provider import BadRequest

DEFAULT_REGIONS = ("local-1", "local-2")
_REGION_KEYS = {"spot_usd_per_h", "on_demand_usd_per_h", "capacity", "changes"}
_CHANGE_KEYS = {"after_s", "spot_usd_per_h", "capacity"}


@dataclass(frozen=True, kw_only=True)
class Quote:
    """One region at one moment."""

    spot_usd_per_h: float | None
    """None means the reference price of the GPU asked for."""
    on_demand_usd_per_h: float | None = None
    capacity: bool = True


def read_market(path: Path, now: float) -> Mapping[str, Quote]:
    """Return the quotes of all regions at `now` (seconds since 1970), in the file's order.

    Raises `BadRequest` naming the file and what is wrong with it.
    """
    try:
        data = read_json(path)
        if data is None:
            return {region: Quote(spot_usd_per_h=None) for region in DEFAULT_REGIONS}
        began = data.get("started_at")
        start = datetime.fromisoformat(began).timestamp() if began else path.stat().st_mtime
        return {name: _quote(region, now - start) for name, region in data["regions"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadRequest(
            f"`{path}` is not a market file: {error!r}",
            hint="docs/local.md shows the format; remove the file for the default market",
        ) from error


def _quote(region: dict[str, Any], elapsed_s: float) -> Quote:
    """One region's quote after `elapsed_s` seconds."""
    _refuse_unknown(region, _REGION_KEYS)
    now = {key: value for key, value in region.items() if key != "changes"}
    for change in sorted(region.get("changes", []), key=lambda one: float(one["after_s"])):
        _refuse_unknown(change, _CHANGE_KEYS)
        if elapsed_s >= float(change["after_s"]):
            now |= {key: value for key, value in change.items() if key != "after_s"}
    spot, on_demand = now.get("spot_usd_per_h"), now.get("on_demand_usd_per_h")
    return Quote(
        spot_usd_per_h=None if spot is None else float(spot),
        on_demand_usd_per_h=None if on_demand is None else float(on_demand),
        capacity=bool(now.get("capacity", True)),
    )


def _refuse_unknown(table: dict[str, Any], known: set[str]) -> None:
    """A misspelt key would otherwise be a market that never changes."""
    if unknown := set(table) - known:
        raise ValueError(f"unknown keys {sorted(unknown)}, known are {sorted(known)}")
