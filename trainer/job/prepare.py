"""Loads what a job needs before anything is computed, so that every fault shows early."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer import model as models
from trainer.adapters import methods
from trainer.adapters.parent import (
    OPTIMIZER_IS_NEW,
    ParentAdapter,
    compare_base,
    find_parent,
    read_parent,
    require_base_named,
)
from trainer.base_limits import embedding_rows, require_embedded
from trainer.data.codec import tokens_sha256
from trainer.data.datasets import TrainingRows, load_training_rows
from trainer.data.examples import Examples
from trainer.device.deferred_modules import defer_modules
from trainer.device.determinism import make_deterministic, set_threads
from trainer.device.precision import Precision
from trainer.group.lockstep import InLockstep
from trainer.group.peers import Peers
from trainer.job.context import JobContext
from trainer.pages.tokenizer_checks import check_answer_tokens
from trainer.rundir.fingerprint import Facts, cpu_model, directory_sha256, take_fingerprint
from trainer.rundir.layout import HASHES, resolve
from trainer.schedule import Schedule, make_schedule, rows_per_epoch
from trainer.training.objective import Objective, make_objective

if TYPE_CHECKING:
    from trainer.group.shard import ShardedBase


@dataclass(frozen=True, kw_only=True)
class PreparedInputs:
    """What is loaded before anything is computed."""

    source: models.Source
    tokenizer: Any
    objective: Objective
    rows: TrainingRows
    held_out: Examples | None  # read only if they are looked at while training, or scored
    schedule: Schedule
    device: torch.device
    precision: Precision
    fingerprint: Facts
    model_config: dict[str, Any]  # the base's config.json
    parent: ParentAdapter | None  # what the training goes on from
    sharded: ShardedBase | None = None  # what this rank holds of a base that the ranks share


def scoring_peers(job: JobContext, prepared: PreparedInputs) -> Peers:
    """Return how ranks do passes without gradients: alike if they share the base, else apart."""
    return job.peers if prepared.sharded is None else InLockstep(job.peers)


def prepare_inputs(job: JobContext) -> PreparedInputs:
    """Read rows, tokenizer and the base's description; everything that can be wrong, is now."""
    config, run_dir = job.config, job.run_dir
    defer_modules()
    make_deterministic()
    threads = set_threads(config.train, ranks=job.peers.local_size)
    source = models.find_source(config.model, run_dir, job.options.token)
    tokenizer = models.load_tokenizer(source)
    model_config = models.load_config(source)
    models.require_usable(model_config, config.method, source)
    seq2seq = models.is_seq2seq(model_config)

    id_count = embedding_rows(model_config.to_dict())
    objective = make_objective(config, tokenizer, seq2seq=seq2seq, embedding_rows=id_count)
    rows = load_training_rows(config.data, lambda name: objective.load(resolve(run_dir, name)))
    validates = config.train.validate_every is not None
    wanted = config.data.eval if validates or config.scored is not None else None
    held_out = objective.load(resolve(run_dir, wanted)) if wanted else None
    for items in (rows.items, held_out.items if held_out else ()):
        tokens = ((item.row, (*item.input_ids, *item.labels)) for item in items)
        require_embedded(tokens, id_count, tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    methods.check_device(config.method, device)
    lengths = [len(item.input_ids) for item in rows.items]
    schedule = make_schedule(config.train, lengths, rows.shares)
    precision = models.device_precision(config.train, device=device, seq2seq=seq2seq)
    steps = f"{schedule.steps} steps of {config.train.batch_size}"
    _report_rows(job, rows, f"{steps}; {device.type}, {precision.reason}")
    _report_dropped(job, "held-out rows", held_out.report.dropped if held_out else 0)
    for line in (*methods.advice(config.method), *check_answer_tokens(rows.items, tokenizer)):
        job.on_message(line)
    job.heartbeat.update(steps=schedule.steps, at_once=True)
    identity = (
        directory_sha256(Path(source.name), cache=run_dir / HASHES)
        if source.local
        else getattr(model_config, "_commit_hash", None) or source.revision
    )
    parent = _parent(job, source, str(identity))
    fingerprint = take_fingerprint(
        config,
        data=job.inputs,
        base={"base.model": identity, "base.tokenizer": _tokenizer_sha256(tokenizer)},
        hardware=_hardware(device, threads),
        tokens={
            "data.train": tokens_sha256(rows.items),
            **({"data.eval": tokens_sha256(held_out.items)} if held_out and validates else {}),
        },
    )
    return PreparedInputs(
        source=source,
        tokenizer=tokenizer,
        objective=objective,
        rows=rows,
        held_out=held_out,
        schedule=schedule,
        device=device,
        precision=precision,
        fingerprint=fingerprint,
        model_config=model_config.to_dict(),
        parent=parent,
    )


def _report_rows(job: JobContext, rows: TrainingRows, then: str) -> None:
    """Report how many rows are learnt and `then` how, what was left out, and what may be wrong."""
    report, in_epoch = rows.report, rows_per_epoch(rows.shares)
    count = report.expansion or f"{report.rows} rows"
    weighted = f" ({in_epoch} in an epoch)" if in_epoch != report.examples else ""
    job.on_message(f"{count}{weighted}, {then}")
    _report_dropped(job, "rows", report.dropped)
    for warning in report.warnings:
        job.on_message(f"warning: {warning}")


def _report_dropped(job: JobContext, what: str, count: int) -> None:
    if count:
        most = job.config.train.max_length
        job.on_message(f"{count} {what} have more than {most} tokens and were left out")


def _parent(job: JobContext, source: models.Source, identity: str) -> ParentAdapter | None:
    """Return the adapter that the training goes on from, None if it begins with a fresh one.

    Raises:
        ConfigError: the adapter was trained on another base.
    """
    directory = find_parent(job.config.method, job.run_dir)
    if directory is None:
        return None
    parent = read_parent(directory)
    if not source.local:
        require_base_named(parent, source.name)
    base = compare_base(parent, identity)
    job.on_message(
        f"goes on from the adapter in {job.config.method.parent}: {OPTIMIZER_IS_NEW}; {base}"
    )
    return parent


def _hardware(device: torch.device, threads: int) -> Facts:
    """Name what computes; the bits of a result depend on it."""
    if device.type == "cuda":  # whatever processor feeds it
        gpu_name = torch.cuda.get_device_name(device)
        return {"device": device.type, "gpu": gpu_name, "cuda": torch.version.cuda}
    return {"device": device.type, "cpu": cpu_model(), "threads": threads}


def _tokenizer_sha256(tokenizer: Any) -> str:
    """Return one SHA-256 over everything that decides about tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    return hashlib.sha256(f"{text}\n{special}".encode()).hexdigest()
