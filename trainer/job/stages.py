"""The stages of a job in the order they happen: data, base, score, train, adapter, score."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from trainer import model as models
from trainer.adapters import methods
from trainer.atomic import RealDisk, replace_directory, replace_file
from trainer.config import ConfigError, PrecisionChoice
from trainer.context import Desk
from trainer.data.examples import Examples, load_examples, padding_id
from trainer.device.memory import Gpu
from trainer.device.micro_batch import choose_portion
from trainer.errors import Preempted
from trainer.job import rank_selection
from trainer.job.prepared import Material
from trainer.rundir.fingerprint import Facts, compare, cpu_model, directory_sha256, take_fingerprint
from trainer.rundir.layout import (
    ADAPTER,
    ADAPTER_PARTIAL,
    HASHES,
    RECEIPT,
    SCORED,
    adapter_done,
    read_table,
    resolve,
    scored,
    scoring_facts,
    training_facts,
)
from trainer.rundir.status import MetricsLog, Phase, count_steps
from trainer.saving.async_saver import Saver
from trainer.saving.checkpoint import Snapshot, Store
from trainer.saving.checkpointer import Keeper
from trainer.saving.manifest import Damaged
from trainer.saving.state import Best, TrainingState
from trainer.schedule import make_plan
from trainer.tracking.tensorboard import EventWriter
from trainer.training.loop import train
from trainer.training.train_context import Bench
from trainer.training.validation import make_exam

# What the receipt in the adapter keeps of the status, for a watcher who comes after the end.
KEPT = ("step", "steps", "loss", "checkpoint_step", "exact", "inexact_from")


def work(desk: Desk) -> None:
    """Do what is missing; raise `Preempted` at the first moment that suits after a notice."""
    material = prepare(desk)
    look_up(desk)
    done = adapter_done(desk.run_dir, desk.config, desk.inputs)
    base = models.load_base(
        material.source, desk.config.method, precision=material.precision, device=material.device
    )
    look_up(desk)
    rows = [*material.rows.items, *(material.held_out.items if material.held_out else ())]
    models.require_places(base, max(len(one.input_ids) for one in rows))
    score(desk, material, base, "before")
    if done:
        adapted = models.load_adapter(base, desk.run_dir / ADAPTER)
    else:
        adapted = models.attach_adapter(base, desk.config.method, desk.config.train)
        best = learn(desk, material, adapted)
        rank_selection.compare(desk, material, adapted)
        write_adapter(desk, adapted, best, computed=material.precision.compute)
    score(desk, material, adapted, "after")


def look_up(desk: Desk) -> None:
    """Leave if a notice came; between stages nothing is at stake."""
    if desk.flag.notice is not None:
        raise Preempted


def prepare(desk: Desk) -> Material:
    """Read rows, tokenizer and the base's description; everything that can be wrong, is now."""
    config, run_dir = desk.config, desk.run_dir
    models.make_deterministic()
    threads = models.set_threads(config.train)
    source = models.find_source(config.model, run_dir)
    tokenizer = models.load_tokenizer(source)
    described = models.load_config(source)
    seq2seq = models.is_seq2seq(described)

    def read(name: str) -> Examples:
        return load_examples(
            config.data,
            resolve(run_dir, name),
            tokenizer,
            max_length=config.train.max_length,
            seq2seq=seq2seq,
        )

    rows = read(config.data.train)
    wanted = config.data.eval if config.train.validate_every is not None else None
    held_out = read(wanted) if wanted else None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    methods.check_device(config.method, device)
    plan = make_plan(config.train, [len(item.input_ids) for item in rows.items])
    precision = models.device_precision(config.train, device=device, seq2seq=seq2seq)
    desk.on_message(
        f"{rows.report.rows} rows, {plan.steps} steps of {config.train.batch_size}; "
        f"{device.type}, {precision.reason}"
    )
    for line in methods.advice(config.method):
        desk.on_message(line)
    desk.heartbeat.update(steps=plan.steps, at_once=True)
    identity = (
        directory_sha256(Path(source.name), cache=run_dir / HASHES)
        if source.local
        else getattr(described, "_commit_hash", None) or source.revision
    )
    fingerprint = take_fingerprint(
        config,
        data=desk.inputs,
        base={"base.model": identity, "base.tokenizer": _tokenizer_sha256(tokenizer)},
        hardware=_hardware(device, threads),
    )
    return Material(
        source=source,
        tokenizer=tokenizer,
        rows=rows,
        held_out=held_out,
        plan=plan,
        device=device,
        precision=precision,
        fingerprint=fingerprint,
        described=described.to_dict(),
    )


