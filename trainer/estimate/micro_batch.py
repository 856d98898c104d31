"""Chooses how many sequences go through the model at once; the loop halves it on error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config import TrainerConfig
from trainer.data.codec import NOT_TRAINED, Example
from trainer.device.count import find_shape
from trainer.device.shapes import UnknownShapeError
from trainer.estimate.gpus import TrainingGpu
from trainer.estimate.share import share_of_card
from trainer.estimate.training import estimate_training


@dataclass(frozen=True)
class MicroBatch:
    """Sequences per forward pass, and why."""

    size: int
    reason: str


def choose_micro_batch(
    config: TrainerConfig,
    model_config: Mapping[str, Any],
    examples: Sequence[Example],
    *,
    gpu: TrainingGpu | None,
    cards: int = 1,
) -> MicroBatch:
    """Return the configured micro-batch, or for `auto` the largest that fits (all on a CPU).

    With several configured cards it is at most the share of one of them. The estimate takes the
    longest row, since a step that does not fit costs a retry. `model_config` is the base's
    `config.json`, `gpu` the one at hand or None.
    """
    share, wanted = share_of_card(config.train.batch_size, cards), config.train.micro_batch
    if wanted != "auto":
        chosen = MicroBatch(min(wanted, config.train.batch_size), "as configured")
    else:
        chosen = _largest(config, model_config, examples, gpu=gpu)
    if chosen.size <= share:
        return chosen
    return MicroBatch(share, f"so that each of {cards} cards has its share of a step")


def _largest(
    config: TrainerConfig,
    model_config: Mapping[str, Any],
    examples: Sequence[Example],
    *,
    gpu: TrainingGpu | None,
) -> MicroBatch:
    batch_size = config.train.batch_size
    if gpu is None:
        return MicroBatch(batch_size, "whole batches, as far as memory suffices")
    try:
        found = estimate_training(
            config,
            find_shape(model_config),
            gpu=gpu,
            lengths=[len(example.input_ids) for example in examples],
            loss_tokens=max(
                sum(label != NOT_TRAINED for label in example.labels) for example in examples
            ),
        )
    except UnknownShapeError as error:
        return MicroBatch(batch_size, f"whole batches until memory runs out: {error}")
    fitting = found["largest_micro_batch"]
    if fitting is None:
        return MicroBatch(1, f"not even one sequence should fit on {gpu.name}: trying")
    return MicroBatch(fitting, f"what should fit on {gpu.name}")
