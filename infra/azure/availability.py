"""Reads what an account may rent and is likely to keep; what does not answer soon is left out."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from infra.azure.context import AzureContext
from infra.catalog.vendor import folded
from infra.durable import read_json, write_json
from infra.errors import Gone, NotAllowed, Transient
from infra.renting.gather import Findings, run_all
from infra.untrusted import number, texts

GRAPH_PAGES_MAX = 10
SKUS_FRESH_S = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Availability:
    """Reads quota, restrictions, zones, placement scores and eviction bands of one account."""

    context: AzureContext

    def gather(
        self, sizes: Sequence[str], regions: Sequence[str], also: Callable[[], None]
    ) -> Findings:
        """Ask everything at once and return what came within `offers_wait_s` of real time.

        `also` is one more thing to do meanwhile. The list of sizes takes Azure 20-30 s a region:
        it is taken from disk, and refreshed there for the next time.
        """
        found = Findings()
        self.context.arm.warm()  # the SDK's clients are made once, not by every thread
        jobs: list[Callable[[], None]] = [also, lambda: self._bands(found, sizes, regions)]
        placement = Placement(context=self.context)
        jobs += [
            partial(placement.gather, found.scores, sizes, some)
            for some in chunks(regions, LOCATIONS_MAX)
        ]
        jobs += [partial(self._quota, found, region) for region in regions]
        jobs += [partial(self._skus, found, region) for region in regions]  # slowest, so last
        run_all(jobs, found.problems, wait_s=self.context.settings.offers_wait_s)
        return found

    def _quota(self, found: Findings, region: str) -> None:
        rows = self.context.arm.pages(
            f"read the quota of {region}",
            lambda: self.context.arm.compute.usage.list(region),
        )
        found.quota[region] = usage_of(rows)

    def _bands(self, found: Findings, sizes: Sequence[str], regions: Sequence[str]) -> None:
        options = {"resultFormat": "objectArray"}
        for _ in range(GRAPH_PAGES_MAX):
            answer = self.context.arm.send(
                "read the eviction rates",
                "POST",
                "/providers/Microsoft.ResourceGraph/resources",
                body={
                    "subscriptions": [self.context.settings.subscription_id],
                    "query": bands_query(sizes, regions),
                    "options": options,
                },
            )
            for row in answer.get("data") or []:
                key = (str(row.get("skuName")).lower(), str(row.get("location")).lower())
                found.bands[key] = str(row.get("spotEvictionRate") or "")
            more = str(answer.get("$skipToken") or "")
            if not more:
                return
            options = options | {"$skipToken": more}

    def _skus(self, found: Findings, region: str) -> None:
        cache = self.context.state_dir / "sizes" / f"{region}.json"
        kept = fresh_skus(cache, self.context.clock())
        if kept is None:
            rows = self.context.arm.pages(
                f"list the sizes of {region}",
                self.context.arm.compute.resource_skus.list,
                filter=f"location eq '{region}'",
            )
            kept = {"restricted": restrictions_of(rows, region), "zones": zones_of(rows, region)}
            cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_json(cache, {"at_s": self.context.clock(), **kept})
        found.restricted[region] = kept["restricted"]
        found.zones[region] = kept["zones"]


def usage_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Read used and limit by folded name: one account spells one family in several ways."""
    return {
        folded(str((row.get("name") or {}).get("value") or "")): (
            int(row.get("currentValue") or 0),
            int(row.get("limit") or 0),
        )
        for row in rows
    }


def bands_query(sizes: Sequence[str], regions: Sequence[str]) -> str:
    """Build the Resource Graph query for eviction rates of the last 28 days."""
    names = ", ".join(f"'{size.lower()}'" for size in sizes)
    places = ", ".join(f"'{region.lower()}'" for region in regions)
    return (
        "SpotResources | where type =~ 'microsoft.compute/skuspotevictionrate/location'"
        f" | where sku.name in~ ({names}) | where location in~ ({places})"
        " | project skuName=tostring(sku.name), location,"
        " spotEvictionRate=tostring(properties.evictionRate)"
    )


def restrictions_of(rows: Sequence[Mapping[str, Any]], region: str) -> dict[str, str]:
    """Read why sizes cannot be rented as spot in a region, by name in lower case.

    A restriction of type `Zone` only takes zones away, and does not count.
    """
    found = {}
    for row in rows:
        if row.get("resourceType") != "virtualMachines" or not _of_region(row, region):
            continue
        name = str(row.get("name")).lower()
        capabilities = {one.get("name"): one.get("value") for one in row.get("capabilities") or []}
        if str(capabilities.get("LowPriorityCapable")).lower() != "true":
            found[name] = "Azure does not rent this size as spot"
        for one in row.get("restrictions") or []:
            closed = (one.get("restrictionInfo") or {}).get("locations") or []
            places = {str(place).lower() for place in (*(one.get("values") or []), *closed)}
            if one.get("type") == "Location" and region.lower() in places:
                found[name] = f"closed to this subscription ({one.get('reasonCode')})"
    return found


