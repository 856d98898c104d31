"""Compares a training with the same one in the loop of the published articles; pure arithmetic.

That loop is transformers' Trainer of 2023 with PEFT: attention that computes all scores, no
checkpointing, the logits of all tokens in float32, and `prepare_model_for_kbit_training`, which
makes embeddings, head and norms float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainer.device.shapes import Shape, read_shape
from trainer.estimate.loops import HF_2023
from trainer.estimate.memory import Memory, estimate
from trainer.estimate.setup import TrainingSetup
from trainer.method_table import Quant

CHECKPOINTING = "gradient checkpointing"
ATTENTION = "memory-efficient attention"
LOGITS = "logits of the answers only"
EMBEDDINGS = "embeddings not in float32"
SMALL_RANK = 4
"""The rank with which the article's training fitted; its rows were shorter than the limit, too."""


@dataclass(frozen=True, kw_only=True)
class Saving:
    """One setting of our trainer, and by how many bytes it alone lowers the published need."""

    name: str
    bytes: float


@dataclass(frozen=True, kw_only=True)
class AsPublished:
    """What a training needs in the published loop and in ours, in bytes on the card."""

    tokens: int
    micro_batch: int
    published: Memory
    ours: Memory
    savings: tuple[Saving, ...]
    small_rank: Memory
    """In the published loop with a rank of `SMALL_RANK`."""
    longest: int | None
    """The longest rows, in tokens, that fit the card in the published loop; None if none do."""

    def fits(self, memory: Memory, card_bytes: float) -> bool:
        """Tell whether a need fits a card for sure: with the upper end of its range."""
        return memory.need.high <= card_bytes


def as_published(
    config: Mapping[str, Any] | Shape, work: TrainingSetup, *, card_bytes: float
) -> AsPublished:
    """Return the needs of `work`, a setup of our loop, in both loops.

    Each saving is found by switching that setting alone in the published loop.

    Raises:
        UnknownShapeError: the sizes of the model are not known.
    """
    shape = read_shape(config)
    published = published_setup_of(work)
    there = estimate(shape, published)
    switched = {
        CHECKPOINTING: replace(published, checkpointing=True),
        ATTENTION: replace(published, loop=replace(published.loop, eager=False)),
        LOGITS: replace(published, loss_tokens=work.loss_tokens or work.tokens, loop=replace(
            published.loop, head_bytes=work.loop.head_bytes,
            head_chunk_bytes=work.loop.head_chunk_bytes,
        )),
        EMBEDDINGS: replace(published, loop=replace(published.loop, upcast=False)),
    }  # fmt: skip
    savings = tuple(
        Saving(name=name, bytes=there.reserved - estimate(shape, one).reserved)
        for name, one in switched.items()
    )
    return AsPublished(
        tokens=work.tokens,
        micro_batch=work.micro_batch,
        published=there,
        ours=estimate(shape, work),
        savings=savings,
        small_rank=estimate(shape, replace(published, r=min(work.r, SMALL_RANK))),
        longest=_longest(shape, published, card_bytes),
    )


def published_setup_of(work: TrainingSetup) -> TrainingSetup:
    """Return the same training in the published loop."""
    loop = replace(HF_2023, upcast=work.quant is not Quant.NONE)
    return replace(work, loop=loop, checkpointing=False, loss_tokens=None)


def _longest(shape: Shape, work: TrainingSetup, card_bytes: float) -> int | None:
    """Return the most tokens, up to those of `work`, whose likely need fits a card."""

    def fits(tokens: int) -> bool:
        return estimate(shape, replace(work, tokens=tokens)).reserved <= card_bytes

    if not fits(1):
        return None
    low, high = 1, work.tokens
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
