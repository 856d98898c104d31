"""What free answers are compared with: the commonest, the empty, and a training row's answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.scoring.answer_figures import compare_answers
from trainer.scoring.measures.measure import Measure
from trainer.scoring.measures.words import words_and_characters

ROWS_MAX = 50_000  # beyond it a baseline would take longer than it is worth
CHARACTERS_MAX = 10_000  # of a prompt, its end: the words before it are the template's more often
QUERIES_AT_ONCE = 64  # against all training rows: 26 MB of similarities

Pair = tuple[str, str]
"""A prompt and its answer."""


def score_answer_baselines(
    training: Sequence[Pair],
    held_out: Sequence[Pair],
    measures: Mapping[str, Measure],
    *,
    documents: Sequence[int] | None = None,
    resamples: int,
) -> dict[str, Any]:
    """Return the figures of `commonest`, `empty` and `nearest`, which learn from `training` alone.

    `nearest` answers as the training row whose prompt is most like the prompt in question.
    """
    learnt = list(training[:ROWS_MAX])
    prompts = [prompt for prompt, _ in held_out]
    answers = {
        "commonest": [commonest_answer(learnt)] * len(held_out),
        "empty": [""] * len(held_out),
        "nearest": nearest_answers(learnt, prompts),
    }
    found = {}
    for name, given in answers.items():
        pairs = zip(given, (right for _, right in held_out), strict=True)
        compared = compare_answers(measures, pairs, documents)
        found[name] = {"rows": len(learnt), "figures": compared.figures(resamples=resamples)}
    found["commonest"]["answer"] = answers["commonest"][0] if held_out else ""
    return found


def commonest_answer(rows: Sequence[Pair]) -> str:
    """Return the commonest answer; among equals, the first in sorted order; empty without rows."""
    counted = Counter(answer for _, answer in rows)
    return min(counted, key=lambda answer: (-counted[answer], answer), default="")


def nearest_answers(rows: Sequence[Pair], prompts: Sequence[str]) -> list[str]:
    """Return for each prompt the answer of the row whose prompt is most like it.

    Alike is what has the same words, by TF-IDF (cosine): in scripts without spaces the same
    characters, and so where no text has a word. The commonest answer stands in where nothing is
    shared.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    common = commonest_answer(rows)
    texts = [prompt[-CHARACTERS_MAX:] for prompt, _ in rows]
    queries = [prompt[-CHARACTERS_MAX:] for prompt in prompts]
    by_word = any(map(words_and_characters, texts))
    if not by_word and not any(texts):
        return [common] * len(prompts)
    vectorizer = TfidfVectorizer(
        sublinear_tf=True, analyzer=words_and_characters if by_word else "char"
    )
    features = vectorizer.fit_transform(texts)
    found: list[str] = []
    for at in range(0, len(queries), QUERIES_AT_ONCE):
        likeness = vectorizer.transform(queries[at : at + QUERIES_AT_ONCE]) @ features.T
        for row in likeness.toarray():
            best = int(row.argmax())
            found.append(rows[best][1] if row[best] > 0 else common)
    return found
