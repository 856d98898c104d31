"""Keeps the log of a running training at home, seconds behind the machine, for the live page.

What arrives is a machine's word: only whole lines whose steps increase are kept, within the size
that the run can make. It is shown and decides nothing: results come home by `workload.fetch`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.durable import write_json
from infra.run.heartbeat import Heartbeat
from infra.untrusted import NotPlain, parse, table, whole
from remote import ssh
from trainer.rundir.samples import SAMPLES

EVERY_S = 2.0
"""With a look at the files here every half second, a step is on the page within five."""
ASK_S = 15.0
CHUNK_BYTES = 1 << 20
CHUNKS_MAX = 8
"""How many parts of a long log come in one go."""
LINE_BYTES_MAX = 1 << 20
METRICS, STATUS = "metrics.jsonl", "status.json"
READ = 'test -f "$1" || exit 1; tail -c "+$2" -- "$1" | head -c "$3"'
"""Print a file from a byte on, counted from 1, and how many bytes at most."""


@dataclass(frozen=True, kw_only=True)
class LogEnd:
    """Where a copied log ends: its last two lines, by which a log that was cut back is noticed.

    The line before the last is the anchor. The last one may be written anew by the trainer, which
    adds the validation to it.
    """

    offset: int = 0
    """Where the anchor begins, in bytes."""
    lines: tuple[bytes, ...] = ()
    """The lines from there on, each with its end."""
    step: int = -1
    """The step before the anchor."""

    @property
    def size(self) -> int:
        """Bytes of the whole log."""
        return self.offset + sum(map(len, self.lines))


def follow_on(end: LogEnd, data: bytes, *, repeats: bool = False) -> LogEnd | None:
    """Return the end of a log after `data`, which was read from the anchor on, with all new lines.

    A torn last line is left for the next time, and so is everything from a line on that is no
    record of a further step, or with `repeats` of the same one. None if the log there does not go
    on from this one.
    """
    lines = [line + b"\n" for line in data.split(b"\n")[:-1]]
    if end.lines and lines[:1] != [*end.lines[:1]]:
        return None
    step, kept = end.step, []
    for line in lines:
        found = _step_of(line)
        if found is None or found < step + (not repeats):
            break
        step = found
        kept.append(line)
    return LogEnd(offset=end.offset, lines=tuple(kept), step=end.step)


def shortened(end: LogEnd) -> LogEnd:
    """Return the same end with its last two lines only."""
    passed = end.lines[:-2]
    step = _step_of(passed[-1]) if passed else None
    return LogEnd(
        offset=end.offset + sum(map(len, passed)),
        lines=end.lines[-2:],
        step=end.step if step is None else step,
    )


def _step_of(line: bytes) -> int | None:
    try:
        return whole(table(parse(line, bytes_max=LINE_BYTES_MAX)).get("step"))
    except NotPlain:
        return None


@dataclass(kw_only=True)
class LogCopy:
    """The copy at home of one log that grows on the machine."""

    path: Path
    bytes_max: Callable[[], int]
    repeats: bool = False
    """Whether a step may have several lines."""
    end: LogEnd = field(default_factory=LogEnd)
    misses: int = 0
    """Reads in a row that did not go on from here: one may have met a log half written."""

    def take(self, data: bytes) -> bool:
        """Add what was read from the anchor on; return whether there may be more at once.

        Raises `OSError` if it cannot be written here.
        """
        after = follow_on(self.end, data, repeats=self.repeats)
        if after is None:
            self.misses += 1
            if self.misses > 1:
                self.end, self.misses = LogEnd(), 0
                return True
            return False
        self.misses = 0
        if after.lines == self.end.lines or after.size > self.bytes_max():
            return False
        _write_from(self.path, after.offset, b"".join(after.lines))
        self.end = shortened(after)
        return len(data) >= CHUNK_BYTES


def _write_from(path: Path, offset: int, data: bytes) -> None:
    """Let a file end with `data` from `offset` on; whoever reads it leaves out a torn last line."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with open(handle, "r+b") as file:  # noqa: PTH123  (a descriptor, not a path)
        file.truncate(offset)
        file.seek(offset)
        file.write(data)


class LiveFiles:
    """One background thread that copies logs over the connection that the driver has anyway."""

    def __init__(
        self,
        *,
        connection: Callable[[], ssh.SshConnection | None],
        remote_run: str,
        home: Path,
        limits: Mapping[str, Callable[[], int]],
    ) -> None:
        self._connection = connection
        self._remote = remote_run
        self._home = home
        self._copies = {
            name: LogCopy(path=home / name, bytes_max=most, repeats=name == SAMPLES)
            for name, most in limits.items()
        }
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._shown: Heartbeat | None = None

    def start(self) -> None:
        """Begin to copy; nothing happens if that is already going on."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._loop, args=(self._ended,), name="live-files", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the copying; a read that is under way ends by itself, or with its connection."""
        self._ended.set()
        self._thread = None

    def note_status(self, heartbeat: Heartbeat) -> None:
        """Keep the trainer's status, as it was just read; none while a new one has not begun."""
        if heartbeat == self._shown:
            return
        with contextlib.suppress(OSError):  # no room: it is shown a little late
            if heartbeat.is_present:
                self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
                write_json(self._home / STATUS, heartbeat.to_json())
            else:
                (self._home / STATUS).unlink(missing_ok=True)
            self._shown = heartbeat

    def copy(self, connection: ssh.SshConnection) -> None:
        """Bring what is new. Raises the errors of `remote`, and `OSError`."""
        for name, copy in self._copies.items():
            for _ in range(CHUNKS_MAX):
                data = self._read(connection, name, copy.end.offset)
                if data is None or not copy.take(data):
                    break

    def _read(self, connection: ssh.SshConnection, name: str, offset: int) -> bytes | None:
        """Return a part of a file there; None if there is no such file."""
        path = f"{self._remote}/{name}"
        words = ["sh", "-c", READ, "read", path, str(offset + 1), str(CHUNK_BYTES)]
        parts: list[bytes] = []
        code, _ = connection.stream(
            shlex.join(words), parts.append, timeout_s=ASK_S, limit_bytes=2 * CHUNK_BYTES
        )
        return None if code else b"".join(parts)

    def _loop(self, ended: threading.Event) -> None:
        """Copy until told to stop; what goes wrong here is the driver's to notice."""
        while not ended.wait(EVERY_S):
            connection = self._connection()
            if connection is None or not connection.alive:
                continue
            # Whatever it is of a connection that is just being cut: see above.
            with contextlib.suppress(Exception):
                self.copy(connection)
