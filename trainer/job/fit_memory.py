"""Makes the training fit this machine before its first step, and keeps what was measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.config import TrainerConfig
from trainer.device.count import find_shape
from trainer.device.host_memory import machine_bytes
from trainer.device.shapes import UnknownShapeError
from trainer.estimate.advice import MemoryAdvice, MemoryNeed, advise_memory
from trainer.estimate.gpus import TrainingGpu
from trainer.estimate.training import estimate_training
from trainer.estimate.with_kernels import UNPACKED
from trainer.job.context import JobContext
from trainer.job.prepare import PreparedInputs
from trainer.rundir.memory_record import MemoryRecord, read_memory_record
from trainer.saving.memory_savings import read_savings
from trainer.saving.state import TrainingState
from trainer.text import gigabytes
from trainer.training.fit import Fitted, apply_setup, current_setup, fit
from trainer.training.measure import Shortage, device_limit
from trainer.training.saving_order import MemorySetup
from trainer.training.train_context import TrainContext

KEYED = ("config", "data", "tokens", "base", "hardware", "versions")
"""The parts of a fingerprint that decide about memory, or that nobody can rule out."""


def fit_memory(
    job: JobContext, prepared: PreparedInputs, context: TrainContext, state: TrainingState
) -> None:
    """Measure the longest batch and save memory until it fits, or take up what was found before.

    Of several ranks the first does, and all compute as it found.

    Raises:
        DoesNotFit: nothing is left that keeps the meaning of the result; says what would help.
    """
    if job.peers.rank == 0:
        _fit_here(job, prepared, context, state)
    if job.peers.size > 1:
        _compute_as_first(job, context, state)


def _compute_as_first(job: JobContext, context: TrainContext, state: TrainingState) -> None:
    """Take over how the first rank computes; the cards are of one kind."""
    own = current_setup(context, state)
    found = job.peers.gather(
        {
            "micro_batch": own.micro_batch,
            "savings": own.savings.to_json(),
            "unpacked": own.unpacked,
        }
    )[0]
    setup = MemorySetup(
        micro_batch=found["micro_batch"],
        savings=read_savings(found["savings"]),
        unpacked=own.unpacked and found["unpacked"],
    )
    if setup != own:
        apply_setup(context, state, setup)


def _fit_here(
    job: JobContext, prepared: PreparedInputs, context: TrainContext, state: TrainingState
) -> None:
    key = _key(prepared)
    stored = read_memory_record(job.run_dir)
    usable = stored is not None and stored.key == key and _holds(stored, context)
    if stored is not None and usable and take_up(context, state, stored):
        job.on_message(f"longest batch, as measured before: {_figures(stored)}")
        return
    estimated = _estimator(prepared, context, state)
    found = fit(
        context,
        state,
        estimated_bytes=_beside_base(estimated, job.config, state.counters.micro_batch),
        on_saving=lambda text: _report(job, text),
        advise=lambda shortage: _advice(job.config, prepared, estimated, shortage),
    )
    memory = estimated(with_micro_batch(job.config, state.counters.micro_batch))
    need = None if memory is None else round(memory["reserved"])
    record = _record(found, prepared, state, key=key, estimated_bytes=need)
    _keep(record, job)
    job.on_message(f"longest batch measured: {_figures(record)}")


def take_up(context: TrainContext, state: TrainingState, stored: MemoryRecord) -> bool:
    """Compute as it was found to fit; tell whether that is what was measured.

    A state with steps behind it computes as those did, whatever the record says.
    """
    savings = read_savings(stored.savings)
    if state.counters.step == 0:
        now = current_setup(context, state)
        apply_setup(context, state, replace(now, micro_batch=stored.micro_batch, savings=savings))
    same = state.savings == savings or state.counters.step > 0
    return same and state.counters.micro_batch <= stored.micro_batch


def note_saving(job: JobContext, text: str) -> None:
    """Report what was done in the middle of a training, and keep it beside the measurement."""
    _report(job, text)
    stored = read_memory_record(job.run_dir)
    if stored is not None and job.writers.write:
        _keep(stored.with_step(text), job)


def _keep(record: MemoryRecord, job: JobContext) -> None:
    with suppress(OSError):  # no room: the next start measures again
        record.write(job.run_dir)


def memory_facts(run_dir: Path) -> dict[str, Any]:
    """Return what the receipt of an adapter says of memory: nothing, if nothing had to be done."""
    stored = read_memory_record(run_dir)
    if stored is None or not stored.steps_taken:
        return {}
    facts = {"micro_batch": stored.micro_batch, "steps_taken": [*stored.steps_taken]}
    return {"memory": facts}


def _report(job: JobContext, text: str) -> None:
    job.on_message(text)
    job.heartbeat.update(message=text, at_once=True)


def _key(prepared: PreparedInputs) -> str:
    """Return a SHA-256 over what decides how much memory a step takes."""
    facts = {name: prepared.fingerprint.get(name) for name in KEYED}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _holds(stored: MemoryRecord, context: TrainContext) -> bool:
    """Tell whether there is as much memory as the measured pass took."""
    limit = device_limit(context.accelerator.device)
    return limit is None or stored.extra_bytes <= limit.usable_bytes


def _figures(record: MemoryRecord) -> str:
    most = gigabytes(record.reserved_bytes)
    of = "" if record.limit_bytes is None else f" of {gigabytes(record.limit_bytes)}"
    rows = "1 row" if record.micro_batch == 1 else f"{record.micro_batch} rows"
    return f"{most}{of} ({rows} at a time, {record.tokens} tokens)"


Estimator = Callable[[TrainerConfig], dict[str, float] | None]


def _estimator(prepared: PreparedInputs, context: TrainContext, state: TrainingState) -> Estimator:
    """Return the formula as a function of the config, for the base, rows and device at hand.

    It gives the bytes of each part of a step, None for a base that it does not know.
    """
    examples = prepared.rows.items
    longest = max(len(one.input_ids) for one in examples)
    answer = max(one.targets for one in examples)
    try:
        shape = find_shape(prepared.model_config)
    except UnknownShapeError:
        return lambda _config: None
    here = TrainingGpu(
        name="",
        memory_bytes=float("inf"),
        precision=prepared.precision.compute,
        flops=1e12,
    )

    def estimated(other: TrainerConfig) -> dict[str, float]:
        held = context.unpacked is not None and context.unpacked.is_held
        recomputed = context.checkpointing or state.savings.checkpointing
        train = other.train.model_copy(update={"gradient_checkpointing": recomputed})
        method = other.method.model_copy(
            update={"optimizer": state.savings.optimizer or other.method.optimizer}
        )
        found = estimate_training(
            other.model_copy(update={"train": train, "method": method}),
            shape,
            gpu=replace(here, kernels=(*context.kernels.facts, *([UNPACKED] if held else []))),
            lengths=[min(longest, other.train.max_length)],
            loss_tokens=min(answer, other.train.max_length),
        )
        memory: dict[str, float] = found["memory_bytes"]
        return memory

    return estimated


def kept_bytes(config: TrainerConfig, prepared: PreparedInputs) -> float:
    """Return what the weights of the base take as they are kept; 0 if that is not known."""
    try:
        shape = find_shape(prepared.model_config)
    except UnknownShapeError:
        return 0.0
    here = TrainingGpu(
        name="", memory_bytes=float("inf"), precision=prepared.precision.compute, flops=1e12
    )
    memory: dict[str, float] = estimate_training(config, shape, gpu=here)["memory_bytes"]
    return memory["base"]


def with_micro_batch(config: TrainerConfig, size: int) -> TrainerConfig:
    """Return the config with another micro-batch."""
    train = config.train.model_copy(update={"micro_batch": size})
    return config.model_copy(update={"train": train})


def _beside_base(estimated: Estimator, config: TrainerConfig, micro_batch: int) -> float | None:
    """Return what a step takes besides the weights of the base, None if that is not known."""
    memory = estimated(with_micro_batch(config, micro_batch))
    return None if memory is None else memory["allocated"] - memory["base"]


def _advice(
    config: TrainerConfig, prepared: PreparedInputs, estimated: Estimator, shortage: Shortage
) -> list[str]:
    """Return what would fit by the formula, and what helps in any case."""
    single = with_micro_batch(config, 1)
    now = estimated(single)
    if now is None or shortage.need_bytes is None or shortage.limit_bytes is None:
        return advice_lines(())
    enough = now["allocated"] - (shortage.need_bytes - shortage.limit_bytes)

    def estimate(other: TrainerConfig) -> MemoryNeed | None:
        memory = estimated(other)
        if memory is None:
            return None
        return MemoryNeed(need_bytes=memory["allocated"], fits=memory["allocated"] <= enough)

    longest = max(len(one.input_ids) for one in prepared.rows.items)
    shape = find_shape(prepared.model_config)
    return advice_lines(advise_memory(single, shape, estimate, longest=longest))


def advice_lines(found: Sequence[MemoryAdvice]) -> list[str]:
    """Return advice as lines, with what helps in any case; without any, where to begin."""
    always = "take a machine with more memory"
    if not found:
        return [f"hint: lower `train.max_length` or `method.r`, or {always}"]
    return [
        "what would fit by the estimate changes the result, so it is yours to put into run.yaml:",
        *(f"  {' and '.join(map(str, one.overrides))}" for one in found),
        f"hint: or {always}",
    ]


def _record(
    found: Fitted,
    prepared: PreparedInputs,
    state: TrainingState,
    *,
    key: str,
    estimated_bytes: int | None,
) -> MemoryRecord:
    """Return what is kept of a measurement."""
    device: Any = prepared.fingerprint["hardware"]
    return MemoryRecord(
        device=str(device.get("gpu") or device.get("cpu")),
        limit=found.limit,
        limit_bytes=found.limit_bytes,
        micro_batch=state.counters.micro_batch,
        tokens=found.longest.tokens,
        target_tokens=found.longest.targets,
        allocated_bytes=found.measured.allocated_bytes,
        reserved_bytes=found.measured.reserved_bytes,
        extra_bytes=found.measured.extra_bytes,
        estimated_bytes=estimated_bytes,
        host_bytes=found.measured.host_bytes,
        host_limit_bytes=machine_bytes(),
        savings=state.savings.to_json(),
        steps_taken=found.steps_taken,
        after_step=state.counters.step,
        key=key,
    )
