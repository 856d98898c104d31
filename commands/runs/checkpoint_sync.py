"""Brings every new checkpoint home during training, so that no machine holds the only copy.

What arrives counts only after the trainer's own verification; the newest verified one at home is
never removed, and goes to the next machine when that has nothing newer. A name proves nothing: the
newest that verifies is taken, and one that does not is said once and never hides another.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from commands.runs.result_files import Expected
from infra.provider import Vm
from remote import errors, ssh
from remote.sync.api import list_files, pull, push
from remote.sync.manifest import Tree
from remote.sync.plan import Progress, SyncOptions
from trainer.saving.manifest import (
    FILES,
    MANIFEST,
    Damaged,
    directory_name,
    parse_manifest,
    step_of,
    steps_present,
    verify_resumable,
)

EVERY_S = 5.0
KEEP = 2
SCORES = ("eval-before.json", ".scored.json")
"""What need not be measured again on the next machine."""
LIST_BYTES_MAX = 1 << 20
CANDIDATES_MAX = 8
"""How many checkpoints are looked at in one go, so that a thousand names do not hold it up."""
AGAIN_S = 300.0
"""One that did not verify is looked at again after this long: its step may have been saved anew."""


class CheckpointSync:
    """One background thread with a connection of its own; starts and stops as often as asked."""

    def __init__(  # noqa: PLR0913  (what it works with; nothing in it is global)
        self,
        *,
        connect: Callable[[Vm], ssh.SshConnection],
        remote_run: str,
        home: Path,
        options: SyncOptions,
        expected: Callable[[], Expected],
        on_message: Callable[[str], None],
        pull_lock: threading.Lock | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._remote = remote_run
        self._home = home
        self._scores = home.parent / "scores"
        self._incoming = home.parent / "incoming"
        self._options = options
        self._expected = expected
        self._log = on_message
        self._pull_lock = pull_lock or threading.Lock()
        self._clock = clock
        self._logged: set[str] = set()
        self._connection: ssh.SshConnection | None = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._verified: dict[int, bool] = {}
        self._refused_s: dict[int, float] = {}
        """Steps there that did not verify, and when that was seen."""

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
        if self._connection is not None:
            self._connection.close()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def newest_step(self) -> int:
        """Step of the newest checkpoint at home that verifies; 0 if there is none."""
        return next((step for step in steps_present(self._home) if self._is_whole(step)), 0)

    def pull_newest(
        self, connection: ssh.SshConnection, progress: Callable[[Progress], None] | None = None
    ) -> None:
        """Copy the newest on the machine that verifies, and drop what is older than the last.

        Nothing of one that does not is kept. Raises the errors of `remote`.
        """
        with self._pull_lock:  # another machine of the run may be bringing its own home
            self._pull_newest(connection, progress)

    def _pull_newest(
        self, connection: ssh.SshConnection, progress: Callable[[Progress], None] | None
    ) -> None:
        mine = self.newest_step()
        newer = [step for step in self._offered(connection) if step > mine]
        self._drop_incoming(newer)
        for step in newer[:CANDIDATES_MAX]:
            if not self._fetch(connection, step, progress):
                continue
            pull(
                connection,
                self._remote,
                self._scores,
                limits=self._expected().limits,
                options=replace(self._options, only=SCORES),
            )
            self._rotate()
            return

    def tidy(self) -> None:
        """Give back the room of checkpoints that were on their way: nobody needs them any more."""
        self._drop_incoming(())

    def push_newest(self, connection: ssh.SshConnection) -> None:
        """Give the machine the newest checkpoint at home if it has none as new that is whole."""
        with self._pull_lock:  # or what is on its way there could be rotated away meanwhile
            self._push_newest(connection)

    def _push_newest(self, connection: ssh.SshConnection) -> None:
        mine = self.newest_step()
        if not mine:
            return
        newer = [step for step in self._offered(connection) if step > mine]
        # An equal one may have been cut off half-way; pushing it again costs nothing.
        if any(self._is_whole_there(connection, step) for step in newer[:CANDIDATES_MAX]):
            return
        name = directory_name(mine)
        scores = {path.name: path for path in self._scores.glob("*") if path.name in SCORES}
        if scores:
            push(connection, scores, self._remote, options=self._options)
        push(
            connection,
            self._home / name,
            f"{self._remote}/checkpoints/{name}",
            options=self._options,
        )

    def _loop(self, vm: Vm) -> None:
        """Copy until told to stop; a machine that goes away ends the loop, not the run."""
        try:
            with self._connect(vm) as connection:
                self._connection = connection
                while not self._ended.wait(EVERY_S):
                    if self._pull_lock.acquire(blocking=False):  # else at the next look
                        try:
                            self._pull_newest(connection, None)
                        finally:
                            self._pull_lock.release()
        except errors.Unreachable:
            return  # the supervisor sees the machine itself, and starts this again when it is back
        except (errors.RemoteError, OSError) as error:
            # It is tried again, so it is said once: a full disk here, most likely.
            if not self._ended.is_set():
                self._log_once(f"warning: the newest checkpoint did not come home: {error}")

    def _offered(self, connection: ssh.SshConnection) -> list[int]:
        """The steps that the machine names checkpoints of and can have reached, newest first.

        Those that did not verify a while ago are left out.
        """
        folder = f"{self._remote}/checkpoints"
        script = f'ls -1 "$1" | head -c {LIST_BYTES_MAX}'
        listing = connection.run(["sh", "-c", script, "ls", folder], timeout_s=30, check=False)
        steps = {step for name in listing.stdout.split() if (step := step_of(name)) is not None}
        beyond = {step for step in steps if step > self._expected().steps_max}
        for step in sorted(beyond)[:1]:
            self._refuse(step, "the training has fewer steps")
        since_s = self._clock() - AGAIN_S
        refused = {step for step, at_s in self._refused_s.items() if at_s > since_s}
        return sorted(steps - beyond - refused, reverse=True)

    def _fetch(
        self, connection: ssh.SshConnection, step: int, progress: Callable[[Progress], None] | None
    ) -> bool:
        """Bring one checkpoint home if it is whole, there and here; say once why not."""
        if not self._is_whole_there(connection, step):
            return False
        name = directory_name(step)
        expected, target = self._expected(), self._incoming / name
        try:
            pull(
                connection,
                f"{self._remote}/checkpoints/{name}",
                target,
                limits=expected.checkpoint_limits,
                on_progress=progress,
                options=replace(self._options, only=(*sorted(FILES), MANIFEST)),
            )
            verify_resumable(target, tensor_bytes_max=expected.tensor_bytes_max)
        except errors.Absent:
            return False  # rotated away meanwhile
        except (Damaged, errors.Damaged, errors.Untrusted) as error:
            shutil.rmtree(target, ignore_errors=True)
            self._refuse(step, str(error))
            return False
        self._home.mkdir(parents=True, exist_ok=True)
        _remove(self._home / name)  # it did not verify, or it would not have been asked for
        target.rename(self._home / name)
        self._verified[step] = True
        return True

    def _is_whole_there(self, connection: ssh.SshConnection, step: int) -> bool:
        """Compare what the machine says of a checkpoint's files with its manifest; say once if not.

        Only the manifest travels.
        """
        name = directory_name(step)
        folder, target = f"{self._remote}/checkpoints/{name}", self._incoming / name
        limits = self._expected().checkpoint_limits
        try:
            only = replace(self._options, only=(*sorted(FILES), MANIFEST))
            there = list_files(connection, folder, limits=limits, options=only)
            pull(
                connection,
                folder,
                target,
                limits=limits,
                options=replace(self._options, only=(MANIFEST,)),
            )
            compare(there, target / MANIFEST, step=step)
        except errors.Absent:
            return False  # rotated away meanwhile
        except (Damaged, errors.Damaged, errors.Untrusted) as error:
            shutil.rmtree(target, ignore_errors=True)
            self._refuse(step, str(error))
            return False
        return True

    def _refuse(self, step: int, reason: str) -> None:
        self._refused_s[step] = self._clock()
        self._log_once(
            f"the checkpoint of step {step} on the machine cannot be used ({reason}); "
            "the newest that verifies counts"
        )

    def _log_once(self, text: str) -> None:
        if text not in self._logged:
            self._logged.add(text)
            self._log(text)

    def _is_whole(self, step: int) -> bool:
        """Whether the checkpoint at home verifies; asked once, because the bytes do not change."""
        if step not in self._verified:
            try:
                verify_resumable(self._home / directory_name(step))
            except OSError:
                return False
            except Damaged as error:
                self._verified[step] = False
                self._log_once(
                    f"the copy at home of the checkpoint of step {step} is damaged ({error}); "
                    "the newest that verifies counts"
                )
            else:
                self._verified[step] = True
        return self._verified[step]

    def _rotate(self) -> None:
        """Keep the newest that verify; what does not is worth no room once a good one is here."""
        whole = [step for step in steps_present(self._home) if self._is_whole(step)]
        for step in steps_present(self._home):
            if step not in whole[:KEEP]:
                _remove(self._home / directory_name(step))
                self._verified.pop(step, None)

    def _drop_incoming(self, wanted: Iterable[int]) -> None:
        """Give back the room of transfers that nobody will finish."""
        names = {directory_name(step) for step in wanted}
        for path in self._incoming.glob("*"):
            if path.name not in names:
                _remove(path)


def compare(there: Tree, manifest: Path, *, step: int) -> None:
    """Raise `Damaged` unless a listing is what the manifest, which has come, tells of that step."""
    if missing := sorted({*FILES, MANIFEST} - set(there)):
        raise Damaged(f"it has no {missing[0]}")
    listed = parse_manifest(manifest.read_bytes())
    if listed.step != step:
        raise Damaged(f"its manifest is about step {listed.step}")
    for name, fact in listed.files.items():
        if (there[name].size, there[name].sha256) != (fact.size, fact.sha256):
            raise Damaged(f"{name} is not what was saved")


def _remove(path: Path) -> None:
    """Remove a directory, or whatever else carries its name; a link is not followed."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
