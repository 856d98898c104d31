"""Defines a row of a data file, and the notes on what was read otherwise than it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PLACES_SHOWN_MAX = 5


@dataclass(frozen=True, kw_only=True)
class Row:
    """One record: `number` is its line (JSONL) or its 1-based place among records (the others)."""

    number: int
    fields: Mapping[str, Any]


@dataclass
class Notes:
    """Collects what was read otherwise than it is written, each thing with the rows it is in."""

    places: dict[str, list[int]] = field(default_factory=dict)

    def add(self, what: str, row: int | None = None) -> None:
        """Note a thing about the file, or about one row of it."""
        rows = self.places.setdefault(what, [])
        if row is not None:
            rows.append(row)

    def extend(self, other: Notes, *, rows_before: int) -> None:
        """Add the notes on the next shard, whose rows are numbered on from those before it."""
        for what, rows in other.places.items():
            self.places.setdefault(what, []).extend(row + rows_before for row in rows)

    def lines(self) -> list[str]:
        """Return a line for each thing, with the number of its rows and the first of them."""
        return [
            what + (f" ({rows_text(rows)})" if rows else "") for what, rows in self.places.items()
        ]


def rows_text(rows: list[int]) -> str:
    """Return `row 7`, or `12 rows: 1, 2, 3, 4, 5, ...`; a row that stands twice counts once."""
    once = list(dict.fromkeys(rows))
    if len(once) == 1:
        return f"row {once[0]}"
    shown = [str(row) for row in once[:PLACES_SHOWN_MAX]]
    return f"{len(once)} rows: {', '.join([*shown, *['...'] * (len(once) > len(shown))])}"
