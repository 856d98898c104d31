"""Computes the figures of free answers, each with its interval, and their gain between two results.

Documents are what is drawn: a row, or a whole conversation with all its answers, which are not
independent of each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from trainer.scoring.interval import Interval
from trainer.scoring.measures.all_measures import figures_of_measure
from trainer.scoring.measures.measure import AnswerScore, Figure, Floats, Measure
from trainer.scoring.resampling import resampled_interval
from trainer.scoring.result import EvalResult
from trainer.scoring.shares import paired_change, wilson

FIELDS_MAX = 100
"""Parts of answers (fields of JSON) that are reported, the commonest first."""


@dataclass(frozen=True)
class ComparedAnswers:
    """Answers that every measure has compared; `documents` says which document each belongs to."""

    measures: Mapping[str, Measure]
    scores: Sequence[Mapping[str, AnswerScore]]
    documents: Sequence[int]

    def figures(self, *, resamples: int) -> dict[str, dict[str, float]]:
        """Return every figure with its interval and its `maximum`, the first measure's first."""
        found = {}
        for name, measure in self.measures.items():
            sums = self._sums(name)
            for figure_name, figure in measure.figures.items():
                interval = interval_of(
                    figure, sums, resamples=resamples, alone=len(sums) == len(self.scores)
                )
                found[figure_name] = {**asdict(interval), "maximum": figure.maximum}
        return found

    def about(self) -> dict[str, dict[str, Any]]:
        """Return what belongs to each measure's figures: its signature, and how many notes of each.

        A measure with figures by part (fields of JSON) has the share of each that is right.
        """
        found = {}
        for name, measure in self.measures.items():
            notes = Counter(note for one in self.scores for note in one[name].notes)
            found[name] = {**measure.about, "notes": dict(notes)}
            fields = _shares_by_part([one[name] for one in self.scores])
            if fields:
                found[name]["fields"] = fields
        return found

    def document_fields(self, document: int) -> dict[str, Any]:
        """Return what the result keeps of one document: its score, and that of each measure."""
        scores = self._by_document[document]
        figures = {
            name: float(np.mean([one[name].score for one in scores])) for name in self.measures
        }
        return {
            "score": next(iter(figures.values())),
            "figures": figures,
            "statistics": {
                name: np.sum([one[name].statistics for one in scores], axis=0).tolist()
                for name in self.measures
            },
            "notes": sorted(
                {note for one in scores for each in one.values() for note in each.notes}
            ),
        }

    def noted(self, note: str) -> int:
        """Return how many answers have a note from any measure."""
        return sum(any(note in one.notes for one in scores.values()) for scores in self.scores)

    @cached_property
    def _by_document(self) -> list[list[Mapping[str, AnswerScore]]]:
        found: list[list[Mapping[str, AnswerScore]]] = [[] for _ in range(max(self.documents) + 1)]
        for score, document in zip(self.scores, self.documents, strict=True):
            found[document].append(score)
        return found

    def _sums(self, name: str) -> Floats:
        """Return the statistics of a measure, [documents, statistics]."""
        rows = np.array([one[name].statistics for one in self.scores], dtype=float)
        sums: Floats = np.zeros((max(self.documents) + 1, rows.shape[1]))
        np.add.at(sums, np.array(self.documents), rows)
        return sums


def compare_answers(
    measures: Mapping[str, Measure],
    pairs: Iterable[tuple[str, str]],
    documents: Sequence[int] | None = None,
) -> ComparedAnswers:
    """Compare answers with the right ones; each is a document of its own unless others are given.

    `documents` are numbered from 0, without a gap.
    """
    scores = [
        {name: measure.compare(answer, reference) for name, measure in measures.items()}
        for answer, reference in pairs
    ]
    return ComparedAnswers(
        measures=measures,
        scores=scores,
        documents=range(len(scores)) if documents is None else documents,
    )


def interval_of(figure: Figure, sums: Floats, *, resamples: int, alone: bool = True) -> Interval:
    """Return a figure of documents with its interval; `sums` are [documents, statistics].

    `alone` says that each document has one answer: then a share has Wilson's interval. A share of
    several answers a document is resampled by documents; if it is 0 or 1, so that resampling has no
    spread, it has the interval of one answer a document.
    """
    count = len(sums)
    value = float(figure.value(sums.sum(axis=0)))
    if figure.share and (alone or value in (0.0, 1.0)):
        return wilson(round(value * count), count)
    return resampled_interval(
        lambda weights: figure.value(weights @ sums), count, resamples=resamples
    )


def gain_of_answers(before: EvalResult, after: EvalResult) -> dict[str, Any] | None:
    """Return how much higher each figure is in the second result, paired by document.

    The first measure's is at the top, all are in `figures`. None if the two were not scored on the
    same rows by the same headline.
    """
    rows = [
        {one["row"]: one["statistics"] for one in result.details["documents"]}
        for result in (before, after)
    ]
    if before.metric != after.metric or rows[0].keys() != rows[1].keys():
        return None
    numbers = sorted(rows[0])
    shared = [name for name in rows[1][numbers[0]] if name in rows[0][numbers[0]]]
    alone = all(len(one.get("answers", [one])) == 1 for one in after.details["documents"])
    figures: dict[str, dict[str, float]] = {}
    for name in shared:
        earlier, later = (
            np.array([result[number][name] for number in numbers], dtype=float) for result in rows
        )
        for figure_name, figure in figures_of_measure(name).items():
            figures[figure_name] = asdict(paired_gain(figure, earlier, later, alone=alone))
    if after.metric not in figures:
        return None
    return {"metric": after.metric, **figures[after.metric], "figures": figures}


def paired_gain(
    figure: Figure, before: Floats, after: Floats, *, resamples: int = 1000, alone: bool = True
) -> Interval:
    """Return a figure's gain between statistics [documents, statistics] of the same documents.

    As in `interval_of`, a share has an interval of its own (Newcombe's) if each document is `alone`
    with one answer; all else is resampled, under the same weights before and after.
    """
    if figure.share and alone:
        return paired_change(
            [bool(one) for one in figure.value(before)], [bool(one) for one in figure.value(after)]
        )
    return resampled_interval(
        lambda weights: figure.value(weights @ after) - figure.value(weights @ before),
        len(before),
        resamples=resamples,
    )


def _shares_by_part(scores: Sequence[AnswerScore]) -> dict[str, dict[str, float]]:
    """Return for each part of answers the share that is right, with Wilson's interval."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for score in scores:
        for part, (hits, count) in score.parts.items():
            right[part] += round(hits)
            total[part] += round(count)
    return {
        part.encode(errors="backslashreplace").decode(): {
            **asdict(wilson(right[part], count)), "n": count,
        }
        for part, count in total.most_common(FIELDS_MAX)
    }  # fmt: skip
