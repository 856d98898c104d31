"""Reads what a run left behind, which may have come from a stranger's machine, as plain values."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from trainer.pages import html
from trainer.untrusted import NotPlain, number, parse, table, whole

Json = dict[str, Any]
TABLE_BYTES_MAX = 256 << 20
"""Of the answers to all held-out rows."""
LINE_BYTES_MAX = 1 << 20
FIGURES = ("loss", "validation_loss", "lr", "grad_norm", "tokens", "seconds", "target_tokens")
MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What it is to look into a document that has another build than the one that is written here."""


def read(path: Path) -> Json | None:
    """Return a table, None if there is none or it cannot be read."""
    try:
        value = parse(path.read_bytes(), bytes_max=TABLE_BYTES_MAX)
    except (OSError, NotPlain):
        return None
    return value if isinstance(value, dict) else None


def read_log(path: Path) -> list[Json]:
    """Return the steps of a log in order; a torn last line of a run under way is left out.

    Figures are finite numbers or None. Raises `ValueError` with the line that is none.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    steps: list[Json] = []
    for count, line in enumerate(lines, 1):
        try:
            record = table(parse(line, bytes_max=LINE_BYTES_MAX))
        except NotPlain as error:
            raise ValueError(f"{path}: line {count}: {error}") from error
        step = whole(record.get("step"))
        if step is None:
            raise ValueError(f"{path}: line {count} tells no step")
        figures = {key: number(record.get(key)) for key in FIGURES if key in record}
        steps.append({"step": step, "skipped": bool(record.get("skipped")), **figures})
    for one, other in pairwise(steps):
        if other["step"] <= one["step"]:
            raise ValueError(f"{path}: step {other['step']} stands after step {one['step']}")
    return steps


def shown(what: str, make: Callable[[], list[str]]) -> list[str]:
    """Return the parts of a section, or a sentence if what came home is of another build."""
    try:
        return make()
    except MALFORMED as error:
        why = f"what came home is not as a training here writes it ({type(error).__name__})"
        return [html.paragraph(f"{what} cannot be shown: {why}.")]
