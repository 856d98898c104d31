"""Saves the last whole step of a training by several ranks when the first can do so no more.

All ranks have the same state. The first saves it as ever; when the ranks leave early, whichever
gets the lock of the checkpoints first saves what is not there yet.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.group.stopped import is_stopped
from trainer.rundir.fingerprint import Facts
from trainer.saving.checkpoint import Snapshot, Store
from trainer.saving.manifest import Manifest, steps_present
from trainer.saving.state import TrainingState

SAVING_LOCK = ".saving.lock"
LOCK_S_MAX = 8.0
LOCK_POLL_S = 0.05


@contextmanager
def saving_lock(
    path: Path,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Hold the lock under which one rank saves; it dies with its process.

    A rank that was stopped while it saved keeps its lock and will not go on: the others then lock
    another file, and what it has half written is removed by whoever saves.

    Raises:
        TimeoutError: another rank saves.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until_s = clock() + LOCK_S_MAX
        while not _locked(descriptor):
            if is_stopped(_holder(descriptor)):
                with saving_lock(path.with_name(f"{path.name}.next"), clock=clock, sleep=sleep):
                    yield
                return
            if clock() >= until_s:
                raise TimeoutError(None, "another rank holds the lock", str(path))
            sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Lock a file and note in it by whom; tell whether that was possible now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return True


def _holder(descriptor: int) -> int:
    """Return the process that noted itself in a lock file, 0 if none has yet."""
    text = os.pread(descriptor, 20, 0)
    return int(text) if text.isdigit() else 0


class LockedStore(Store):
    """The checkpoints of a run whose ranks may all save; one does at a time."""

    def save(self, snapshot: Snapshot) -> Manifest:
        """Save under the lock, and else as ever."""
        with saving_lock(self.root.parent / SAVING_LOCK):
            return super().save(snapshot)


@dataclass(frozen=True, kw_only=True)
class ReplicaCheckpointer:
    """The step callback of a rank that is not the first: it saves only what nobody else did."""

    state: TrainingState
    store: Store
    fingerprint: Facts
    on_message: Callable[[str], None]

    def after_step(self, record: dict[str, Any]) -> None:
        """Keep the record, for the checkpoint that this rank may have to write."""
        self.state.log.append(record)

    def amend(self, record: dict[str, Any]) -> None:
        """Complete the record of the last step."""
        self.state.log.amend(record)

    def save_now(self) -> bool:
        """Make the present state durable unless it is; tell whether it is now."""
        step = self.state.counters.step
        if step == 0 or self._is_saved(step):
            return True
        try:
            self.store.save(self.state.snapshot(self.fingerprint))
        except OSError as error:
            self.on_message(f"warning: step {step} could not be saved: {error}")
        return self._is_saved(step)

    def finish(self) -> None:
        """Leave the last checkpoint of a training that is done to the first rank."""

    def _is_saved(self, step: int) -> bool:
        """Tell whether this step, or a later one, has its checkpoint; each is renamed whole."""
        return max(steps_present(self.store.root), default=0) >= step