def _of_region(row: Mapping[str, Any], region: str) -> bool:
    """Whether a row speaks of a region: a filter that nobody heeds lets all of them through."""
    places = {str(place).lower() for place in row.get("locations") or []}
    return not places or region.lower() in places


def zones_of(rows: Sequence[Mapping[str, Any]], region: str) -> dict[str, list[str]]:
    """Read the zones in which sizes are sold, less those closed to this subscription."""
    found = {}
    for row in rows:
        if row.get("resourceType") != "virtualMachines":
            continue
        zones = {
            str(zone)
            for place in row.get("locationInfo") or []
            if str(place.get("location")).lower() == region.lower()
            for zone in place.get("zones") or []
        }
        for one in row.get("restrictions") or []:
            if one.get("type") == "Zone":
                zones -= set((one.get("restrictionInfo") or {}).get("zones") or [])
        if zones:
            found[str(row.get("name")).lower()] = sorted(zones)
    return found


def fresh_skus(cache: Path, now: float) -> dict[str, dict[str, Any]] | None:
    """Read restrictions and zones from disk, unless older than a day, unreadable or of later."""
    try:
        value = read_json(cache)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    if not 0 <= now - (number(value.get("at_s")) or 0.0) <= SKUS_FRESH_S:
        return None
    if not isinstance(value.get("zones"), dict):  # written before zones were kept
        return None
    return {"restricted": dict(value.get("restricted") or {}), "zones": value["zones"]}


LOCATIONS_MAX = 8
SIZES_MAX = 5
FRESH_S = 20 * 60.0
"""Azure throttles this question hard, and the answer does not change by the minute."""
POOR = frozenset({"Low", "RestrictedSku"})
"""Scores that put a place behind the others."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Requests Azure's guess of where a spot machine would be granted: seldom, and optional."""

    context: AzureContext

    def gather(
        self, scores: dict[tuple[str, str], str], sizes: Sequence[str], regions: Sequence[str]
    ) -> None:
        """Add the scores of some sizes (5 at most count) in some regions (8 at most).

        An account without the right, or asked too often, and a cloud that has no scores, are not
        asked again for as long as an answer would be kept. Raises `ProviderError` for other
        trouble.
        """
        query = "/".join([*sizes[:SIZES_MAX], *regions]).lower()
        name = f"{uuid.uuid5(uuid.NAMESPACE_URL, query)}.json"
        path = self.context.state_dir / "placement" / name
        rows = self._kept(path)
        if rows is None:
            rows = self._ask(sizes[:SIZES_MAX], regions)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            kept = {"at_s": self.context.clock(), "rows": rows}
            write_json(path, kept)
        for size, region, score in rows:
            scores[size, region] = score

    def _ask(self, sizes: Sequence[str], regions: Sequence[str]) -> list[list[str]]:
        """Request size, region and score of each place; nothing if the account may not know."""
        subscription = self.context.settings.subscription_id
        try:
            answer = self.context.arm.send(
                "read the placement scores",
                "POST",
                f"/subscriptions/{subscription}/providers/Microsoft.Compute/locations/{regions[0]}"
                "/placementScores/spot/generate",
                body={
                    "desiredLocations": list(regions),
                    "desiredSizes": [{"sku": size} for size in sizes],
                    "desiredCount": 1,
                    "availabilityZones": False,
                },
            )
        except (NotAllowed, Transient, Gone):  # no right, no time for us, or no such thing there
            return []
        return [
            [str(row.get("sku")).lower(), str(row.get("region")).lower(), str(row.get("score"))]
            for row in answer.get("placementScores") or []
        ]

    def _kept(self, path: Path) -> list[list[str]] | None:
        """Read the last answer from disk if it is fresh and whole."""
        try:
            value = read_json(path)
        except ValueError:
            return None
        if not isinstance(value, dict):
            return None
        age_s = self.context.clock() - (number(value.get("at_s")) or 0.0)
        rows = value.get("rows")
        if not isinstance(rows, list) or not 0 <= age_s < FRESH_S:
            return None
        whole = all(texts(row, most=3) is not None and len(row) == 3 for row in rows)
        return rows if whole else None


def chunks(regions: Sequence[str], size: int) -> list[Sequence[str]]:
    """Split regions into groups of at most `size`."""
    return [regions[first : first + size] for first in range(0, len(regions), size)]
