"""Saves checkpoints in a background thread, so that the loop waits for a copy, not for a disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from trainer.saving.checkpoint import Snapshot, Store


@dataclass(frozen=True, kw_only=True)
class SaveResult:
    """How a save ended: durable after `seconds`, or not, for the reason in `failure`."""

    step: int
    seconds: float
    failure: str | None


class AsyncSaver:
    """Runs one save at a time in a thread; the loop collects its result after a step."""

    def __init__(self, store: Store, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._result: SaveResult | None = None
        self._crash: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a save is under way or its result has not been collected yet."""
        return self._thread is not None

    def start(self, snapshot: Snapshot) -> None:
        """Begin to save; the caller has made sure that the saver is not busy."""
        if self.busy:
            raise RuntimeError("a save is under way")
        self._thread = threading.Thread(
            target=self._save, args=(snapshot,), name="saver", daemon=True
        )
        self._thread.start()

    def collect(self, *, wait: bool) -> SaveResult | None:
        """Return the result of a save that has ended, after waiting for it if asked, else None.

        A full or failing disk is a result; anything else is our bug and is raised here, in the
        thread of the caller.
        """
        if self._thread is None or (self._thread.is_alive() and not wait):
            return None
        self._thread.join()
        self._thread = None
        if self._crash is not None:
            raise RuntimeError("the save failed by a bug of ours") from self._crash
        return self._result

    def _save(self, snapshot: Snapshot) -> None:
        began_s = self._clock()
        failure = None
        try:
            self._store.save(snapshot)
        except OSError as error:
            failure = error.strerror or str(error)
        except BaseException as error:  # noqa: BLE001 - carried over to the loop's thread
            self._crash = error
        self._result = SaveResult(
            step=snapshot.step, seconds=self._clock() - began_s, failure=failure
        )
