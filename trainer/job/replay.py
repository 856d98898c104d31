"""Replays steps of a run and compares them with its log: they must give the same bits."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer import model as models
from trainer.atomic import RealDisk
from trainer.device.gpu_meter import MEASURED
from trainer.errors import ConfigError
from trainer.eviction import PreemptionFlag
from trainer.exit_codes import ExitCode
from trainer.job.context import JobContext, JobOptions, with_parent
from trainer.job.fit_memory import take_up
from trainer.job.prepare import prepare_inputs
from trainer.job.resume import size_limit
from trainer.job.set_up import set_up
from trainer.job.use_kernels import use_kernels
from trainer.rundir.fingerprint import compare
from trainer.rundir.layout import alone_in, data_facts
from trainer.rundir.memory_record import read_memory_record
from trainer.rundir.status import HeartbeatWriter, parse_log
from trainer.saving.checkpoint import load, tensor_chunks
from trainer.saving.manifest import (
    ADAPTER,
    OPTIMIZER,
    Damaged,
    Manifest,
    directory_name,
    steps_present,
    verify,
)
from trainer.saving.run_day import load_run_config
from trainer.saving.state import TrainingState, present_tensors
from trainer.text import positive, print_line
from trainer.training.loop import train

STEPS_DEFAULT = 10


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a replay found; step numbers count from one, as in the log."""

    after_step: int  # the checkpoint it began from; 0 is the first weights, which the seed makes
    steps: int
    equal: bool
    first_difference: dict[str, Any] | None  # step, key, logged, replayed
    params: str | None  # digest of the parameters after the last replayed step
    checkpoint_compared: int | None  # step of a saved checkpoint whose tensors were compared too
    caveats: tuple[str, ...]  # other hardware or versions, which may change bits


def replay(
    run_dir: Path,
    *,
    steps: int | None,
    clock: Callable[[], float],
    on_message: Callable[[str], None],
) -> Replay:
    """Do `steps` steps of the run in `run_dir` again, from a checkpoint, and compare everything.

    Writes nothing into the run. Without `steps`, the replay goes from the last checkpoint but one
    to the last, at most `STEPS_DEFAULT` steps.

    Raises:
        ConfigError: the run has no log yet, or its settings are not those it was trained with.
        Busy: a trainer is at work there.
    """
    with alone_in(run_dir):
        logged = _logged(run_dir)
        heartbeat = HeartbeatWriter(
            run_dir / "status.json", disk=RealDisk(), now=lambda: datetime.now(UTC)
        )
        config = with_parent(load_run_config(run_dir), run_dir)
        job = JobContext(
            options=JobOptions(run_dir=run_dir),
            config=config,
            inputs=data_facts(config, run_dir),
            heartbeat=heartbeat,  # never started, so it writes nothing
            flag=PreemptionFlag(clock),
            on_message=on_message,
        )
        prepared = prepare_inputs(job)
        base = models.load_base(
            prepared.source, config.method, precision=prepared.precision, device=prepared.device
        )
        adapted = models.attach_adapter(base, config.method, config.train, parent=prepared.parent)
        context, state = set_up(job, prepared, adapted)
        prepared, context = use_kernels(job, prepared, context)
        root = run_dir / "checkpoints"
        stored = read_memory_record(run_dir)
        if stored is not None and stored.after_step == 0:  # a checkpoint says it by itself
            take_up(context, state, stored)
        start = choose_start(root, last=len(logged), steps=steps)
        caveats: tuple[str, ...] = ()
        checkpoint_step = start or choose_start(root, last=len(logged) + 1, steps=None)
        if checkpoint_step:
            directory = root / directory_name(checkpoint_step)
            snapshot = load(directory, tensor_bytes_max=size_limit(state))
            verdict = compare(snapshot.fingerprint, prepared.fingerprint, allowed=())
            verdict.require()
            caveats = verdict.inexact
            if start:
                state.restore(snapshot)
        until = min(start + (steps or STEPS_DEFAULT), len(logged))
        comparer = Comparer(logged=logged)
        train(replace(context, samples=None), state, comparer, until=until)
        return _judge(root, state, comparer, start=start, caveats=caveats)


def choose_start(root: Path, *, last: int, steps: int | None) -> int:
    """Return the newest whole checkpoint with enough logged steps after it, else 0.

    "Enough" is `steps`, or at least one if that is None.
    """
    for step in steps_present(root):
        if step + (steps or 1) <= last and _whole(root / directory_name(step)) is not None:
            return step
    return 0