def learn(desk: Desk, material: Material, adapted: Any) -> Best:
    """Train from the newest whole checkpoint to the last step, and leave one of the end.

    With validation, the model then holds the adapter that was best, if that is kept.
    """
    bench, state = set_up(desk, material, adapted)
    directory, keep = desk.run_dir / "checkpoints", desk.config.checkpoint.keep
    store = Store(directory, keep=keep, disk=RealDisk(), on_message=desk.on_message)
    store.sweep()
    resume(desk, material, store, state)
    keeper = Keeper(
        state=state,
        saver=Saver(store, clock=time.monotonic),
        table=desk.config.checkpoint,
        band=desk.order.band,
        fingerprint=material.fingerprint,
        heartbeat=desk.heartbeat,
        events=EventWriter(desk.run_dir / "tb", steps_done=state.counters.step, wall_s=time.time),
        clock=time.monotonic,
        on_message=desk.on_message,
    )
    desk.heartbeat.update(phase=Phase.TRAINING, step=state.counters.step, at_once=True)
    try:
        train(bench, state, keeper, until=material.plan.steps)
    except Preempted:
        if not keeper.save_now():
            desk.on_message(
                "the state of this moment could not be saved; the checkpoint before it stands"
            )
        raise
    bench.method.settle()
    keeper.save_now()
    state.log.settle()
    if bench.exam is not None and bench.exam.keep_best:
        state.adopt_best()
        bench.method.settle()
        desk.on_message(f"the adapter is the one of step {state.best.step or state.counters.step}")
    return state.best


def set_up(desk: Desk, material: Material, adapted: Any) -> tuple[Bench, TrainingState]:
    """Make the optimizer and the device layer around the model, with nothing learnt yet."""
    from accelerate import Accelerator

    table, precision = desk.config.train, material.precision
    layer = Accelerator(mixed_precision=precision.mixed, cpu=material.device.type == "cpu")
    layer.scaler = None  # the loop scales by itself: accelerate does it under autocast only
    parameters = models.trainable(adapted)
    optimizer = methods.make_optimizer(desk.config.method, table, list(parameters.values()))
    state = TrainingState(
        parameters=parameters,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(material.device.type) if precision.loss_scaling else None,
        log=MetricsLog(desk.run_dir / "metrics.jsonl"),
    )
    portion = choose_portion(
        desk.config, material.described, material.rows.items, gpu=_card(material)
    )
    desk.on_message(f"{portion.size} of {table.batch_size} sequences at a time: {portion.reason}")
    state.counters.micro_batch = portion.size
    bench = Bench(
        model=adapted,  # not wrapped: scored and trained by one and the same arithmetic
        method=methods.method_of(adapted),
        layer=layer,
        plan=material.plan,
        examples=material.rows.items,
        pad_id=padding_id(material.tokenizer),
        seed=table.seed,
        max_grad_norm=table.max_grad_norm,
        flag=desk.flag,
        on_message=desk.on_message,
        price_usd_per_h=desk.order.price_usd_per_h,
        exam=make_exam(
            table, material.held_out, last_step=material.plan.steps, heartbeat=desk.heartbeat
        ),
    )
    return bench, state


def _card(material: Material) -> Gpu | None:
    """Return the GPU at hand as the memory estimate wants it, None on a CPU."""
    if material.device.type != "cuda":
        return None
    found = torch.cuda.get_device_properties(material.device)
    return Gpu(
        name=found.name,
        memory_bytes=found.total_memory,
        precision=material.precision.compute,
        flops=1e12,  # speed does not matter here
    )


