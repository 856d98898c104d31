"""Lists answers to look at: the worst of a run, and those that training improved most."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from trainer.pages import html
from trainer.pages.figures import digits
from trainer.untrusted import number, table, whole

WRONG_MAX, IMPROVED_MAX = 60, 20
TEXT_MAX = 2000
"""Characters of each text; the rest is in the file."""
SNIPPET_MAX = 60
"""Characters of a text in the line that opens a row."""
BYTES_MAX = 400_000
"""Of all rows of a list, as they stand on the page: markup and letters of several bytes count."""
RIGHT = 1.0
"""The score of an answer that is wholly right."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One scored row: what was asked, the right answer, and the answers of both stages."""

    place: str
    prompt: str
    right: str
    before: str | None
    after: str | None
    score_before: float | None
    score: float
    notes: tuple[str, ...] = ()

    @property
    def gained(self) -> float:
        """By how much the score rose; 0 if there is none from before."""
        return 0.0 if self.score_before is None else self.score - self.score_before


def answer_parts(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, *, file: str
) -> list[Markup]:
    """Return the answers of `after` that are wrong and those that improved, folded.

    `file` names where all are. Nothing if there are no rows with a score.
    """
    rows = scored_rows(before, after)
    if not rows:
        return []
    wrong = sorted((one for one in rows if one.score < RIGHT), key=lambda one: one.score)
    improved = sorted((one for one in rows if one.gained > 0), key=lambda one: -one.gained)
    if all(one.after is None for one in rows):
        word = "Rows with the fewest right tokens"
        about = (
            "No answers were asked for. The score of a row is the share of the tokens of its right "
            "answer that are the likeliest ones to the model."
        )
    else:
        graded = any(0 < one.score < RIGHT for one in rows)
        word = "Answers with the lowest scores" if graded else "Wrong answers"
        about = f"{len(rows) - len(wrong):,} of {len(rows):,} answers are wholly right."
    return [
        html.paragraph(about),
        html.note("Characters that cannot be seen stand as a sign with their number."),
        *_listed(word, wrong, most=WRONG_MAX, file=file),
        *_listed("Most improved by training", improved, most=IMPROVED_MAX, file=file),
    ]


def scored_rows(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[Row]:
    """Return the rows of a result that have a score, paired with those before by row and turn."""
    earlier = dict(_documents(before))
    rows = []
    for key, one in _documents(after):
        score = number(one.get("score"))
        if score is None:
            continue
        was = table(earlier.get(key))
        rows.append(
            Row(
                place=_place(key),
                prompt=_text(one.get("prompt")) or "",
                right=_text(one.get("gold")) or "",
                before=_answer(before, was),
                after=_answer(after, one),
                score_before=number(was.get("score")),
                score=score,
                notes=tuple(_notes(one)),
            )
        )
    return rows


def _documents(
    result: Mapping[str, Any] | None,
) -> Iterator[tuple[tuple[int, int], Mapping[str, Any]]]:
    """Return the documents by row and by their place among those of the same row."""
    found = table(table(result).get("details")).get("documents")
    seen: dict[int, int] = {}
    for one in found if isinstance(found, list) else []:
        row = whole(table(one).get("row"))
        if row is None:
            continue
        seen[row] = seen.get(row, 0) + 1
        yield (row, seen[row]), one


def _place(key: tuple[int, int]) -> str:
    row, turn = key
    return f"row {row:,}" if turn == 1 else f"row {row:,}, answer {turn:,}"


def _answer(result: Mapping[str, Any] | None, document: Mapping[str, Any]) -> str | None:
    """Return the answer that was scored: held to the labels, or as the model wrote it."""
    bound = "bound" in document and table(result).get("decoding") != "free"
    return _text(document.get("bound" if bound else "free"))


def _notes(document: Mapping[str, Any]) -> Iterator[str]:
    """Return what else a kind has to say of a row, in short."""
    for key in ("library", "verdict", "error", "message"):
        found = document.get(key)
        if isinstance(found, str) and found:
            yield found
    listed = document.get("notes")
    yield from (one for one in (listed if isinstance(listed, list) else []) if isinstance(one, str))
    if document.get("stopped") is False:
        yield "did not stop by itself"


def _text(value: object) -> str | None:
    """Return a value as text: texts as they are, lists joined by commas, tables as JSON."""
    if value is None:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ", ".join(value) or "(none)"
    return json.dumps(value, ensure_ascii=False)


def _listed(title: str, rows: Sequence[Row], *, most: int, file: str) -> list[Markup]:
    """Return a folded list; what is beyond its limits is counted."""
    if not rows:
        return []
    parts: list[Markup] = []
    size = 0
    for one in rows[:most]:
        made = _row(one)
        size += len(made.encode("utf-8", "replace"))
        if parts and size > BYTES_MAX:
            break
        parts.append(made)
    left = len(rows) - len(parts)
    if left:
        parts.append(html.note(f"{left:,} more in {file}"))
    return [html.folded(f"{title} ({len(rows):,})", *parts)]


def _row(one: Row) -> Markup:
    score = digits(one.score)
    if one.score_before is not None:
        score = f"{digits(one.score_before)} → {score}"
    answered = None if one.after is None else html.shown(snippet(one.after))
    summary = [
        (f"{one.place}, score {score}{'' if answered is None else ':'}", answered),
        ("right:", html.shown(snippet(one.right))),
    ]
    parts = [
        (word, html.shown(cut(text)))
        for word, text in (
            ("prompt", one.prompt),
            ("right answer", one.right),
            ("answer before training", one.before),
            ("answer after training", one.after),
            ("notes", "; ".join(one.notes) or None),
        )
        if text is not None
    ]
    return html.render("row", summary, parts)


def snippet(text: str) -> str:
    """Return the beginning of a text as one line."""
    line = " ".join(text[: 4 * SNIPPET_MAX].split())
    return (line[: SNIPPET_MAX - 1] + "…" if len(line) >= SNIPPET_MAX else line) or "(empty)"


def cut(text: str) -> str:
    """Return the beginning of a text, with a note on how much more there is."""
    if len(text) <= TEXT_MAX:
        return text or "(empty)"
    return f"{text[:TEXT_MAX]}… ({len(text) - TEXT_MAX:,} more characters)"