@dataclass(kw_only=True)
class Comparer:
    """Compares every replayed step with its line in the log."""

    logged: dict[int, dict[str, Any]]
    compared: int = 0
    difference: dict[str, Any] | None = None
    last: dict[str, Any] = field(default_factory=dict)

    def after_step(self, record: dict[str, Any]) -> None:
        """Note the first value that differs from the log."""
        self.compared += 1
        self.last = record
        self.amend(record)

    def amend(self, record: dict[str, Any]) -> None:
        """Compare a record that counts as no step of its own."""
        line = self.logged.get(record["step"], {})
        for key, value in record.items():
            if self.difference is None and key not in MEASURED and line.get(key) != value:
                self.difference = {
                    "step": record["step"],
                    "key": key,
                    "logged": line.get(key),
                    "replayed": value,
                }


def _judge(
    root: Path, state: TrainingState, comparer: Comparer, *, start: int, caveats: tuple[str, ...]
) -> Replay:
    """Compare the tensors too, if a checkpoint of the last replayed step is there.

    A checkpoint can stem from before the validation of its step, so the best adapter that it holds
    is left out; it is a copy of one whose parameters are in the log.
    """
    difference, compared = comparer.difference, None
    directory = root / directory_name(state.counters.step)
    if _whole(directory) is not None:
        now = state.snapshot({})
        now.ready()
        then = load(directory, tensor_bytes_max=size_limit(state))
        compared = then.step
        pairs = (
            (ADAPTER, present_tensors(then.adapter), present_tensors(now.adapter)),
            (OPTIMIZER, then.optimizer, now.optimizer),
        )
        for name, *both in pairs:
            saved, found = (hashlib.sha256(b"".join(tensor_chunks(x))).hexdigest() for x in both)
            if difference is None and found != saved:
                difference = {
                    "step": then.step,
                    "key": name,
                    "logged": saved,
                    "replayed": found,
                }
    return Replay(
        after_step=start,
        steps=comparer.compared,
        equal=difference is None,
        first_difference=difference,
        params=comparer.last.get("params"),
        checkpoint_compared=compared,
        caveats=caveats,
    )


def _whole(directory: Path) -> Manifest | None:
    """Return the manifest of a checkpoint if it is there and verifies."""
    try:
        return verify(directory)
    except Damaged:
        return None


def _logged(run_dir: Path) -> dict[int, dict[str, Any]]:
    """Return the lines of the log by step; raise `ConfigError` if there is none."""
    try:
        records = [json.loads(x) for x in parse_log((run_dir / "metrics.jsonl").read_bytes())]
        found = {int(record["step"]): record for record in records}
    except FileNotFoundError:
        found = {}
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError([f"{run_dir}/metrics.jsonl is no log of a run: {error}"]) from error
    if not found:
        raise ConfigError([f"{run_dir} has no logged step yet: there is nothing to verify"])
    return found


def to_text(result: Replay) -> str:
    """Say the result in words."""
    span = f"steps {result.after_step + 1}-{result.after_step + result.steps}"
    if result.equal:
        extra = (
            f", and adapter and optimizer equal the checkpoint of step {result.checkpoint_compared}"
            if result.checkpoint_compared
            else ""
        )
        return f"verified: {span} replayed to the same losses and parameters{extra}"
    what = result.first_difference or {}
    where = f"first difference at step {what.get('step')}, {what.get('key')}"
    values = f"was {what.get('logged')}, is {what.get('replayed')}"
    caveats = [f"  other than at training: {line}" for line in result.caveats]
    return "\n".join([f"NOT the same: {span} replayed; {where}: {values}", *caveats])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say which steps of which run are done again."""
    parser.add_argument("--run-dir", type=Path, required=True, help="where config.json lies")
    parser.add_argument("--steps", type=positive, help="how many; default: to the last checkpoint")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Replay a part of the run and say whether it gave the same bits."""
    result = replay(
        args.run_dir.resolve(), steps=args.steps, clock=time.monotonic, on_message=print_line
    )
    text = json.dumps(asdict(result), indent=1) if args.json else to_text(result)
    sys.stdout.write(text + "\n")
    return ExitCode.DONE if result.equal else ExitCode.DIFFERS