def resume(desk: Desk, material: Material, store: Store, state: TrainingState) -> None:
    """Restore the newest whole checkpoint into `state`, or begin anew, and say which.

    Raises:
        ConfigError: the checkpoint belongs to a run with other settings.
    """
    limit = size_limit(state)
    lost = count_steps(state.log.path)
    below: int | None = None
    while found := store.load_newest(
        tensor_bytes_max=limit, on_message=desk.on_message, below=below
    ):
        verdict = compare(found.fingerprint, material.fingerprint, allowed=desk.order.allow_change)
        verdict.require()
        portion = state.counters.micro_batch
        try:
            state.restore(found)
        except Damaged as error:
            desk.on_message(
                f"checkpoint of step {found.step} is unusable ({error}); trying the one before"
            )
            store.set_aside(found.step)
            below = found.step
            continue
        if verdict.inexact:  # another card, or asked for: what once fitted says nothing
            state.counters.micro_batch = portion
        _note_inexact(desk, state, found, verdict.inexact)
        break
    counters = state.counters
    if counters.step > material.plan.steps:
        raise ConfigError(
            [f"train.steps: {material.plan.steps} wanted, {counters.step} done already"]
        )
    previous = desk.heartbeat.previous
    if found is not None or lost:
        state.log.settle()  # even if no step follows that would write it
        counters.resumes = max(counters.resumes, previous.resumes) + 1
        redone = max(counters.redone_steps, previous.redone_steps)
        counters.redone_steps = redone + max(0, lost - counters.step)
        desk.on_message(f"resuming after step {counters.step} of {material.plan.steps}")
    desk.heartbeat.update(
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
    desk: Desk, state: TrainingState, found: Snapshot, differences: tuple[str, ...]
) -> None:
    if differences and state.counters.inexact_from is None:
        state.counters.inexact_from = found.step + 1
    for line in differences:
        desk.on_message(f"not bit-exact from step {found.step + 1}: {line}")


def write_adapter(desk: Desk, adapted: Any, best: Best, *, computed: PrecisionChoice) -> None:
    """Write `adapter/` in PEFT's own format, whole or not at all, with a receipt inside.

    `computed` is the arithmetic that `train.precision: auto` became here: the base was rounded to
    it before it was quantised, which whoever quantises it again has to know.
    """
    disk = RealDisk()
    target, temporary = desk.run_dir / ADAPTER, desk.run_dir / ADAPTER_PARTIAL
    if temporary.exists():
        disk.remove_tree(temporary)
    temporary.mkdir()
    methods.method_of(adapted).save(temporary)
    status = desk.heartbeat.status
    receipt = {
        "training": training_facts(desk.config, desk.inputs),
        "status": {name: getattr(status, name) for name in KEPT},
        "best": asdict(best) if best.step else None,
        "precision": str(computed),
        "finished_at": datetime.now(tz=UTC).isoformat(timespec="seconds"),
    }
    (temporary / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    for path in sorted(temporary.iterdir()):
        with path.open("rb") as file:
            disk.sync(file.fileno())
    disk.sync_directory(temporary)
    replace_directory(temporary, target, disk=disk)


def score(desk: Desk, material: Material, model: Any, stage: Literal["before", "after"]) -> None:
    """Evaluate `model` and write `eval-<stage>.json`, unless that is there or nothing is wanted."""
    if scored(desk.run_dir, stage, desk.config, desk.inputs):
        return
    from trainer.scoring import evaluate

    desk.heartbeat.update(phase=Phase.EVALUATING, at_once=True)

    def beat(done: int, total: int) -> None:
        desk.heartbeat.update(message=f"evaluated {done} of {total} rows ({stage} training)")
        look_up(desk)

    result = evaluate.run(
        desk.run_dir, desk.config, model, material.tokenizer, stage=stage, on_progress=beat
    )
    receipt = read_table(desk.run_dir / SCORED)
    receipt[stage] = scoring_facts(stage, desk.config, desk.inputs)
    replace_file(desk.run_dir / SCORED, json.dumps(receipt, indent=1) + "\n", disk=RealDisk())
    desk.heartbeat.update(message=None)
    desk.on_message(
        f"{stage} training: {result.metric} {result.value:.3f} "
        f"[{result.low:.3f}, {result.high:.3f}] on {result.n} rows"
    )


def _hardware(device: torch.device, threads: int) -> Facts:
    """Name what computes; the bits of a result depend on it."""
    if device.type == "cuda":  # whatever processor feeds it
        card = torch.cuda.get_device_name(device)
        return {"device": device.type, "gpu": card, "cuda": torch.version.cuda}
    return {"device": device.type, "cpu": cpu_model(), "threads": threads}


def _tokenizer_sha256(tokenizer: Any) -> str:
    """Return one SHA-256 over everything that decides about tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    return hashlib.sha256(f"{text}\n{special}".encode()).hexdigest()
