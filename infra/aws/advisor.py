"""Reads AWS's public page of interruption rates, which needs no account; asked once a day."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.aws.context import AwsContext
from infra.catalog.aws import AWS
from infra.durable import read_json, write_json
from infra.renting.http import fetch_json
from infra.untrusted import number, table, text, whole

ADVISOR_FRESH_S = 24 * 3600.0
BAND = re.compile(r"<?(\d+)(?:-(\d+))?|>(\d+)")


@dataclass(frozen=True, kw_only=True)
class Advisor:
    """The share of spot machines that was interrupted in the trailing month, by size and region."""

    context: AwsContext
    fetch: Callable[[str], Any] = fetch_json
    """Gets a URL's JSON; raises `OSError` or `ValueError`."""

    def bands(self) -> dict[tuple[str, str], str]:
        """Return the bands by size and region, such as `5-10`, at most a day old.

        Raises `OSError` or `ValueError` if the page does not answer as it should.
        """
        kept = self.kept(fresh_s=ADVISOR_FRESH_S)
        if kept is not None:
            return kept
        found = bands_in(self.fetch(self.context.settings.advisor_endpoint))
        if not found:
            raise ValueError("the page of interruption rates names no size of the catalog")
        path = self._path()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        rows = [[size, region, band] for (size, region), band in found.items()]
        write_json(path, {"at_s": self.context.clock(), "rows": rows})
        return found

    def kept(self, *, fresh_s: float = float("inf")) -> dict[tuple[str, str], str] | None:
        """Return the bands that are on disk; None if nothing is, or it is older."""
        try:
            value = table(read_json(self._path()))
            at_s = number(value.get("at_s"))
            if at_s is None or not 0 <= self.context.clock() - at_s < fresh_s:
                return None
            return {(str(size), str(region)): str(band) for size, region, band in value["rows"]}
        except (ValueError, TypeError, KeyError):  # of another version or make: asked for anew
            return None

    def _path(self) -> Path:
        return self.context.state_dir / "interruption-rates.json"


def bands_in(page: Any) -> dict[tuple[str, str], str]:
    """Read the bands of the catalog's sizes for Linux in the page; what is odd is left out."""
    labels: dict[int | None, str] = {}
    ranges = table(page).get("ranges")
    for row in ranges if isinstance(ranges, list) else []:
        index, band = whole(table(row).get("index")), _band(text(table(row).get("label")) or "")
        if index is not None and band:
            labels[index] = band
    found = {}
    for region, systems in table(table(page).get("spot_advisor")).items():
        rates = table(table(systems).get("Linux"))
        for one in AWS.sizes:
            index = whole(table(rates.get(one.size)).get("r"))
            if index in labels:
                found[one.size, str(region)] = labels[index]
    return found


def _band(label: str) -> str:
    """A label of the page as `Offer.eviction_band` writes it: `<5%` is `0-5`; empty if odd."""
    found = BAND.fullmatch(label.replace(" ", "").replace("%", ""))
    if found is None:
        return ""
    first, last, above = found.groups()
    if above:
        return f"{above}+"
    return f"{first}-{last}" if last else f"0-{first}"
