"""Brings every new checkpoint home during training, so that no machine holds the only copy.

What arrives counts only after the trainer's own verification; the newest verified one at home is
never removed, and goes to the next machine when that has nothing newer.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from infra.provider import Vm
from remote import errors, link, sync
from remote.sync_plan import SyncOptions
from trainer.saving.manifest import Damaged, directory_name, step_of, steps_present, verify

EVERY_S = 5.0
KEEP = 2
SCORES = ("eval-before.json", ".scored.json")
"""What need not be measured again on the next machine."""


class Homing:
    """One background thread with a connection of its own; starts and stops as often as asked."""

    def __init__(
        self,
        *,
        connect: Callable[[Vm], link.Link],
        remote_run: str,
        home: Path,
        options: SyncOptions,
        say: Callable[[str], None],
    ) -> None:
        self._connect = connect
        self._remote = remote_run
        self._home = home
        self._scores = home.parent / "scores"
        self._options = options
        self._say = say
        self._said = ""
        self._link: link.Link | None = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._verified: dict[int, bool] = {}

    def start(self, vm: Vm) -> None:
        """Begin to copy from `vm`; nothing happens if that is already going on."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._ended.clear()
        self._thread = threading.Thread(target=self._loop, args=(vm,), name="homing", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the copying at once; what was on its way is resumed by the next copy."""
        self._ended.set()
        if self._link is not None:
            self._link.close()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def newest_step(self) -> int:
        """Step of the newest checkpoint at home that verifies; 0 if there is none."""
        steps = [step for step in steps_present(self._home) if self._is_whole(step)]
        return max(steps, default=0)

    def bring(self, connection: link.Link) -> None:
        """Copy now what is newer on the machine, verify it, and drop what is older than the last.

        Raises the errors of `remote`.
        """
        listing = connection.run(
            ["ls", "-1", f"{self._remote}/checkpoints"], timeout_s=30, check=False
        )
        offered = [step for name in listing.stdout.split() if (step := step_of(name)) is not None]
        if not offered or max(offered) <= self.newest_step():
            return
        name = directory_name(max(offered))
        sync.pull(
            connection,
            f"{self._remote}/checkpoints/{name}",
            self._home / name,
            options=self._options,
        )
        sync.pull(
            connection, self._remote, self._scores, options=replace(self._options, only=SCORES)
        )
        self._verified.pop(max(offered), None)
        if self._is_whole(max(offered)):
            self._rotate()

    def send_back(self, connection: link.Link) -> None:
        """Give the machine the newest checkpoint at home if it has none as new."""
        mine = self.newest_step()
        if not mine:
            return
        listing = connection.run(
            ["ls", "-1", f"{self._remote}/checkpoints"], timeout_s=30, check=False
        )
        theirs = [step for name in listing.stdout.split() if (step := step_of(name)) is not None]
        if max(theirs, default=0) > mine:
            return  # an equal one may have been cut off half-way; pushing it again costs nothing
        name = directory_name(mine)
        scores = {path.name: path for path in self._scores.glob("*") if path.name in SCORES}
        if scores:
            sync.push(connection, scores, self._remote, options=self._options)
        sync.push(
            connection,
            self._home / name,
            f"{self._remote}/checkpoints/{name}",
            options=self._options,
        )

    def _loop(self, vm: Vm) -> None:
        """Copy until told to stop; a machine that goes away ends the loop, not the run."""
        try:
            with self._connect(vm) as connection:
                self._link = connection
                while not self._ended.wait(EVERY_S):
                    self.bring(connection)
        except errors.Unreachable:
            return  # the supervisor sees the machine itself, and starts this again when it is back
        except (errors.RemoteError, OSError) as error:
            # It is tried again, so it is said once: a full disk here, most likely.
            if not self._ended.is_set() and str(error) != self._said:
                self._said = str(error)
                self._say(f"warning: the newest checkpoint did not come home: {error}")

    def _is_whole(self, step: int) -> bool:
        """Whether the checkpoint verifies; asked once, because the bytes do not change after."""
        if step not in self._verified:
            try:
                verify(self._home / directory_name(step))
            except (Damaged, OSError):
                return False
            self._verified[step] = True
        return True

    def _rotate(self) -> None:
        present = sorted(steps_present(self._home))
        whole = [step for step in present if self._is_whole(step)]
        oldest_kept = whole[-KEEP:][0]
        for step in present:
            if step < oldest_kept:
                shutil.rmtree(self._home / directory_name(step))
                self._verified.pop(step, None)
