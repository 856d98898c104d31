"""Transfers chunks over several SFTP channels of one connection, without a round trip per packet.

Counts what has arrived, and gives up a transfer that is too slow to be worth the wait.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remote.errors import NoSpace, RemoteError, TooSlow, Unreachable
from remote.on_machine import tree_ops
from remote.remote_script import RemoteScript
from remote.ssh import SshConnection, translate_network_errors
from remote.sync.plan import HASHING_S_MAX, Blob, Chunk, Progress, SyncOptions
from remote.sync.replies import read_disk_full
from remote.sync.session import ScriptSession
from remote.sync.sftp import Sftp

REPORTED_BYTES = 8 << 20


@dataclass(kw_only=True)
class TransferStats:
    """Bytes that travelled, and bytes that did not have to, over all attempts of one transfer."""

    sent: int = 0
    resumed: int = 0


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One push or pull: over which connection, with which directory there, how, and its counts."""

    connection: SshConnection
    remote: str
    """The directory there, relative to the user's home."""
    options: SyncOptions
    on_progress: Callable[[Progress], None] | None = None
    stats: TransferStats = field(default_factory=TransferStats)
    session: ScriptSession | None = None
    """The process there that runs the verbs; without one our script is started for each."""

    @property
    def host(self) -> str:
        """The machine, for messages."""
        return str(self.connection.host)

    @property
    def place(self) -> str:
        """The machine and the directory there, for messages."""
        return f"{self.connection.host}:{self.remote}"

    @property
    def script(self) -> RemoteScript:
        """Our script on the machine."""
        return RemoteScript(
            connection=self.connection, path=Path(tree_ops.__file__), python=self.options.python
        )

    def call(
        self,
        verb: str,
        request: Mapping[str, Any],
        *,
        timeout_s: float = HASHING_S_MAX,
        needed_bytes: int = 0,
        after_request: Callable[[], bytes] | None = None,
    ) -> dict[str, Any]:
        """Run a verb of our script on the directory there; raises `NoSpace` if its disk is full.

        `needed_bytes` is what the error says is needed where the answer does not.
        """
        answer = (self.session or self.script).call(
            verb,
            {"root": self.remote, **request},
            timeout_s=timeout_s,
            after_request=after_request,
        )
        if full := read_disk_full(answer):
            needed, free = full
            raise NoSpace(self.place, needed_bytes=needed or needed_bytes, free_bytes=free)
        return answer

    def counter(
        self, blobs: Sequence[Blob], on_prefix: Callable[[Blob, int], None]
    ) -> ProgressCounter:
        """Start counting the progress of these blobs."""
        return ProgressCounter(
            bytes_total=sum(blob.size for blob in blobs),
            files_total=sum(len(blob.files) for blob in blobs),
            on_progress=self.on_progress,
            stats=self.stats,
            missing={blob.name: blob.size for blob in blobs},
            prefixes={blob.name: ReceivedPrefix(blob=blob, on_more=on_prefix) for blob in blobs},
        )


@dataclass(kw_only=True)
class ReceivedPrefix:
    """How much of a blob has arrived from its beginning without a gap."""

    blob: Blob
    on_more: Callable[[Blob, int], None]
    """Called with the bytes, each time a few more MB are there and at the end."""
    bytes: int = 0
    _reported: int = 0
    _beyond: dict[int, int] = field(default_factory=dict)
    """The chunks after a gap: their ends by their offsets."""

    def add(self, chunk: Chunk) -> None:
        """Take in one more chunk."""
        self._beyond[chunk.offset] = chunk.offset + chunk.size
        while self.bytes in self._beyond:
            self.bytes = self._beyond.pop(self.bytes)
            if self.bytes == self.blob.size:
                break  # an empty blob has one chunk, which ends where it begins
        step = REPORTED_BYTES if self.bytes < self.blob.size else 1
        if self.bytes - self._reported >= step:
            self._reported = self.bytes
            self.on_more(self.blob, self.bytes)


