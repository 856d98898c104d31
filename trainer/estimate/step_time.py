"""Turns counted work into seconds on a card: of a micro-pass, of a step, of scoring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainer.device.shapes import Shape, read_shape
from trainer.estimate.cards import rounds, sharing
from trainer.estimate.gpus import UNPACKED_BYTES, TrainingGpu
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.work import (
    Work,
    generation_work,
    pass_work,
    prompt_work,
    update_work,
)


def work_seconds(work: Work, gpu: TrainingGpu) -> float:
    """Return how long a card takes for some work.

    Products, bytes and unpacking follow each other on the card, while the processor beside it
    starts the kernels: what takes longer decides.
    """
    slow = gpu.float32_flops or gpu.flops
    on_card = (
        work.flops / gpu.flops
        + work.float32_flops / slow
        + (work.bytes + work.unpacked * UNPACKED_BYTES) / gpu.bytes_per_s
    )
    return max(on_card, work.launches * gpu.launch_s)


def step_seconds(
    config: Mapping[str, Any] | Shape, work: TrainingSetup, *, gpu: TrainingGpu, batch_size: int
) -> float:
    """Return about how long one optimizer step of `batch_size` rows takes, micro-batch by another.

    `work.tokens` is the length of a usual row with its padding, `work.loss_tokens` that of its
    answer. Several cards share the micro-batches; what they exchange comes on top. Right within
    `gpu.factor`.
    """
    shape = read_shape(config)
    if work.cards > 1:
        shared = sharing(shape, work, batch_size=batch_size, gpu=gpu)
        each = rounds(shared.portions, work.cards)
        passes = pass_work(shape, replace(work, micro_batch=min(work.micro_batch, batch_size)))
        seconds = work_seconds(update_work(shape, work) + passes * each, gpu)
        return seconds + shared.exchange_s + shared.gather_s
    whole, rest = divmod(batch_size, work.micro_batch)
    total = update_work(shape, work)
    total += pass_work(shape, work) * whole
    if rest:
        total += pass_work(shape, replace(work, micro_batch=rest))
    return work_seconds(total, gpu)


def scoring_seconds(
    shape: Shape, work: TrainingSetup, *, gpu: TrainingGpu, rows: int, generated: int
) -> float:
    """Return about how long it takes to answer `rows` prompts of `work.tokens` tokens.

    Each answer is generated token by token, for `work.micro_batch` rows at once.
    """
    at_once = min(rows, work.micro_batch)
    if not at_once:
        return 0.0
    batch = prompt_work(shape, replace(work, micro_batch=at_once))
    batch += generation_work(shape, work, rows=at_once) * generated
    return rows / at_once * (work_seconds(batch, gpu) + gpu.gather_s * (1 + generated))


def reading_seconds(shape: Shape, work: TrainingSetup, *, gpu: TrainingGpu, rows: int) -> float:
    """Return about how long a forward pass over `rows` rows takes, as for a held-out loss."""
    each = prompt_work(shape, work)
    return rows / work.micro_batch * (work_seconds(each, gpu) + gpu.gather_s)
