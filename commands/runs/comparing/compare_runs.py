"""Decides how two runs compare: which rows both scored, what changed, and in what they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from commands.runs.comparing.paired import PairedFigure, PairedRows, Part, paired_figures, ratio
from commands.runs.comparing.row_figures import FIGURES, PER_TOKEN
from commands.runs.comparing.scored_run import ScoredRow, ScoredRun
from commands.ui.errors import UsageError

LOWER = ("nats_per_token", "bits_per_token", "bits_per_byte", "perplexity")
"""The figures of which less is better."""


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """Two runs side by side over the rows that both scored.

    `matched_by` is `words` (prompt and right answer) or `row` (the number in the same file, where
    the prompts are written differently). `differences` has the settings that are not the same.
    """

    first: ScoredRun
    second: ScoredRun
    rows: int
    matched_by: str
    figures: Mapping[str, PairedFigure]
    same_tokenizer: bool
    differences: Mapping[str, tuple[object, object]]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "runs": [self.first.name, self.second.name],
            "kind": self.first.kind,
            "rows": self.rows,
            "rows_scored": [len(self.first.rows), len(self.second.rows)],
            "matched_by": self.matched_by,
            "same_tokenizer": self.same_tokenizer,
            "figures": {
                name: asdict(figure) | {"better": better(name), "verdict": verdict(name, figure)}
                for name, figure in self.figures.items()
            },
            "differences": {key: list(pair) for key, pair in self.differences.items()},
        }


def compare_runs(first: ScoredRun, second: ScoredRun) -> RunComparison:
    """Compare two runs over the rows that both scored.

    Raises:
        UsageError: they were scored by different kinds, or have no row in common.
    """
    if first.kind != second.kind:
        raise UsageError(
            f"`{first.name}` is scored as `{first.kind}`, `{second.name}` as `{second.kind}`",
            hint="give both the same `eval.kind` in run.yaml and score both again on the same rows",
        )
    matched_by, pairs = match_rows(first, second)
    if not pairs:
        raise UsageError(
            f"`{first.name}` and `{second.name}` have no scored row in common: no prompt with its "
            f"right answer is in both ({len(first.rows)} and {len(second.rows)} rows)",
            hint="both need the same held-out rows: name the same file in `data.eval`",
        )
    return RunComparison(
        first=first,
        second=second,
        rows=len(pairs),
        matched_by=matched_by,
        figures=_figures(pairs),
        same_tokenizer=not other_tokenizer(pairs),
        differences=differences(first.settings, second.settings),
    )


def match_rows(
    first: ScoredRun, second: ScoredRun
) -> tuple[str, list[tuple[ScoredRow, ScoredRow]]]:
    """Return by what the rows were matched, and the pairs, in the order of the first run.

    Rows match by their words. Where none does and both runs scored the same file, as two runs with
    different templates do, they match by their numbers in it.
    """
    theirs = _by_words(second.rows)
    pairs = [(row, theirs[key]) for key, row in _by_words(first.rows).items() if key in theirs]
    if pairs or not first.held_out or first.held_out != second.held_out:
        return "words", pairs
    numbered = _by_number(second.rows)
    pairs = [(row, numbered[key]) for key, row in _by_number(first.rows).items() if key in numbered]
    return "row", pairs


def differences(
    first: Mapping[str, object], second: Mapping[str, object]
) -> dict[str, tuple[object, object]]:
    """Return the settings in which two runs differ, each with both values."""
    return {
        key: (first.get(key), second.get(key))
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    }


def better(name: str) -> str:
    """Say whether more or less of a figure is better."""
    return "lower" if name in LOWER else "higher"


def verdict(name: str, figure: PairedFigure) -> str:
    """Return `first` or `second` for the run that is better; `unclear` if the interval holds 0."""
    if figure.low <= 0.0 <= figure.high:
        return "unclear"
    return "second" if (figure.change > 0) == (better(name) == "higher") else "first"


def other_tokenizer(pairs: Sequence[tuple[ScoredRow, ScoredRow]]) -> bool:
    """Return whether a right answer has other tokens in the second run than in the first."""
    return any(
        one.tokens is not None and other.tokens is not None and one.tokens != other.tokens
        for one, other in pairs
    )


def _figures(pairs: Sequence[tuple[ScoredRow, ScoredRow]]) -> dict[str, PairedFigure]:
    """Pair every figure that all rows of both runs have."""
    shared = {name: None for one, other in pairs for name in one.parts if name in other.parts}
    if other_tokenizer(pairs):
        shared = {name: None for name in shared if name not in PER_TOKEN}
    if not shared:
        raise UsageError(
            "the results hold no figure of single rows that both runs have",
            hint="`qft eval RUN --again` measures a run anew on this computer",
        )
    width = {name: len(part) for one, _ in pairs for name, part in one.parts.items()}
    figures = {
        name: PairedRows(
            first=[_part(one, other, name, width[name]) for one, other in pairs],
            second=[_part(other, one, name, width[name]) for one, other in pairs],
            figure=FIGURES.get(name, ratio),
        )
        for name in shared
    }
    return paired_figures(figures, [one.group for one, _ in pairs])


def _part(row: ScoredRow, other: ScoredRow, name: str, width: int) -> Part:
    """Return what a row adds to a figure: zeros, if only one of the two runs has it."""
    return row.parts[name] if name in row.parts and name in other.parts else (0.0,) * width


def _by_words(rows: Sequence[ScoredRow]) -> dict[Hashable, ScoredRow]:
    """Index rows by their words; a row that occurs twice has two entries, in order."""
    seen: Counter[str] = Counter()
    found: dict[Hashable, ScoredRow] = {}
    for row in rows:
        if row.words:
            found[row.words, seen[row.words]] = row
            seen[row.words] += 1
    return found


def _by_number(rows: Sequence[ScoredRow]) -> dict[Hashable, ScoredRow]:
    """Index rows by their number, the place among the answers of that row, and the answer."""
    seen: Counter[int] = Counter()
    found: dict[Hashable, ScoredRow] = {}
    for row in rows:
        found[row.row, seen[row.row], row.right] = row
        seen[row.row] += 1
    return found
