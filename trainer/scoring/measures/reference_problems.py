"""Says which right answers a measure cannot compare with anything: no JSON, no number at all."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.scoring.measures.json_text import DEPTH_MAX, read_json
from trainer.scoring.measures.number_text import last_number
from trainer.scoring.measures.words import CHARACTERS_MAX


def reference_problems(
    rows: Sequence[tuple[int, str]], measures: Sequence[str]
) -> list[tuple[int, str]]:
    """Return the problems of numbered right answers, each with its row and what to do.

    A single answer without a number may be right (`none`); a file in which no answer has one was
    not made for `number`, and its first row is named.
    """
    found = []
    if "json" in measures:
        found += [(row, problem) for row, text in rows if (problem := json_problem(text))]
    if "number" in measures and rows and all(last_number(text) is None for _, text in rows):
        found.append((rows[0][0], no_number_problem(len(rows))))
    return found


def json_problem(text: str) -> str | None:
    """Return why a right answer cannot be compared as JSON; None if it can."""
    value = read_json(text)
    if value is None:
        why = "is not JSON"
        if len(text) > CHARACTERS_MAX:
            why = f"has more than {CHARACTERS_MAX:,} characters"
        elif text.count("[") + text.count("{") > DEPTH_MAX:
            why = f"is not JSON, or is nested deeper than {DEPTH_MAX}"
        return (
            f"the right answer {why}, and `eval.measures` has `json`; correct the row, or take "
            "`json` out"
        )
    if value.doubled_keys:
        return (
            "the right answer has a key twice in one object, and `eval.measures` has `json`; keep "
            "one of them"
        )
    return None


def no_number_problem(count: int) -> str:
    """Return what to say where none of the right answers has a number."""
    return (
        f"no right answer has a number ({count} looked at), and `eval.measures` has `number`; "
        "take `number` out, or score other rows"
    )
