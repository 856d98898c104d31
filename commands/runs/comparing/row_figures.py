"""What one scored row adds to each figure of its kind: read from a result's JSON, and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from commands.runs.comparing import corpus_scores
from commands.runs.comparing.paired import Part
from infra.untrusted import number, table, text, texts

LABELS_MAX = 1000
MEASURES: Mapping[str, Mapping[str, tuple[tuple[int, ...], ...]]] = MappingProxyType(
    {
        "chrf": {"chrf": tuple((at,) for at in range(corpus_scores.CHRF_SUMS))},
        "bleu": {"bleu": tuple((at,) for at in range(corpus_scores.BLEU_SUMS))},
        # Sums of leaves (right, found, wanted) and of answers (exact, readable, all); F1 is twice
        # the right ones over the other two.
        "json": {
            "json": ((0, 0), (1, 2)), "json_precision": ((0,), (1,)), "json_recall": ((0,), (2,)),
            "json_exact": ((3,), (5,)), "json_readable": ((4,), (5,)),
        },
    }
)  # fmt: skip
"""For measures that are no mean: the sums of each figure, by the places of what is added up."""
FIGURES: Mapping[str, Callable[[Sequence[float]], float]] = MappingProxyType(
    {"chrf": corpus_scores.chrf, "bleu": corpus_scores.bleu}
)
"""The figures that are no ratio of two sums."""
PER_TOKEN = ("nats_per_token", "token_accuracy")
"""The figures of a loss that compare models of the same tokenizer only."""


@dataclass(frozen=True, kw_only=True)
class LossRow:
    """The loss of one row of the file: its tokens, and what it adds to each figure."""

    tokens: int
    parts: Mapping[str, Part]


def row_parts(result: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Part]:
    """Return the figures that a row of `details["documents"]` has, each with its two parts."""
    kind = text(result.get("kind")) or ""
    return PARTS.get(kind, _score)(result, document)


def _score(result: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Part]:
    """Return the mean of the rows' scores, under the name that the result gives it."""
    score = number(document.get("score"), most=1.0)
    name = text(result.get("metric"), most=60) or "score"
    return {} if score is None else {name: (score, 1.0)}


def _answer(_result: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Part]:
    """Return the figures of free answers, from the sums that each measure keeps of the row."""
    found: dict[str, Part] = {}
    for name, value in table(document.get("statistics")).items():
        sums = numbers(value)
        if not sums:
            continue
        for figure, places in MEASURES.get(name, {name: ((0,), (1,))}).items():
            if all(at < len(sums) for group in places for at in group):  # else it is none of ours
                found[figure] = tuple(sum(sums[at] for at in group) for group in places)
    return found


def numbers(value: object) -> list[float]:
    """Return a list of finite numbers; anything else as an empty one."""
    found = [number(one) for one in value] if isinstance(value, list) else []
    return [one for one in found if one is not None] if None not in found else []


def _choice(_result: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Part]:
    """Return the accuracy by each way to choose an option."""
    found = _score({"metric": "accuracy"}, document)
    for name, value in table(document.get("figures")).items():
        hit = number(value, most=1.0)
        if hit is not None:
            found[f"accuracy by {name}"] = (hit, 1.0)
    return found


def _label(_result: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Part]:
    """Return the accuracy; results of an earlier qft have no `score`, but both answers."""
    scored = _score({"metric": "accuracy"}, document)
    right, given = _sets(document)
    if scored or right is None or given is None:
        return scored
    return {"accuracy": (float(right == given), 1.0)}


def _multilabel(result: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Part]:
    """Return how many sets are right, and the micro F1 of labels: 2 TP / (2 TP + FP + FN).

    The sets that are kept are those of bound answers, so free ones have no F1 here.
    """
    found = {}
    if part := _label(result, document).get("accuracy"):
        found["exact_match"] = part
    right, given = _sets(document)
    if right is not None and given is not None and result.get("decoding") != "free":
        both = 2.0 * len(right & given)
        found["micro_f1"] = (both, both + len(right ^ given))
    return found


def loss_parts(result: Mapping[str, Any]) -> dict[int, LossRow]:
    """Return what each row of the file adds to the figures of the loss; empty without a loss.

    A row whose loss was no number is left out, and so are bytes that are not known.
    """
    columns = table(table(result.get("loss")).get("rows"))
    names = ("row", "nats", "text_nats", "tokens", "right", "bytes")
    listed = [columns.get(name) for name in names]
    if not all(isinstance(one, list) for one in listed):
        return {}
    found = {}
    for values in zip(*listed, strict=False):
        row, nats, text_nats, tokens, right, size = (number(one) for one in values)
        if row is None or nats is None or not tokens:
            continue
        parts: dict[str, Part] = {"nats_per_token": (nats, tokens)}
        if text_nats is not None and size:
            parts["bits_per_byte"] = (text_nats / math.log(2), size)
        if right is not None:
            parts["token_accuracy"] = (right, tokens)
        found[int(row)] = LossRow(tokens=int(tokens), parts=parts)
    return found


def _no_figure(_result: Mapping[str, Any], _document: Mapping[str, Any]) -> dict[str, Part]:
    """Return nothing: of `kind: loss`, the loss says all."""
    return {}


def _sets(document: Mapping[str, Any]) -> tuple[set[str] | None, set[str] | None]:
    """Return the labels that are right and those that were given; None for what is no list."""
    right, given = (texts(document.get(key), most=LABELS_MAX) for key in ("gold", "bound"))
    return right if right is None else set(right), given if given is None else set(given)


PARTS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Part]]] = (
    MappingProxyType(
        {
            "label": _label,
            "multilabel": _multilabel,
            "loss": _no_figure,
            "text": _answer,
            "chat": _answer,
            "choice": _choice,
        }
    )
)
"""For the kinds whose rows have more than a `score`, what else they have."""
