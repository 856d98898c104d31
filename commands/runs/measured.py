"""Reads what a trainer measured of itself, from its results at home: checked, a machine's word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from commands.runs.planning.actual import Measured
from infra.durable import read_json
from infra.untrusted import NotPlain, number, parse, table

SECONDS_MAX = 1e9
BYTES_MAX = 1e15
LINE_BYTES_MAX = 1 << 20
PEAKS = ("reserved_bytes", "allocated_bytes")
"""Of `memory.json`: what counts on a card, then what is known on a processor."""


def read_measured(out: Path, *, redone_steps: int) -> Measured:
    """Return what the results in `out` say of seconds and bytes; what they do not say is 0 or None.

    `redone_steps` are those of the whole run, also those that went with a machine.
    """
    train_s, steps = _trained(out / "metrics.jsonl")
    return Measured(
        train_s=train_s,
        steps=steps,
        redone_steps=redone_steps,
        before_s=_seconds(read_result(out / "eval-before.json")),
        after_s=_seconds(read_result(out / "eval-after.json")),
        memory_bytes=_peak_bytes(read_result(out / "memory.json")),
    )


def _trained(log: Path) -> tuple[float, int]:
    """Return the seconds and the number of the steps in a log, up to the first line that is none.

    A log may have millions of lines, of which none is kept.
    """
    seconds, steps = 0.0, 0
    try:
        with log.open("rb") as lines:
            for line in lines:
                seconds += _seconds(table(parse(line, bytes_max=LINE_BYTES_MAX)))
                steps += 1
    except (OSError, NotPlain):  # not fetched, or torn: what was read counts
        return seconds, steps
    return seconds, steps


def _seconds(found: dict[str, Any]) -> float:
    return max(0.0, number(found.get("seconds"), most=SECONDS_MAX) or 0.0)


def _peak_bytes(memory: dict[str, Any]) -> float | None:
    """Return the peak that a trainer measured; None if it measured none."""
    found = (number(memory.get(key), most=BYTES_MAX) for key in PEAKS)
    return next((one for one in found if one is not None and one > 0), None)


def read_result(path: Path) -> dict[str, Any]:
    """Return the table in a file that came from the machine; empty if it cannot be read."""
    try:
        return table(read_json(path))
    except (ValueError, OSError):  # what is made of it must not fail on it
        return {}
