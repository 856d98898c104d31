"""Makes what logs and saves the steps of a training, and opens the store of its checkpoints."""

from __future__ import annotations

import time
from typing import Protocol

from trainer.atomic import RealDisk
from trainer.job.context import JobContext
from trainer.rundir.fingerprint import Facts
from trainer.saving.async_saver import AsyncSaver
from trainer.saving.checkpoint import Store
from trainer.saving.checkpointer import Checkpointer
from trainer.saving.replica import LockedStore, ReplicaCheckpointer
from trainer.saving.state import TrainingState
from trainer.tracking.tracker import Tracker
from trainer.training.loop import StepCallback


class SavingCallback(StepCallback, Protocol):
    """A step callback that also saves when the training ends, early or not."""

    def save_now(self) -> bool:
        """Make the present state durable before returning; tell whether that worked."""

    def finish(self) -> None:
        """Make the state after the last step durable."""


def open_store(job: JobContext) -> Store:
    """Return the checkpoints of the run; with several ranks any of them may have to save."""
    kind = Store if job.peers.size == 1 else LockedStore
    return kind(
        job.run_dir / "checkpoints",
        keep=job.config.checkpoint.keep,
        disk=RealDisk(),
        on_message=job.on_message,
    )


def make_step_callback(
    job: JobContext, state: TrainingState, store: Store, *, fingerprint: Facts, tracker: Tracker
) -> SavingCallback:
    """Return what follows the steps of this rank: the first logs and saves, the others stand by."""
    if not job.writers.save:
        return ReplicaCheckpointer(
            state=state, store=store, fingerprint=fingerprint, on_message=job.on_message
        )
    return Checkpointer(
        state=state,
        saver=AsyncSaver(store, clock=time.monotonic),
        table=job.config.checkpoint,
        band=job.options.band,
        fingerprint=fingerprint,
        heartbeat=job.heartbeat,
        tracker=tracker,
        clock=time.monotonic,
        on_message=job.on_message,
        save_requested=lambda: job.flag.save_requested,
    )
