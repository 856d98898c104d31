"""Says in words what two scores hold of forgetting; pure, and without any heavy library.

What is read came home from a machine: figures that are no numbers are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.untrusted import number, table, text, whole


def measured_of(result: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a score says of forgetting, empty if it does not."""
    return table(table(table(result).get("details")).get("forgetting"))


def forgetting_rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each part that was measured: its name, before, after, and the change."""
    change = table(after.get("change"))
    rows = [
        (
            "general questions right",
            _share(before.get("knowledge")),
            _share(after.get("knowledge")),
            _interval(change.get("knowledge"), signed=True),
        ),
        ("drift from the base, nats per token", "", _interval(after.get("drift")), ""),
        (
            "perplexity of your general rows",
            *(_interval(_perplexity(one.get("general"))) for one in (before, after)),
            _interval(table(change.get("general")).get("perplexity"), signed=True),
        ),
    ]
    return [row for row in rows if any(row[1:])]


def forgetting_notes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what is to be said beside the figures, each a sentence."""
    notes = []
    for one, word in ((before, "before"), (after, "after")):
        if table(one.get("knowledge")).get("at_chance") is True:
            notes.append(
                f"{word.capitalize()} training the questions are answered at chance: the interval "
                "holds 25 %, which is what guessing among four gives."
            )
    drift = table(after.get("drift"))
    openings, tokens = whole(drift.get("n")), whole(drift.get("tokens"))
    if openings and tokens and number(drift.get("value")) is not None:
        notes.append(
            f"The drift estimates KL(base || fine-tuned) on {tokens:,} tokens that the base itself "
            f"wrote after {openings} openings; 0 is a model that did not change."
        )
    for key, what in (("knowledge", "questions"), ("drift", "drift")):
        for one, word in ((before, "before"), (after, "after")):
            why = text(table(one.get(key)).get("missing"), most=200)
            if why:
                notes.append(f"No {what} {word} training: {why}.")
    return notes


def forgetting_lines(before: object, after: object) -> list[str]:
    """Return the lines of two scores for a terminal; none if neither measured it."""
    was, now = (measured_of(table(one)) for one in (before, after))
    rows = forgetting_rows(was, now)
    return [
        f"{name}: {_arrow(first, second)}{f'; change {change}' if change else ''}"
        for name, first, second, change in rows
    ] + (forgetting_notes(was, now) if rows else [])


def _arrow(first: str, second: str) -> str:
    return " → ".join(one for one in (first, second) if one)


def _perplexity(general: object) -> object:
    return table(table(general).get("figures")).get("perplexity")


def _share(found: object) -> str:
    """Return a share of questions with its interval and their number."""
    shown = _interval(found)
    n = whole(table(found).get("n"))
    return f"{shown},\u00a0n={n}" if shown and n else shown


def _interval(found: object, *, signed: bool = False) -> str:
    """Return a figure with its interval, empty if it is none."""
    values = [number(table(found).get(key)) for key in ("value", "low", "high")]
    if any(one is None for one in values):
        return ""
    digits = _digits([one for one in values if one is not None])
    value, low, high = (f"{one or 0.0:{'+' if signed else ''}.{digits}f}" for one in values)
    return f"{value} ({low} to {high})".replace(" ", "\u00a0")


def _digits(values: Sequence[float]) -> int:
    """Return the digits behind the point that three figures need."""
    largest = max(map(abs, values))
    return 4 if largest < 0.1 else 3 if largest < 10 else 1
