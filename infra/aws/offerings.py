"""Reads which zones of a region rent out which sizes; asked once a day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.aws.context import AwsContext
from infra.aws.prices import is_zone
from infra.catalog.aws import AWS
from infra.durable import read_json, write_json
from infra.untrusted import number, table, texts

OFFERINGS_FRESH_S = 24 * 3600.0
ZONES_MAX = 26


@dataclass(frozen=True, kw_only=True)
class Offerings:
    """The zones of each size of the catalog, by region; safe from threads."""

    context: AwsContext

    def zones(self, region: str) -> dict[str, list[str]]:
        """Return the zones by size, at most a day old. Raises `ProviderError`."""
        kept = self.kept(region, fresh_s=OFFERINGS_FRESH_S)
        if kept is not None:
            return kept
        rows = self.context.clients.pages(
            "ec2",
            region,
            "describe_instance_type_offerings",
            "InstanceTypeOfferings",
            doing=f"list which zones of {region} rent out GPUs",
            LocationType="availability-zone",
            Filters=[{"Name": "instance-type", "Values": [one.size for one in AWS.sizes]}],
        )
        found = zones_in(rows, region)
        path = self._path(region)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(path, {"at_s": self.context.clock(), "zones": found})
        return found

    def kept(self, region: str, *, fresh_s: float = float("inf")) -> dict[str, list[str]] | None:
        """Return the zones by size that are on disk; None if nothing is, or it is older."""
        try:
            value = table(read_json(self._path(region)))
        except ValueError:
            return None
        at_s, zones = number(value.get("at_s")), value.get("zones")
        if at_s is None or not isinstance(zones, dict):
            return None
        if not 0 <= self.context.clock() - at_s < fresh_s:
            return None
        whole = {size: texts(some, most=ZONES_MAX) for size, some in zones.items()}
        return {size: [*some] for size, some in whole.items() if some is not None}

    def _path(self, region: str) -> Path:
        return self.context.state_dir / "offerings" / f"{region}.json"


def zones_in(rows: Sequence[Mapping[str, Any]], region: str) -> dict[str, list[str]]:
    """Read the ordinary zones of each size in an answer of EC2."""
    found: dict[str, set[str]] = {}
    for row in rows:
        zone = str(row.get("Location", ""))
        if is_zone(zone, region):
            found.setdefault(str(row.get("InstanceType", "")), set()).add(zone)
    return {size: sorted(zones) for size, zones in found.items()}