@dataclass(kw_only=True)
class ProgressCounter:
    """Counts chunks that have arrived and reports progress; the channels share it under a lock."""

    bytes_total: int
    files_total: int
    on_progress: Callable[[Progress], None] | None
    stats: TransferStats
    missing: dict[str, int]
    """Bytes that each blob still lacks, by its name."""
    prefixes: dict[str, ReceivedPrefix]
    """What has arrived of each blob without a gap, by its name."""
    bytes_done: int = 0
    files_done: int = 0

    def add(self, chunk: Chunk, *, sent: bool = True) -> None:
        """Count a chunk that has arrived, now (`sent`) or in an earlier transfer."""
        self.bytes_done += chunk.size
        if sent:
            self.stats.sent += chunk.size
        else:
            self.stats.resumed += chunk.size
        self.missing[chunk.blob.name] -= chunk.size
        if self.missing[chunk.blob.name] == 0:
            self.files_done += len(chunk.blob.files)
        self.prefixes[chunk.blob.name].add(chunk)
        self.report()

    def report(self) -> None:
        """Pass the progress so far to the caller."""
        if self.on_progress is not None:
            self.on_progress(
                Progress(
                    bytes_done=self.bytes_done,
                    bytes_total=self.bytes_total,
                    files_done=self.files_done,
                    files_total=self.files_total,
                )
            )


class MinimumSpeed:
    """Gives up a transfer that is slower, over all its channels, than the least speed allowed.

    Silence is noticed elsewhere; this notices a peer that sends one byte now and then, and so is
    never silent. `clock` returns seconds.
    """

    def __init__(
        self, *, bytes_per_s: float, window_s: float, clock: Callable[[], float], host: str
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._window_s = window_s
        self._clock = clock
        self._host = host
        self._lock = threading.Lock()
        self._window_began_s = clock()
        self._count = 0

    def add(self, count: int) -> None:
        """Count bytes that have arrived; raises `TooSlow` if a whole window brought too few."""
        with self._lock:
            self._count += count
            passed_s = self._clock() - self._window_began_s
            if passed_s < self._window_s:
                return
            count, self._count, self._window_began_s = self._count, 0, self._clock()
        if count < self._bytes_per_s * passed_s:
            raise TooSlow(
                f"{self._host} brought {count} bytes in {passed_s:.0f} s, and less than "
                f"{self._bytes_per_s:g} a second is not waited for",
                hint="what has come is kept, and the same command goes on from there",
            )


def require_sftp(connection: SshConnection, *, silence_s: float = 30.0) -> None:
    """Raise `NoSftp` unless the server has SFTP; to be called before anything that takes long."""
    with (
        translate_network_errors(connection.host, connection.transport),
        closing(Sftp.open(connection.transport, silence_s=silence_s)),
    ):
        pass


def transfer_chunks(
    transfer: Transfer,
    chunks: Sequence[Chunk],
    copy: Callable[[Sftp, Chunk], Callable[[], None]],
    counter: ProgressCounter,
) -> None:
    """Copy every chunk, on as many channels as are useful; stop all at the first error.

    `copy` begins a chunk and returns what finishes it. A few are on their way at once.
    Raises what `copy` raises, and `Unreachable` when the connection is cut: what has arrived stays.
    """
    waiting: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
    for chunk in chunks:
        waiting.put(chunk)
    failures: list[BaseException] = []
    connection, options = transfer.connection, transfer.options
    speed = MinimumSpeed(
        bytes_per_s=options.speed_min_bytes_per_s,
        window_s=options.speed_window_s,
        clock=options.clock,
        host=transfer.host,
    )
    stop = threading.Event()
    lock = threading.Lock()

    def run_channel() -> None:
        try:
            with (
                translate_network_errors(connection.host, connection.transport),
                closing(Sftp.open(connection.transport, silence_s=options.silence_s)) as sftp,
            ):
                sftp.on_bytes, sftp.clock = speed.add, options.clock
                begun: deque[tuple[Chunk, Callable[[], None]]] = deque()
                while not stop.is_set():
                    with suppress(queue.Empty):  # then those that are begun are the last
                        while len(begun) < options.chunks_ahead:
                            chunk = waiting.get_nowait()
                            begun.append((chunk, copy(sftp, chunk)))
                    if not begun:
                        return
                    chunk, finish = begun.popleft()
                    finish()
                    with lock:
                        counter.add(chunk)
        except Exception as error:  # noqa: BLE001  (raised again in the caller's thread)
            failures.append(error)
            stop.set()

    threads = [
        threading.Thread(target=run_channel, daemon=True)
        for _ in range(min(options.channels, len(chunks)))
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        stop.set()  # Ctrl-C here: the channels end after the chunk in hand
    if failures:
        raise most_specific(failures)


def most_specific(failures: Sequence[BaseException]) -> BaseException:
    """Return the failure that says most: an error of one channel makes the others fail as well."""
    for kind in (NoSpace, Unreachable, RemoteError):
        for failure in failures:
            if isinstance(failure, kind):
                return failure
    return failures[0]
