"""Lays out a comparison of two runs for a terminal of 80 columns."""

from __future__ import annotations

import json

from commands.runs.comparing.compare_runs import RunComparison, verdict
from commands.ui.output import table
from commands.ui.wrap import wrapped
from trainer.scoring.score_words import metric_words

VALUE_CHARS_MAX = 200
VERDICTS = {"first": "A is better", "second": "B is better", "unclear": "no clear change"}
OTHER_TOKENIZER = (
    "note: the right answers have other tokens in B than in A, so figures per token are left out"
)
MATCHED = {
    "words": "matched by prompt and right answer",
    "row": "matched by their numbers in the same file: the prompts are written differently",
}


def comparison_lines(found: RunComparison, width: int) -> list[str]:
    """Return the lines to print: both names, the rows, a table of figures, the differences."""
    counts = f"{len(found.first.rows)} and {len(found.second.rows)}"
    lines = [
        f"A  {found.first.name}",
        f"B  {found.second.name}",
        *wrapped(
            f"{found.rows} rows that both scored, of {counts}; {MATCHED[found.matched_by]}", width
        ),
        "",
        *_figures(found),
        *wrapped(OTHER_TOKENIZER, width, indent="  ") * (not found.same_tokenizer),
        "",
    ]
    if not found.differences:
        return [*lines, "their configs do not differ in what is trained or scored"]
    lines.append("they differ in")
    for key, values in found.differences.items():
        first, second = (_shown(value) for value in values)
        lines += wrapped(f"  {key}: {first} in A, {second} in B", width, indent="    ")
    return lines


def _figures(found: RunComparison) -> list[str]:
    """Return the table of figures, a line each."""
    return table(
        [
            {
                "figure": metric_words(name) + f" ({one.rows} rows)" * (one.rows < found.rows),
                "A": f"{one.first:.3f}",
                "B": f"{one.second:.3f}",
                "B - A": f"{one.change:+.3f}",
                "95 % interval": f"{one.low:+.3f} to {one.high:+.3f}",
                "": VERDICTS[verdict(name, one)],
            }
            for name, one in found.figures.items()
        ]
    ).splitlines()


def _shown(value: object) -> str:
    """Return a setting as it would stand in a file, cut if it is long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[:VALUE_CHARS_MAX]}…"
