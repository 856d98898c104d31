"""Estimates memory, micro-batch and time of a whole training from its config, for `qft plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from trainer.config import PrecisionChoice, TrainerConfig
from trainer.device.shapes import Shape, read_shape
from trainer.estimate.gpus import TrainingGpu
from trainer.estimate.memory import estimate, largest_micro_batch
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.weights import adapter_parameters
from trainer.method_table import MethodKind

DORA_TIME = 1.26  # of a step over LoRA's, PEFT's own comparison on unquantised weights
HOURS_FACTOR = 3.0  # published runs of one kind on one card differ by that much


def step_seconds(
    config: Mapping[str, Any] | Shape, work: TrainingSetup, *, gpu: TrainingGpu, batch_size: int
) -> float:
    """Return about how long one optimizer step takes: work over what such a training reaches.

    Forward and backward through frozen weights cost 2 FLOP each per weight and token, recomputing
    another 2; the head costs the same for supervised tokens. Of experts, those count that a token
    chooses. Right within a factor of HOURS_FACTOR.
    """
    shape = read_shape(config)
    passes = (6 if work.checkpointing else 4) * (DORA_TIME if work.dora else 1.0)
    tokens = work.tokens * batch_size
    heads = batch_size * (work.tokens if work.loss_tokens is None else work.loss_tokens)
    head = shape.vocabulary * shape.hidden
    return passes * (shape.active_parameters * tokens + head * heads) / gpu.flops


def estimate_training(
    config: TrainerConfig,
    model: Mapping[str, Any] | Shape,
    *,
    gpu: TrainingGpu,
    lengths: Sequence[int] | None = None,
    loss_tokens: int | None = None,
) -> dict[str, Any]:
    """Return memory, micro-batch and time of a run as plain JSON, for `qft plan`.

    `lengths` are the token counts of the rows if they are known, else every row is taken to be
    `max_length` long; `loss_tokens` is the longest answer, else all tokens are taken to be learnt.
    """
    train, method, shape = config.train, config.method, read_shape(model)
    longest = max(lengths) if lengths else train.max_length
    usual = sum(lengths) / len(lengths) if lengths else train.max_length
    chosen = train.precision
    work = TrainingSetup(
        tokens=longest,
        quant=method.storage,
        double_quant=method.double_quant,
        r=method.r,
        targets=method.target_names,
        dropout=method.dropout > 0,
        optimizer=method.optimizer,
        precision=gpu.precision if chosen is PrecisionChoice.AUTO else chosen,
        checkpointing=train.gradient_checkpointing is not False,
        loss_tokens=loss_tokens if config.data.loss_on == "completion" else None,
        dora=method.kind.dora,
        bases=method.combined,
        miss=method.kind is MethodKind.MISS,
        new_tokens=bool(config.model.new_tokens),
        saved=method.saved_matrices,
    )
    fitting = largest_micro_batch(
        shape, work, memory_bytes=gpu.memory_bytes, batch_size=train.batch_size
    )
    wanted = fitting if train.micro_batch == "auto" else train.micro_batch
    peak = estimate(shape, replace(work, micro_batch=wanted or 1))
    usual_work = replace(work, tokens=max(1, round(usual)))
    seconds = step_seconds(shape, usual_work, gpu=gpu, batch_size=train.batch_size)
    steps = _steps(config, None if lengths is None else len(lengths))
    return {
        "gpu": gpu.name,
        "gpu_bytes": gpu.memory_bytes,
        "parameters": shape.parameters,
        "active_parameters": shape.active_in_all,
        "trained_parameters": adapter_parameters(shape, work),
        "tokens": longest,
        "micro_batch": wanted,
        "largest_micro_batch": fitting,
        "fits": fitting is not None and wanted is not None and wanted <= fitting,
        "memory_bytes": asdict(peak),
        "step_seconds": seconds,
        "steps": steps,
        "hours": None if steps is None else steps * seconds / 3600,
        "hours_factor": HOURS_FACTOR,
    }


def _steps(config: TrainerConfig, rows: int | None) -> int | None:
    train = config.train
    if train.steps is not None:
        return train.steps
    if rows is None:
        return None
    return max(1, round((train.epochs or 1.0) * rows / train.batch_size))
