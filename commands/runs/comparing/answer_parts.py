"""What a row answered in words, or with one of its options, adds to each figure of two runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from commands.runs.comparing.paired import Part
from infra.untrusted import number, table

MEANS = ("exact", "tokens_f1", "rouge_l", "contains", "number")
"""Measures whose figure is a mean: a row keeps the sum of its scores, and their number."""
OF_CORPORA = ("chrf", "bleu")
"""Measures whose figure is no ratio of sums: of them, rows have scores of their own."""
JSON_STATISTICS = 6


def answer_parts(_result: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Part]:
    """Return the parts of each measure of a row, or of a conversation, by the names of figures.

    chrF and BLEU are compared by the mean of the rows' own scores (`chrf_row_mean`, 0 to 100),
    which is not the figure of the corpus.
    """
    statistics = table(document.get("statistics"))
    found: dict[str, Part] = {}
    for name in MEANS:
        part = _numbers(statistics.get(name), 2)
        if part:
            found[name] = (part[0], part[1])
    for name in OF_CORPORA:
        score = number(table(document.get("figures")).get(name), most=1.0)
        if score is not None:
            found[f"{name}_row_mean"] = (100 * score, 1.0)
    counts = _numbers(statistics.get("json"), JSON_STATISTICS)
    if counts:
        right, given, wanted, exact, readable, answers = counts
        found |= {
            "json": (2 * right, given + wanted),
            "json_precision": (right, given),
            "json_recall": (right, wanted),
            "json_exact": (exact, answers),
            "json_readable": (readable, answers),
        }
    return found


def choice_parts(_result: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Part]:
    """Return whether a row's option is right: as the headline counts, and each way of scoring."""
    scores = {"accuracy": document.get("score")}
    scores |= {
        name: table(document.get("figures")).get(name) for name in ("sum", "per_byte", "letter")
    }
    read = {name: number(one, most=1.0) for name, one in scores.items()}
    return {name: (one, 1.0) for name, one in read.items() if one is not None}


def _numbers(values: object, count: int) -> list[float]:
    """Return a list of so many numbers; an empty one for anything else."""
    if not isinstance(values, list) or len(values) != count:
        return []
    read = [number(one) for one in values]
    return [one for one in read if one is not None] if None not in read else []
