"""A training set up on any run directory inside the test's own process, step by step at hand."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

from support import tiny
from trainer import model as models
from trainer.atomic import RealDisk
from trainer.config import load_config
from trainer.eviction import PreemptionFlag
from trainer.job.context import JobContext, JobOptions, with_parent
from trainer.job.prepare import prepare_inputs
from trainer.job.resume import size_limit
from trainer.job.set_up import set_up
from trainer.rundir.layout import CONFIG, data_facts
from trainer.rundir.status import HeartbeatWriter
from trainer.saving.async_saver import AsyncSaver, SaveResult
from trainer.saving.checkpoint import Store
from trainer.saving.state import TrainingState
from trainer.training.loop import train
from trainer.training.train_context import TrainContext


@dataclass(kw_only=True)
class Rig:
    """A training set up on the tiny model, as a process would have it after its start."""

    run_dir: Path
    context: TrainContext
    state: TrainingState
    store: Store
    messages: list[str]
    heartbeat: HeartbeatWriter

    def train(self, until: int) -> None:
        """Train up to and including step `until`."""
        train(self.context, self.state, Logger(self.state), until=until)

    def save(self) -> None:
        """Save the present state, durably."""
        self.store.save(self.state.snapshot(FACTS))


@contextmanager
def saves_in_step() -> Iterator[None]:
    """Let the loop wait for every save, so that no disk decides which checkpoints there are.

    By itself it goes on while a save is under way, and leaves out one that falls due meanwhile.
    """
    collect = AsyncSaver.collect

    def patient(self: AsyncSaver, *, wait: bool) -> SaveResult | None:
        return collect(self, wait=True)

    with mock.patch.object(AsyncSaver, "collect", patient):
        yield


FACTS: dict[str, Any] = {"config": {}, "data": {}, "base": {}, "hardware": {}, "versions": {}}


@dataclass
class Logger:
    """Writes the log, and raises the flag after a chosen step."""

    state: TrainingState
    flag: PreemptionFlag | None = None
    stop_after: int = -1
    records: list[dict[str, Any]] = field(default_factory=list)

    def after_step(self, record: dict[str, Any]) -> None:
        """Do what a checkpointer does, without saving."""
        self.records.append(record)
        self.state.log.append(record)
        if self.flag and record["step"] == self.stop_after:
            self.flag.set(seconds_left=30, reason="test")

    def amend(self, record: dict[str, Any]) -> None:
        """Complete the last line of the log."""
        self.records.append(record)
        self.state.log.amend(record)


def rig(run_dir: Path) -> Rig:
    """Set everything up from the config in `run_dir` and restore the newest checkpoint."""
    messages: list[str] = []
    config = with_parent(load_config(run_dir / CONFIG), run_dir)
    heartbeat = HeartbeatWriter(
        run_dir / "status.json", disk=RealDisk(), now=lambda: datetime.now(UTC)
    )
    job = JobContext(
        options=JobOptions(run_dir=run_dir),
        config=config,
        inputs=data_facts(config, run_dir),
        heartbeat=heartbeat,
        flag=PreemptionFlag(time.monotonic),
        on_message=messages.append,
    )
    prepared = prepare_inputs(job)
    base = models.load_base(
        prepared.source, config.method, precision=prepared.precision, device=prepared.device
    )
    adapted = models.attach_adapter(base, config.method, config.train, parent=prepared.parent)
    context, state = set_up(job, prepared, adapted)
    store = Store(run_dir / "checkpoints", keep=2, disk=RealDisk())
    return Rig(
        run_dir=run_dir,
        context=context,
        state=state,
        store=store,
        messages=messages,
        heartbeat=heartbeat,
    )


def restored(run_dir: Path) -> Rig:
    """Return a rig that goes on from the newest checkpoint, as a new process would."""
    made = rig(run_dir)
    found = made.store.load_newest(
        tensor_bytes_max=size_limit(made.state), on_message=made.messages.append
    )
    if found is not None:
        made.state.restore(found)
    return made


def outcome(made: Rig) -> tuple[list[dict[str, Any]], dict[str, bytes], dict[str, bytes]]:
    """Return log, adapter and optimizer so that == compares every bit."""
    snapshot = made.state.snapshot({})
    spell = [
        {k: v.numpy().tobytes() for k, v in tensors.items()}
        for tensors in (snapshot.adapter, snapshot.optimizer)
    ]
    return tiny.losses(made.run_dir), spell[0], spell[1]


def twin_of(made: Rig, directory: Path) -> Path:
    """Return a new run directory with the same config."""
    run = directory / "run"
    run.mkdir(parents=True)
    (run / CONFIG).write_bytes((made.run_dir / CONFIG).read_bytes())
    return run


def stopped(made: Rig, directory: Path, stops: Iterable[int]) -> Iterator[tuple[int, Path]]:
    """Do a run once more, saved after each of these steps; give what lay on the disk each time."""
    again = rig(twin_of(made, directory / "again"))
    for stop in stops:
        again.train(until=stop)
        again.save()
        yield stop, shutil.copytree(again.run_dir, directory / str(stop))


def outcome_tensors(made: Rig) -> dict[str, bytes]:
    """Return the adapter's bits."""
    return {k: v.detach().numpy().tobytes() for k, v in made.state.parameters.items()}
