"""The stages of a job in the order they happen: data, base, score, train, adapter, score."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainer import model as models
from trainer.adapters import dylora, methods
from trainer.adapters.quantised_share import QuantisedShare
from trainer.adapters.stored_base import StoredBase
from trainer.atomic import RealDisk, replace_directory
from trainer.base_family import import_code
from trainer.causal_probe import require_causal
from trainer.config import TrainerConfig
from trainer.device.activations import is_checkpointing
from trainer.device.determinism import Determinism
from trainer.device.garbage import collection_paused
from trainer.device.gpu_meter import gpu_meter
from trainer.device.host_memory import free_memory, is_tight
from trainer.device.out_of_memory import return_memory_at_once
from trainer.device.waiting import adaptive_waits
from trainer.errors import ConfigError, Preempted
from trainer.estimate.gpus import TrainingGpu
from trainer.estimate.micro_batch import choose_micro_batch
from trainer.job.context import JobContext
from trainer.job.faster_on_cpu import spare_on_cpu
from trainer.job.fit_memory import fit_memory, kept_bytes, memory_facts, note_saving
from trainer.job.make_samples import make_samples
from trainer.job.prepare import PreparedInputs, prepare_inputs
from trainer.job.score_stage import score
from trainer.job.store_base import storing
from trainer.job.use_kernels import use_kernels
from trainer.job.weight_files import require_host_memory, weight_files
from trainer.method_table import OptimizerKind, Quant
from trainer.rundir.fingerprint import compare
from trainer.rundir.layout import (
    ADAPTER,
    ADAPTER_PARTIAL,
    RECEIPT,
    SCORES_UNASKED,
    adapter_done,
    resolve,
    training_facts,
)
from trainer.rundir.status import MetricsLog, Phase, count_steps
from trainer.saving.async_saver import AsyncSaver
from trainer.saving.checkpoint import Snapshot, Store
from trainer.saving.checkpointer import Checkpointer
from trainer.saving.manifest import Damaged
from trainer.saving.memory_savings import MemorySavings
from trainer.saving.state import Best, Counters, TrainingState
from trainer.text import inexact
from trainer.tracking.tracker import make_tracker
from trainer.training.loop import train
from trainer.training.objective import mean_loss
from trainer.training.train_context import TrainContext
from trainer.training.validation import Validation

# What the receipt in the adapter keeps of the status, for a watcher who comes after the end.
KEPT = ("step", "steps", "loss", "checkpoint_step", "exact", "inexact_from")


def run_stages(job: JobContext) -> None:
    """Do what is missing; raise `Preempted` at the first moment that suits after a notice."""
    with collection_paused():
        prepared = prepare_inputs(job)
    job.stop_if_preempted()
    with adaptive_waits(
        threads=torch.get_num_threads(),
        on_cpu=prepared.device.type == "cpu",
        on_message=job.on_message,
    ):
        compute_stages(job, prepared)


def compute_stages(job: JobContext, prepared: PreparedInputs) -> None:
    """Do the stages that need the weights of the base: score, train, write, and score again."""
    done = adapter_done(job.run_dir, job.config, job.inputs)
    prepare_host(prepared, job.config)
    with storing(job, prepared) as stored:
        with collection_paused():  # while the stored base is read by a thread of its own
            import_code(prepared.model_config, job.config.method)
        _run_on_base(job, prepared, stored, done=done)


def _run_on_base(
    job: JobContext, prepared: PreparedInputs, stored: StoredBase | None, *, done: bool
) -> None:
    """Load the base, from the store of this machine if it is there, and do what is missing."""
    shares: list[QuantisedShare] = []
    base = models.load_base(
        prepared.source,
        job.config.method,
        precision=prepared.precision,
        device=prepared.device,
        on_share=lambda share: shares.append(report_share(job, share)),
        stored=stored,
    )
    if stored is not None:
        stored.begin_writing()
    require_causal(base, prepared.precision)
    job.stop_if_preempted()
    rows = [*prepared.rows.items, *(prepared.held_out.items if prepared.held_out else ())]
    models.require_places(base, max(len(one.input_ids) for one in rows))
    score(job, prepared, base, "before")
    if done:
        adapted = models.load_adapter(base, job.run_dir / ADAPTER)
    else:
        if prepared.parent is None:
            for line in models.describe_targets(base, job.config.method):
                job.on_message(line)
        adapted = models.attach_adapter(
            base, job.config.method, job.config.train, parent=prepared.parent
        )
        best = learn(job, prepared, adapted)
        select_rank(job, prepared, adapted)
        write_adapter(job, prepared, adapted, best, share=shares[0])
    score(job, prepared, adapted, "after")


def prepare_host(prepared: PreparedInputs, config: TrainerConfig) -> None:
    """Refuse a base that the machine's own memory cannot load; be careful where it is short.

    Of a base that is fetched from a hub while it is loaded, nothing is known yet.
    """
    on_processor = prepared.device.type == "cpu"
    if on_processor and is_tight():
        return_memory_at_once()
    if prepared.source.local:
        require_host_memory(
            weight_files(Path(prepared.source.name)),
            free_memory(),
            quantised=config.method.storage is not Quant.NONE,
            kept_bytes=kept_bytes(config, prepared) if on_processor else 0.0,
        )


def report_share(job: JobContext, share: QuantisedShare) -> QuantisedShare:
    """Say how much of the base is quantised; raise `ConfigError` if that is too little."""
    job.on_message(share.to_text())
    problem = share.problem(partly_quantised=job.config.method.partly_quantised)
    if problem is not None:
        raise ConfigError([problem])
    return share


def learn(job: JobContext, prepared: PreparedInputs, adapted: Any) -> Best:
    """Train from the newest whole checkpoint to the last step, and leave one of the end.

    With validation, the model then holds the adapter that was best, if that is kept.
    """
    context, state = set_up(job, prepared, adapted)
    prepared, context = use_kernels(job, prepared, context)
    directory, keep = job.run_dir / "checkpoints", job.config.checkpoint.keep
    store = Store(directory, keep=keep, disk=RealDisk(), on_message=job.on_message)
    store.sweep()
    resume(job, prepared, store, state)
    fit_memory(job, prepared, context, state)
    tracker = make_tracker(
        job.run_dir, steps_done=state.counters.step, wall_s=time.time, on_message=job.on_message
    )
    checkpointer = Checkpointer(
        state=state,
        saver=AsyncSaver(store, clock=time.monotonic),
        table=job.config.checkpoint,
        band=job.options.band,
        fingerprint=prepared.fingerprint,
        heartbeat=job.heartbeat,
        tracker=tracker,
        clock=time.monotonic,
        on_message=job.on_message,
        save_requested=lambda: job.flag.save_requested,
    )
    job.heartbeat.update(phase=Phase.TRAINING, step=state.counters.step, at_once=True)
    try:
        train(context, state, checkpointer, until=prepared.schedule.steps)
    except Preempted:
        if not checkpointer.save_now():
            job.on_message(
                "the state of this moment could not be saved; the checkpoint before it stands"
            )
        raise
    finally:
        tracker.close()
    context.method.materialize()
    checkpointer.save_now()
    state.log.sync()
    if context.validation is not None and context.validation.keep_best:
        state.adopt_best()
        context.method.materialize()
        job.on_message(f"the adapter is the one of step {state.best.step or state.counters.step}")
    return state.best


def select_rank(job: JobContext, prepared: PreparedInputs, adapted: Any) -> None:
    """Measure the ranks of a DyLoRA model on `data.eval`; of other models there is only one.

    Raises:
        Preempted: a notice came; the comparison is done again from the last checkpoint.
        DataError: the held-out rows cannot be used.
    """
    dylora_method = methods.method_of(adapted)
    if not isinstance(dylora_method, dylora.DyLora):
        return
    config = job.config
    if config.data.eval is None:
        job.on_message(f"no rows in `data.eval` to choose a rank by: {dylora_method.r} it is")
        return
    job.heartbeat.update(phase=Phase.EVALUATING, at_once=True)

    def on_progress(done: int, total: int) -> None:
        job.heartbeat.update(message=f"compared {done} of {total} ranks")
        if job.flag.notice is not None:
            raise Preempted

    rows = prepared.objective.load(resolve(job.run_dir, config.data.eval))
    measure = partial(
        mean_loss,
        adapted,
        rows.items,
        objective=prepared.objective,
        micro_batch=config.train.batch_size,
    )
    losses = dylora.compare_ranks(adapted, measure, on_progress=on_progress)
    dylora_method.choose(losses)
    job.heartbeat.update(message=None)
    shown = ", ".join(f"{rank}: {loss:.4f}" for rank, loss in losses.items())
    job.on_message(f"validation loss by rank: {shown}; best: {dylora_method.best}")


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
        log=MetricsLog(job.run_dir / "metrics.jsonl"),
        make_optimizer=make_optimizer,
    )
    micro_batch = choose_micro_batch(
        job.config, prepared.model_config, prepared.rows.items, gpu=_gpu(prepared)
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
    )


def _gpu(prepared: PreparedInputs) -> TrainingGpu | None:
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


def resume(job: JobContext, prepared: PreparedInputs, store: Store, state: TrainingState) -> None:
    """Restore the newest whole checkpoint into `state`, or begin anew, and say which.

    Raises:
        ConfigError: the checkpoint belongs to a run with other settings.
    """
    limit = size_limit(state)
    lost = count_steps(state.log.path)
    below: int | None = None
    while found := store.load_newest(
        tensor_bytes_max=limit, on_message=job.on_message, below=below
    ):
        verdict = compare(found.fingerprint, prepared.fingerprint, allowed=job.options.allow_change)
        verdict.require()
        micro_batch = state.counters.micro_batch
        try:
            state.restore(found)
        except Damaged as error:
            job.on_message(
                f"checkpoint of step {found.step} is unusable ({error}); trying the one before"
            )
            store.set_aside(found.step)
            below = found.step
            continue
        if verdict.inexact:  # another card, or asked for: what once fitted says nothing
            state.counters.micro_batch = micro_batch
            state.savings = MemorySavings(optimizer=state.savings.optimizer)
        _note_inexact(job, state, found, verdict.inexact)
        break
    counters = state.counters
    if not job.config.train.exact:
        _give_up_exactness(job, counters)
    if counters.step > prepared.schedule.steps:
        raise ConfigError(
            [f"train.steps: {prepared.schedule.steps} wanted, {counters.step} done already"]
        )
    previous = job.heartbeat.previous
    if found is not None or lost:
        state.log.sync()  # even if no step follows that would write it
        counters.resumes = max(counters.resumes, previous.resumes) + 1
        redone = max(counters.redone_steps, previous.redone_steps)
        counters.redone_steps = redone + max(0, lost - counters.step)
        job.on_message(f"resuming after step {counters.step} of {prepared.schedule.steps}")
    job.heartbeat.update(
        resumed_from=found.step if found else None,
        checkpoint_step=found.step if found else None,
        resumes=counters.resumes,
        redone_steps=counters.redone_steps,
        exact=counters.inexact_from is None,
        inexact_from=counters.inexact_from,
        at_once=True,
    )


def size_limit(state: TrainingState) -> int:
    """Return more bytes than any tensor file of this run can have; two moments are twice."""
    size = sum(p.numel() * p.element_size() for p in state.parameters.values())
    return 4 * size + (64 << 20)


def _note_inexact(
    job: JobContext, state: TrainingState, found: Snapshot, differences: tuple[str, ...]
) -> None:
    if differences and state.counters.inexact_from is None:
        state.counters.inexact_from = found.step + 1
    for line in differences:
        job.on_message(f"{inexact(found.step + 1)}: {line}")


def _give_up_exactness(job: JobContext, counters: Counters) -> None:
    """Report, and keep for status and receipt, what `train.exact: false` gives up."""
    if counters.inexact_from is None:
        counters.inexact_from = counters.step + 1
    job.on_message(
        f"{inexact(counters.inexact_from)}: `train.exact` is false, so sums are added up in any "
        "order where that is faster; if the run is killed and resumed, it ends with other bits"
    )


def write_adapter(
    job: JobContext, prepared: PreparedInputs, adapted: Any, best: Best, *, share: QuantisedShare
) -> None:
    """Write `adapter/` in PEFT's own format, whole or not at all, with a receipt inside.

    The receipt has the arithmetic that `train.precision: auto` became here: the base was rounded to
    it before it was quantised, which whoever quantises it again has to know. `share` is how much of
    the base was quantised.
    """
    disk = RealDisk()
    target, temporary = job.run_dir / ADAPTER, job.run_dir / ADAPTER_PARTIAL
    if temporary.exists():
        disk.remove_tree(temporary)
    temporary.mkdir()
    methods.method_of(adapted).save(temporary)
    if job.config.model.new_tokens:  # or nobody else could write them
        prepared.tokenizer.save_pretrained(str(temporary))
    status = job.heartbeat.status
    receipt = {
        "training": training_facts(job.config, job.inputs),
        "status": {name: getattr(status, name) for name in KEPT},
        "best": asdict(best) if best.step else None,
        SCORES_UNASKED: True,
        "precision": str(prepared.precision.compute),
        "day": str(job.config.data.day or "") or None,
        "quantised": share.to_json(),
        "base": prepared.fingerprint["base"],
        "versions": prepared.fingerprint["versions"],
        **memory_facts(job.run_dir),
        **({"parent": parent_facts(job)} if prepared.parent else {}),
        "finished_at": datetime.now(tz=UTC).isoformat(timespec="seconds"),
    }
    (temporary / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    for path in sorted(one for one in temporary.rglob("*") if one.is_file()):
        with path.open("rb") as file:
            disk.sync(file.fileno())
    disk.sync_directory(temporary)
    replace_directory(temporary, target, disk=disk)


def parent_facts(job: JobContext) -> dict[str, Any]:
    """Return the name and the SHA-256 of the adapter that the training went on from."""
    return {"name": job.config.method.parent, "sha256": job.inputs["method.from"]}
