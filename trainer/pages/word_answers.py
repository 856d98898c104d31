"""Shows how answers in words were measured: signatures, notes, and the fields of JSON answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from trainer.pages import html
from trainer.pages.bars import Bar, level_bars
from trainer.pages.figures import figure_of, name_of
from trainer.untrusted import number, table, text, whole

MEASURES_MAX, FIELDS_MAX = 30, 100


def word_parts(result: Mapping[str, Any], *, file: str) -> list[Markup]:
    """Return the parts on one stage: how many answers ended, and each measure's own facts.

    `file` has more fields than are shown.
    """
    details = table(result.get("details"))
    parts: list[Markup] = []
    stopped, unreadable = number(result.get("stop_rate")), whole(result.get("parse_failures"))
    if stopped is not None:
        words = f"{stopped:.1%} of the answers stopped by themselves"
        words += f"; {unreadable:,} could not be read" if unreadable else ""
        parts.append(html.paragraph(f"{words}."))
    about = []
    for name, found in [*table(details.get("measures")).items()][:MEASURES_MAX]:
        facts = {key: one for key, one in table(found).items() if key not in {"notes", "fields"}}
        notes = [f"{note}: {count}" for note, count in table(table(found).get("notes")).items()]
        words = ", ".join([f"{key} {text(str(one), most=200)}" for key, one in facts.items()])
        about.append((name_of(name), words, "; ".join(notes)))
        parts += _fields(table(table(found).get("fields")), file)
    if any(facts or notes for _, facts, notes in about):
        parts.append(html.folded("How it was measured", html.table(("", "by", "answers"), about)))
    return parts


def _fields(fields: Mapping[str, Any], file: str) -> list[Markup]:
    """Return bars of the fields of JSON answers, each with the share that is right."""
    bars = []
    for name, found in list(fields.items())[:FIELDS_MAX]:
        figure = figure_of(found)
        if figure is not None:
            bars.append(
                Bar(
                    name=text(name, most=60) or "",
                    value=figure.value,
                    low=figure.low,
                    high=figure.high,
                    figure=figure.words(),
                )
            )
    if not bars:
        return []
    more = len(fields) - FIELDS_MAX
    return [
        html.heading("Fields of the answers that are right"),
        level_bars("fields", bars, most=1.0),
        *([html.note(f"{more:,} more in {file}")] if more > 0 else []),
    ]
