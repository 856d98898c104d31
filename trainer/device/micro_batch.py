"""How many sequences go through the model at once: as many as fit, and the loop halves on error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config import TrainerConfig
from trainer.data.codec import NOT_TRAINED, Example
from trainer.device.memory import Gpu, foretell
from trainer.device.shapes import UnknownShapeError


@dataclass(frozen=True)
class Portion:
    """Sequences per forward pass, and why."""

    size: int
    reason: str


def choose_portion(
    config: TrainerConfig,
    described: Mapping[str, Any],
    examples: Sequence[Example],
    *,
    gpu: Gpu | None,
) -> Portion:
    """Return the configured micro-batch, or for `auto` the largest that fits (all on a CPU).

    The estimate looks at the longest row, since a step that does not fit costs a retry. `described`
    is the base's `config.json`, `gpu` the card at hand or None.
    """
    batch_size, wanted = config.train.batch_size, config.train.micro_batch
    if wanted != "auto":
        return Portion(min(wanted, batch_size), "as configured")
    if gpu is None:
        return Portion(batch_size, "whole batches: a CPU has memory enough")
    try:
        found = foretell(
            config,
            described,
            gpu=gpu,
            lengths=[len(example.input_ids) for example in examples],
            supervised=max(
                sum(label != NOT_TRAINED for label in example.labels) for example in examples
            ),
        )
    except UnknownShapeError as error:
        return Portion(batch_size, f"whole batches until memory runs out: {error}")
    fitting = found["largest_micro_batch"]
    if fitting is None:
        return Portion(1, f"not even one sequence should fit on {gpu.name}: trying")
    return Portion(fitting, f"what should fit on {gpu.name}")
