"""What a result must beat to mean anything: the commonest answer, and TF-IDF with regression."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trainer.scoring import metrics

ROWS_MAX = 50_000  # beyond it a baseline would take longer than it is worth


@dataclass(frozen=True, kw_only=True)
class LabelledTexts:
    """Texts with their labels as booleans [texts, labels], and as they are written, if needed."""

    texts: Sequence[str]
    labels: metrics.Bools
    written: Sequence[str] = ()


def baselines(
    learn: LabelledTexts, held_out: LabelledTexts, *, single: bool, resamples: int
) -> dict[str, Any]:
    """Return every figure with its interval for `majority` and `tfidf_regression`.

    Both learn from `learn` alone. The same seed gives the same figures.
    """
    texts, labels = learn.texts[:ROWS_MAX], learn.labels[:ROWS_MAX]
    answers = {
        "majority": _majority(labels, len(held_out.texts)),
        "tfidf_regression": _regression(texts, labels, held_out.texts, single=single),
    }
    return {
        name: {
            "rows": len(texts),
            "figures": {
                figure: asdict(interval)
                for figure, interval in metrics.bootstrap(
                    held_out.labels, answered, resamples=resamples, seed=0
                ).items()
            },
        }
        for name, answered in answers.items()
    }


def _majority(labels: metrics.Bools, count: int) -> metrics.Bools:
    """Answer every text with the commonest answer; among equals, the first in sorted order."""
    counted = Counter(tuple(bool(cell) for cell in row) for row in labels)
    label_sets_by_frequency = max(sorted(counted), key=lambda answer: counted[answer])
    return np.tile(np.array(label_sets_by_frequency, dtype=bool), (count, 1))


def _regression(
    texts: Sequence[str], labels: metrics.Bools, asked: Sequence[str], *, single: bool
) -> metrics.Bools:
    """Fit words and word pairs, then logistic regression: one of all labels, or one per label.

    Texts without a word of two letters (digits, faces) are told apart by their characters, and
    empty ones not at all: then the commonest answer is all that there is to learn.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words, characters = (
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, analyzer=analyzer)
        for analyzer in ("word", "char")
    )
    vectorizer = words if any(map(words.build_analyzer(), texts)) else characters
    if not any(map(vectorizer.build_analyzer(), texts)):
        return _majority(labels, len(asked))
    known = vectorizer.fit_transform(texts)
    unknown = vectorizer.transform(asked)
    answered = np.zeros((len(asked), labels.shape[1]), dtype=bool)

    def fit(target: Any) -> Any:
        with warnings.catch_warnings():  # an unfinished fit is still a baseline
            warnings.simplefilter("ignore", ConvergenceWarning)
            return (
                LogisticRegression(max_iter=300, random_state=0).fit(known, target).predict(unknown)
            )

    if single:
        target = labels.argmax(axis=1)
        places = fit(target) if len(set(target)) > 1 else np.full(len(asked), target[0])
        answered[np.arange(len(asked)), places] = True
        return answered
    for at in range(labels.shape[1]):
        target = labels[:, at]
        answered[:, at] = fit(target) if target.any() and not target.all() else target[0]
    return answered
