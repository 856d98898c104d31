"""Scores the baselines: the commonest answer, TF-IDF with regression, few-shot prompts."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, zip_longest
from typing import Any

import numpy as np

from trainer.config import TrainerConfig
from trainer.data.codec import NOT_TRAINED, Codec, Example
from trainer.data.template import Template
from trainer.scoring import metrics
from trainer.scoring.eval_set import EvalSet, LabelledTexts, indicator_matrix
from trainer.scoring.predict import MARGIN_TOKENS, predict
from trainer.scoring.result import ScoringRequest

ROWS_MAX = 50_000  # beyond it a baseline would take longer than it is worth
CONTEXT_TOKENS = 2048  # of a model that does not say how much it can read
BETWEEN = "\n\n"


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
                    held_out.labels, predicted, resamples=resamples, seed=0
                ).items()
            },
        }
        for name, predicted in answers.items()
    }


def _majority(labels: metrics.Bools, count: int) -> metrics.Bools:
    """Answer every text with the commonest answer; among equals, the first in sorted order."""
    counted = Counter(tuple(bool(cell) for cell in row) for row in labels)
    commonest = max(sorted(counted), key=lambda answer: counted[answer])
    return np.tile(np.array(commonest, dtype=bool), (count, 1))


def _regression(
    texts: Sequence[str], labels: metrics.Bools, queries: Sequence[str], *, single: bool
) -> metrics.Bools:
    """Fit TF-IDF of words and word pairs with logistic regression: one for all labels, or one each.

    Texts without a word of two letters (digits, faces) are represented by their characters;
    empty ones cannot be, and then the commonest answer is all that there is to learn.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    by_word, by_character = (
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, analyzer=analyzer)
        for analyzer in ("word", "char")
    )
    vectorizer = by_word if any(map(by_word.build_analyzer(), texts)) else by_character
    if not any(map(vectorizer.build_analyzer(), texts)):
        return _majority(labels, len(queries))
    features = vectorizer.fit_transform(texts)
    unseen = vectorizer.transform(queries)
    predicted = np.zeros((len(queries), labels.shape[1]), dtype=bool)

    def fit(target: Any) -> Any:
        with warnings.catch_warnings():  # an unfinished fit is still a baseline
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression = LogisticRegression(max_iter=300, random_state=0)
            return regression.fit(features, target).predict(unseen)

    if single:
        target = labels.argmax(axis=1)
        places = fit(target) if len(set(target)) > 1 else np.full(len(queries), target[0])
        predicted[np.arange(len(queries)), places] = True
        return predicted
    for at in range(labels.shape[1]):
        target = labels[:, at]
        predicted[:, at] = fit(target) if target.any() and not target.all() else target[0]
    return predicted


@dataclass(frozen=True, kw_only=True)
class FewShotPrompts:
    """Examples with `shots` demonstrations before them; `fewest` had room before the longest."""

    items: tuple[Example, ...]
    shots: int
    fewest: int


def few_shot_baseline(
    request: ScoringRequest, eval_set: EvalSet, training: LabelledTexts
) -> dict[str, Any]:
    """Score the base with training rows before each prompt: what prompting alone can do."""
    table = eval_set.table
    rows = list(zip(training.texts, training.written, strict=True))
    model, tokenizer = request.model, request.tokenizer
    prompts = few_shot_prompts(eval_set.items, rows, request.config, model, tokenizer)
    found = predict(
        model,
        tokenizer,
        replace(eval_set, items=prompts.items),
        kept=request.keep("few-shot-answers", prompts.items),
        on_progress=request.on_progress,
        peers=request.peers,
    )
    answers = found.bound if table.decoding == "bound" else [one.labels for one in found.free]
    right, given = (indicator_matrix(sets, table.labels) for sets in (eval_set.references, answers))
    figures = metrics.all_figures(right, given, table)
    return {"rows": prompts.shots, "fewest": prompts.fewest, **figures}


def few_shot_prompts(
    items: Sequence[Example], rows: Sequence[tuple[str, str]], config: TrainerConfig, model: Any,
    tokenizer: Any,
) -> FewShotPrompts:  # fmt: skip
    """Put `eval.shots` of the training rows (prompt, answer) before each example.

    An example leaves room in the model's context for an answer as long as the longest right one.
    """
    assert config.scored is not None
    longest = max(item.answer_length for item in items) + MARGIN_TOKENS
    room = getattr(model.config, "max_position_embeddings", None) or CONTEXT_TOKENS
    seq2seq = bool(model.config.is_encoder_decoder)
    codec = Codec.from_tokenizer(tokenizer, max_length=room - longest, seq2seq=seq2seq)
    demonstrations = select_demonstrations(rows, config.scored.shots)
    return with_demonstrations(items, demonstrations, codec, Template.parse(config.data.prompt))


def select_demonstrations(rows: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Return `count` of the rows (prompt, answer), one of each answer before a second of any.

    The choice depends on the words of the rows alone, so every run on the same rows has the same.
    """
    by_answer: dict[str, list[tuple[str, str]]] = {}
    for row in sorted(set(rows), key=_sha256):
        by_answer.setdefault(row[1].strip(), []).append(row)
    turns = zip_longest(*(by_answer[answer] for answer in sorted(by_answer)))
    return [row for row in chain.from_iterable(turns) if row is not None][:count]


def with_demonstrations(
    items: Sequence[Example],
    demonstrations: Sequence[tuple[str, str]],
    codec: Codec,
    prompt: Template,
) -> FewShotPrompts:
    """Put the demonstrations before every prompt; where not all fit, the last are left out."""
    found, fewest = [], len(demonstrations)
    for item in items:
        ids, used = _fitting(item, demonstrations, codec, prompt)
        fewest = min(fewest, used)
        answer = item.labels[-item.answer_length :]
        if codec.seq2seq:
            whole, labels = ids, answer
        else:
            whole, labels = (*ids, *answer), (NOT_TRAINED,) * len(ids) + answer
        found.append(replace(item, input_ids=whole, labels=labels, prompt_length=len(ids)))
    return FewShotPrompts(items=tuple(found), shots=len(demonstrations), fewest=fewest)


def _fitting(
    item: Example, demonstrations: Sequence[tuple[str, str]], codec: Codec, prompt: Template
) -> tuple[tuple[int, ...], int]:
    """Return the tokens of a prompt behind as many demonstrations as fit, and their number."""
    for used in range(len(demonstrations), 0, -1):
        before = "".join(f"{text}{answer}{BETWEEN}" for text, answer in demonstrations[:used])
        ids, _, length, cut = codec.assemble(codec.encode([before + item.prompt], prompt)[0], [])
        if not cut:
            return ids[:length], used
    return item.prompt_ids, 0


def _sha256(row: tuple[str, str]) -> bytes:
    return hashlib.sha256("\0".join(row).encode("utf-8", "surrogatepass")).digest()
