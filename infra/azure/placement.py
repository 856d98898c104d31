"""Azure's own guess of where a spot machine would be granted; asked seldom, and done without."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.azure.context import AzureContext
from infra.durable import read_json, write_json
from infra.provider import Gone, NotAllowed, Transient
from infra.untrusted import number, texts

LOCATIONS_MAX = 8
SIZES_MAX = 5
FRESH_S = 20 * 60.0
"""Azure throttles this question hard, and the answer does not change by the minute."""
POOR = frozenset({"Low", "RestrictedSku"})
"""Scores that put a place behind the others."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Spot placement scores of one account."""

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
        """Size, region and score of each place; nothing if the account may not know."""
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
        """The last answer if it is fresh and whole."""
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
    """The regions in groups of at most `size`."""
    return [regions[first : first + size] for first in range(0, len(regions), size)]
