"""One line of the table: what was tried, how it ended, and the figures that were measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

GB = 1e9
COLUMNS = ("what", "result", "seconds", "tokens/s", "peak", "forecast", "message")


class Result(StrEnum):
    """How a line ended."""

    DONE = "done"
    FAILED = "FAILED"
    NOT_RUN = "not run"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number with its unit; what was not measured has none."""

    value: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """What was tried, how it ended, and what was seen."""

    what: str
    result: Result
    seconds: float = 0.0
    message: str = ""
    error: str | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)
    log: str = ""  # the end of what its processes said, for whoever mends; not in the table


def figures_of(numbers: Mapping[str, tuple[float | None, str]]) -> dict[str, Figure]:
    """Keep the numbers that were measured."""
    return {
        name: Figure(value=value, unit=unit)
        for name, (value, unit) in numbers.items()
        if value is not None
    }


def table(lines: Sequence[Line]) -> str:
    """Write the lines under headings, in columns; an empty field was not measured."""
    rows = [COLUMNS, *(cells(line) for line in lines)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS) - 1)]
    return "\n".join(
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)), row[-1]]
        ).rstrip()
        for row in rows
    )


def cells(line: Line) -> tuple[str, ...]:
    """Return the fields of one line, of `COLUMNS`; memory is allocated / reserved in GB."""
    parts = " · ".join(part for part in (line.message, line.error) if part)
    return (
        line.what,
        str(line.result),
        f"{line.seconds:.1f}" if line.seconds else "",
        _number(line, "tokens_per_s", ",.0f"),
        _pair(line, "peak_allocated", "peak_reserved"),
        _pair(line, "forecast_allocated", "forecast_reserved"),
        parts,
    )


def _number(line: Line, name: str, how: str, scale: float = 1.0) -> str:
    found = line.figures.get(name)
    return format(found.value / scale, how) if found else ""


def _pair(line: Line, *names: str) -> str:
    parts = [_number(line, name, ".2f", GB) for name in names]
    return f"{' / '.join(parts)} GB" if all(parts) else ""


def write_json(path: Path, facts: Mapping[str, Any], lines: Sequence[Line]) -> None:
    """Write facts and lines to `path`, whole or not at all; raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**facts, "lines": [asdict(line) for line in lines]}
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def line_of(raw: Mapping[str, Any]) -> Line:
    """Return a line that another process wrote as JSON."""
    figures = {name: Figure(**one) for name, one in raw["figures"].items()}
    return Line(**{**raw, "result": Result(raw["result"]), "figures": figures})
