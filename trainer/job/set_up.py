"""Makes what a training needs around its model: optimizer, micro-batch, validation, samples."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from trainer import model as models
from trainer.adapters import methods
from trainer.device.activations import is_checkpointing
from trainer.device.determinism import Determinism
from trainer.device.gpu_meter import gpu_meter
from trainer.estimate.gpus import TrainingGpu
from trainer.estimate.micro_batch import choose_micro_batch
from trainer.job.context import JobContext
from trainer.job.faster_on_cpu import spare_on_cpu
from trainer.job.fit_memory import note_saving
from trainer.job.make_samples import make_samples
from trainer.job.prepare import PreparedInputs, scoring_peers
from trainer.method_table import OptimizerKind
from trainer.rundir.layout import METRICS
from trainer.rundir.status import MetricsLog
from trainer.saving.state import TrainingState
from trainer.training.train_context import TrainContext
from trainer.training.validation import Validation


def set_up(
    job: JobContext, prepared: PreparedInputs, adapted: Any
) -> tuple[TrainContext, TrainingState]:
    """Make the optimizer and the accelerator around the model, with nothing learnt yet."""
    from accelerate import Accelerator

    table, precision = job.config.train, prepared.precision
    accelerator = Accelerator(mixed_precision=precision.mixed, cpu=prepared.device.type == "cpu")
    accelerator.scaler = None  # the loop scales by itself: accelerate does it under autocast only
    parameters = models.trainable(adapted)

    def make_optimizer(kind: OptimizerKind | None) -> torch.optim.Optimizer:
        method = job.config.method.model_copy(update={} if kind is None else {"optimizer": kind})
        return methods.make_optimizer(method, table, list(parameters.values()))

    state = TrainingState(
        parameters=parameters,
        optimizer=make_optimizer(None),
        scaler=torch.amp.GradScaler(prepared.device.type) if precision.loss_scaling else None,
        log=MetricsLog(job.writers.path(job.run_dir / METRICS)),
        make_optimizer=make_optimizer,
    )
    micro_batch = choose_micro_batch(
        job.config,
        prepared.model_config,
        prepared.rows.items,
        gpu=gpu_at_hand(prepared),
        cards=job.options.all_cards,
    )
    job.on_message(
        f"{micro_batch.size} of {table.batch_size} sequences at a time: {micro_batch.reason}"
    )
    state.counters.micro_batch = micro_batch.size
    context = TrainContext(
        model=adapted,  # not wrapped: scored and trained by one and the same arithmetic
        method=methods.method_of(adapted),
        objective=prepared.objective,
        accelerator=accelerator,
        schedule=prepared.schedule,
        examples=prepared.rows.items,
        seed=table.seed,
        max_grad_norm=table.max_grad_norm,
        flag=job.flag,
        on_message=job.on_message,
        on_saving=partial(note_saving, job),
        checkpointing=is_checkpointing(adapted),
        optimizer=job.config.method.optimizer,
        price_usd_per_h=job.options.price_usd_per_h,
        measure_gpu=gpu_meter(prepared.device),
        validation=_make_validation(job, prepared, adapted, accelerator.autocast),
        samples=make_samples(job, prepared, adapted, accelerator.autocast),
        determinism=Determinism(exact=table.exact),
        reads_late=prepared.device.type == "cuda",
        peers=job.peers,
        sharded=prepared.sharded,
        unpacked=spare_on_cpu(adapted, prepared.device, job.on_message),
    )
    return context, state


def _make_validation(
    job: JobContext,
    prepared: PreparedInputs,
    adapted: Any,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Validation | None:
    """Return when, with what and on which rows to validate, None if it is not asked for."""
    table = job.config.train
    if table.validate_every is None or prepared.held_out is None:
        return None

    def on_progress(done: int, total: int) -> None:
        job.heartbeat.update(message=f"validated on {done} of {total} rows")

    return Validation(
        model=adapted,
        method=methods.method_of(adapted),
        objective=prepared.objective,
        autocast=autocast,
        flag=job.flag,
        on_message=job.on_message,
        on_progress=on_progress,
        examples=prepared.held_out.items,
        every=table.validate_every,
        last_step=prepared.schedule.steps,
        stop_after=table.stop_after,
        keep_best=table.keep_best,
        peers=scoring_peers(job, prepared),
    )


def gpu_at_hand(prepared: PreparedInputs) -> TrainingGpu | None:
    """Return the GPU at hand as the memory estimate wants it, None on a CPU."""
    if prepared.device.type != "cuda":
        return None
    found = torch.cuda.get_device_properties(prepared.device)
    return TrainingGpu(
        name=found.name,
        memory_bytes=found.total_memory,
        precision=prepared.precision.compute,
        flops=1e12,  # speed does not matter here
    )
