"""Computes the figures of a loss with their intervals, and how two losses differ; pure.

A document is a row of the file: a conversation is one, however many answers it has. Each figure is
a ratio of sums over documents, and its interval is that of the ratio under resampled documents; the
difference of two models is taken under the same weights for both, so that it is paired.

Perplexity depends on the tokenizer (fewer, longer tokens give a higher one): only bits per byte
compare models of different tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from trainer.scoring.interval import Interval
from trainer.scoring.resampling import Floats, resampled_interval
from trainer.scoring.score_words import HEADLINE
from trainer.scoring.shares import wilson

LARGEST = 700.0
"""Nats per token beyond which a perplexity is no number that a file can hold."""


@dataclass(frozen=True, kw_only=True)
class RowLoss:
    """The loss of one row: sums over its targets.

    `nats` is over all `tokens`, of which `right` are the most probable one; `text_nats` is over
    those that are text, which have `bytes` in UTF-8, None if that is not known. Both sums are None
    where the model gave no number (NaN).
    """

    row: int
    nats: float | None
    text_nats: float | None
    tokens: int
    right: int
    bytes: int | None

    def plus(self, other: RowLoss) -> RowLoss:
        """Return the sums of two examples of the same row."""
        return RowLoss(
            row=self.row,
            nats=_sum(self.nats, other.nats),
            text_nats=_sum(self.text_nats, other.text_nats),
            tokens=self.tokens + other.tokens,
            right=self.right + other.right,
            bytes=_sum(self.bytes, other.bytes),
        )


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """The sums of all documents, [documents] each; `bytes` is None if one has none."""

    nats: Floats
    text_nats: Floats
    tokens: Floats
    right: Floats
    bytes: Floats | None


def by_document(rows: Sequence[RowLoss]) -> list[RowLoss]:
    """Return one sum for each row of the file, in order of the first example of each."""
    found: dict[int, RowLoss] = {}
    for one in rows:
        found[one.row] = found[one.row].plus(one) if one.row in found else one
    return list(found.values())


def loss_figures(rows: Sequence[RowLoss], *, resamples: int) -> dict[str, Any]:
    """Return every figure with its interval, and the sums of each document that they come from.

    `figures` has nats and bits per target token, perplexity, bits per byte of text (None where the
    bytes are not known), and the share of targets that are the most probable token. Documents
    without a number are counted in `not_numbers` and left out; where none has one, all figures are
    None.
    """
    documents = by_document(rows)
    numbers = [one for one in documents if one.nats is not None]
    sums = _sums(numbers)
    figures = {
        name: asdict(_interval(name, figure, sums, resamples=resamples))
        if figure is not None and numbers
        else None
        for name, figure in _figures(sums).items()
    }
    return {
        "documents": len(documents),
        "tokens": sum(one.tokens for one in documents),
        "bytes": None if sums.bytes is None else int(sums.bytes.sum()),
        "not_numbers": len(documents) - len(numbers),
        "figures": figures,
        "rows": {
            name: [getattr(one, name) for one in documents]
            for name in ("row", "nats", "text_nats", "tokens", "right", "bytes")
        },
    }


def loss_changes(
    before: Mapping[str, Any], after: Mapping[str, Any], *, resamples: int
) -> dict[str, Any] | None:
    """Return how much more each figure is `after` than `before`, paired, with its interval.

    Both are results of `loss_figures`. None if they are not of the same targets.
    """
    both = [_documents(one) for one in (before, after)]
    counts = [{row: one.tokens for row, one in documents.items()} for documents in both]
    if counts[0] != counts[1]:
        return None
    common = [
        row
        for row, one in both[0].items()
        if one.nats is not None and both[1][row].nats is not None
    ]
    if not common:
        return None
    was, now = (_figures(_sums([documents[row] for row in common])) for documents in both)
    return {
        name: None if first is None or second is None else asdict(
            resampled_interval(_difference(first, second), len(common), resamples=resamples)
        )
        for (name, first), second in zip(was.items(), now.values(), strict=True)
    }  # fmt: skip


Number = TypeVar("Number", int, float)
Figure = Callable[[Floats], Floats]
"""Takes the weights of documents [resamples, documents] and returns a figure for each."""


def _figures(sums: _Sums) -> Mapping[str, Figure | None]:
    def nats_per_token(weights: Floats) -> Floats:
        return (weights @ sums.nats) / (weights @ sums.tokens)

    def bits_per_byte(weights: Floats) -> Floats:
        assert sums.bytes is not None
        return (weights @ sums.text_nats) / (math.log(2) * (weights @ sums.bytes))

    return MappingProxyType(
        {
            HEADLINE: nats_per_token,
            "bits_per_token": lambda weights: nats_per_token(weights) / math.log(2),
            "perplexity": lambda weights: np.exp(np.minimum(nats_per_token(weights), LARGEST)),
            "bits_per_byte": None if sums.bytes is None else bits_per_byte,
            "token_accuracy": lambda weights: (weights @ sums.right) / (weights @ sums.tokens),
        }
    )


def _interval(name: str, figure: Figure, sums: _Sums, *, resamples: int) -> Interval:
    """Return a figure with its interval.

    Where all tokens are right, or none, resampling has no interval: then it is Wilson's, with each
    document as one trial, since the tokens of a document are not independent.
    """
    found = resampled_interval(figure, len(sums.nats), resamples=resamples)
    if name == "token_accuracy" and found.value in (0.0, 1.0):
        return wilson(len(sums.nats) if found.value else 0, len(sums.nats))
    return found


def _difference(first: Figure, second: Figure) -> Figure:
    return lambda weights: second(weights) - first(weights)


def _sums(documents: Sequence[RowLoss]) -> _Sums:
    sizes = [one.bytes for one in documents if one.bytes is not None]
    lossless = len(sizes) == len(documents) and sum(sizes) > 0
    return _Sums(
        nats=np.array([one.nats for one in documents], dtype=np.float64),
        text_nats=np.array([one.text_nats for one in documents], dtype=np.float64),
        tokens=np.array([one.tokens for one in documents], dtype=np.float64),
        right=np.array([one.right for one in documents], dtype=np.float64),
        bytes=np.array(sizes, dtype=np.float64) if lossless else None,
    )


def _documents(loss: Mapping[str, Any]) -> dict[int, RowLoss]:
    """Return the documents of a result of `loss_figures` by their rows."""
    columns = loss["rows"]
    return {
        values[0]: RowLoss(**dict(zip(columns, values, strict=True)))
        for values in zip(*columns.values(), strict=True)
    }


def _sum(first: Number | None, second: Number | None) -> Number | None:
    return None if first is None or second is None else first + second
