"""Shows what a judge said of the answers (`judge.json`): win rates, doubts, and pairs to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from markupsafe import Markup

from trainer.pages import html
from trainer.pages.bars import Bar, level_bars
from trainer.pages.browse import cut, snippet
from trainer.pages.figures import Figure
from trainer.pages.run_files import read
from trainer.untrusted import number, table, text, whole

JUDGED = "judge.json"
OTHERS: Mapping[str, str] = MappingProxyType(
    {"base_tuned": "the base", "right_tuned": "the right answers"}
)
"""With what the tuned answers are compared, by the name of the table."""
LISTED_MAX = 20
BYTES_MAX = 120_000
"""Of the pairs on the page."""
HEAD = ("tuned against", "won", "tied", "lost", "same in both orders", "length, tuned", "other")


def judged_parts(run_dir: Path) -> list[Markup]:
    """Return the parts of the section; none for a run that nobody judged.

    A pair counts for one side only if the judge chose it in both orders.
    """
    found = read(run_dir / JUDGED) or {}
    tables = {
        name: figures
        for name in OTHERS
        if number((figures := table(table(found.get("tables")).get(name))).get("win_rate"))
        is not None
    }
    if not tables:
        return []
    model = text(found.get("model"), most=200) or "a model"
    criteria = text(found.get("criteria"), most=500)
    parts = [
        html.paragraph(
            f"{model} compared the tuned answers with others, each pair in both orders."
        ),
        *([html.note(f"It was asked for: {criteria}")] if criteria else []),
        level_bars("Win rate", [_bar(name, one) for name, one in tables.items()], most=1.0),
        html.table(HEAD, [_row(name, one) for name, one in tables.items()]),
    ]
    for name, one in tables.items():
        warning = text(one.get("warning"), most=500)
        if warning:
            parts.append(html.paragraph(f"Against {OTHERS[name]}: {warning}"))
    documents = found.get("documents")
    for name in tables:
        parts += _lost(name, documents if isinstance(documents, list) else [])
    return parts


def _bar(name: str, found: Mapping[str, Any]) -> Bar:
    value = number(found.get("win_rate"), most=1.0) or 0.0
    low, high = (number(found.get(key), most=1.0) for key in ("low", "high"))
    figure = Figure(value=value, low=low, high=high)
    return Bar(
        name=f"against {OTHERS[name]}", value=value, low=low, high=high, figure=figure.words()
    )


def _row(name: str, found: Mapping[str, Any]) -> tuple[object, ...]:
    same = number(found.get("consistency"), most=1.0)
    lengths = (number(found.get(key)) for key in ("tuned_chars", "first_chars"))
    return (
        OTHERS[name],
        *(whole(found.get(key)) for key in ("wins", "ties", "losses")),
        "" if same is None else f"{same:.0%}",
        *("" if one is None else f"{one:,.0f}" for one in lengths),
    )


def _lost(name: str, documents: Sequence[object]) -> list[Markup]:
    """Return the pairs that the tuned answer lost, folded, with what the judge wrote."""
    lost = [
        document
        for one in documents
        if table((document := table(one)).get(name)).get("verdict") == "loss"
    ]
    shown: list[Markup] = []
    size = 0
    for document in lost[:LISTED_MAX]:
        made = _pair(name, document)
        size += len(made.encode("utf-8", "replace"))
        if shown and size > BYTES_MAX:
            break
        shown.append(made)
    left = len(lost) - len(shown)
    rest = [html.note(f"{left:,} more in {JUDGED}")] if left else []
    title = f"Lost against {OTHERS[name]} ({len(lost):,})"
    return [html.folded(title, *shown, *rest)] if shown else []


def _pair(name: str, document: Mapping[str, Any]) -> Markup:
    reasons = table(document.get(name)).get("reasons")
    written = [
        one for one in (reasons if isinstance(reasons, list) else []) if isinstance(one, str)
    ]
    other = "base" if name == "base_tuned" else "right"
    texts = (
        ("prompt", document.get("prompt")),
        ("right answer" if other == "right" else "answer before training", document.get(other)),
        ("answer after training", document.get("tuned")),
        ("the judge", "\n\n".join(written)),
    )
    tuned = document.get("tuned")
    return html.render(
        "row",
        [(f"row {whole(document.get('row'))}:", html.shown(snippet(str(tuned or ""))))],
        [(word, html.shown(cut(one))) for word, one in texts if isinstance(one, str)],
    )
