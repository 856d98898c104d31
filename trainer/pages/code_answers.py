"""Shows how answers that are code fared: by library, how they ended, what cannot be scored here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from trainer.pages import html
from trainer.pages.bars import Bar, level_bars
from trainer.pages.figures import figure_of
from trainer.untrusted import table, text, whole

LIBRARIES_MAX, LISTED_MAX = 40, 60
REASON_MAX = 300


def code_parts(result: Mapping[str, Any], *, file: str) -> list[Markup]:
    """Return the parts on one stage, whose result lies in `file`.

    Raises what looking into a document does that is not built as the trainer writes it.
    """
    details = result["details"]
    problems, scorable = whole(details["problems"]), whole(details["scorable"])
    parts = [
        html.paragraph(
            f"{scorable:,} of {problems:,} problems can be scored here: their own solutions pass."
        ),
        level_bars("pass@1 by library", _bars(details["libraries"]), most=1.0),
        html.table(
            ("an answer", "problems"), list(table(details["verdicts"]).items())[:LISTED_MAX]
        ),
    ]
    left_out = details["not_scorable"]
    if left_out:
        rows = [
            (one["row"], text(one["library"]), text(one["reason"], most=REASON_MAX))
            for one in left_out[:LISTED_MAX]
        ]
        more = len(left_out) - len(rows)
        rest = [html.note(f"{more:,} more in {file}")] if more else []
        title = f"Not scorable here ({len(left_out):,})"
        head = ("row", "library", "how its own solution ended")
        parts.append(html.folded(title, html.table(head, rows), *rest))
    return parts


def _bars(libraries: Mapping[str, Mapping[str, Any]]) -> list[Bar]:
    bars = []
    for name, found in list(libraries.items())[:LIBRARIES_MAX]:
        figure = figure_of(found["pass_at_1"])
        counts = f"{found['passed']} of {found['scorable']}"
        if figure is None:
            bars.append(Bar(name=name, value=None, figure="not scorable"))
        else:
            words = f"{counts}, {figure.words()}"
            bars.append(
                Bar(name=name, value=figure.value, low=figure.low, high=figure.high, figure=words)
            )
    return bars
