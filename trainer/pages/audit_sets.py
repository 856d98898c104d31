"""Says of the files of an audit what is left out and what to mind, and in which file a row is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.data.datasets import TrainingRows
from trainer.data.examples import Examples
from trainer.data.split import RowPlace

ROWS_SHOWN_MAX = 10


def row_texts(sets: Sequence[Examples]) -> list[tuple[RowPlace, str]]:
    """Return what is compared of every row: its prompt, or its text, with its place.

    A place names the file only where there are several.
    """
    names = _names([one.report.path for one in sets])
    return [
        (item.row if len(sets) == 1 else f"{name}:{item.row}", item.prompt or item.completion)
        for name, one in zip(names, sets, strict=True)
        for item in one.items
    ]


def set_reports(rows: TrainingRows) -> dict[str, Any]:
    """Return the report of each of several sets as plain JSON; nothing of a single one."""
    if len(rows.sets) == 1:
        return {}
    return {
        "sets": [
            {**asdict(one.report), "weight": share.weight, "rows_per_epoch": share.rows_per_epoch}
            for one, share in zip(rows.sets, rows.shares, strict=True)
        ]
    }


def set_lines(train: Mapping[str, Any]) -> list[str]:
    """Describe each of several sets in a line."""
    sets = train.get("sets", ())
    return [
        f"  {name}: {one['rows']} rows of weight {one['weight']:g}, "
        f"{one['rows_per_epoch']} in an epoch"
        for name, one in zip(_names([one["path"] for one in sets]), sets, strict=True)
    ]


def left_out(train: Mapping[str, Any], held_out: Mapping[str, Any] | None) -> str:
    """Describe which rows are left out as too long, and which prompts are truncated."""
    sides = [("to learn from", train), *([("held out", held_out)] if held_out else [])]
    notes = [
        f"dropped as too long, {word}: {side['dropped']}, {_row_list(side, 'dropped')}"
        for word, side in sides
        if side["dropped"]
    ] or ["dropped: none, as a row that cannot be learnt with its whole answer is an error"]
    notes += [
        f"shortened in the middle, {word}: {_row_list(side, 'truncated')}"
        for word, side in sides
        if side["truncated"]
    ]
    return "; ".join(notes)


def _row_list(side: Mapping[str, Any], what: str) -> str:
    """List the first rows that were `truncated` or `dropped`, each with its file if several."""
    sets = side.get("sets", [side])
    shown = [
        f"{name}:{row}" if "sets" in side else str(row)
        for name, one in zip(_names([one["path"] for one in sets]), sets, strict=True)
        for row in one[f"{what}_rows"]
    ]
    more = ["..."] * (side[what] > len(shown[:ROWS_SHOWN_MAX]))
    return f"row {', '.join([*shown[:ROWS_SHOWN_MAX], *more])}"


def _names(paths: Sequence[str]) -> list[str]:
    """Return the names of files, with their folders where a name alone would be that of two."""
    names = [Path(path).name for path in paths]
    return names if len({*names}) == len(names) else [*paths]
