"""Carries chunks over several SFTP channels of one connection, without a round trip per packet."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from remote.errors import NoSpace, RemoteError, Unreachable
from remote.on_machine import tree_ops
from remote.remote_script import RemoteScript
from remote.ssh import SshConnection, translate_network_errors
from remote.sync.plan import Blob, Chunk, Progress, ProgressCounter, SyncOptions, TransferStats
from remote.sync.sftp import Sftp
from remote.sync.stall import MinimumSpeed


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One call of push or pull: between whom, how, and what it counts."""

    connection: SshConnection
    remote: str
    """The directory there."""
    options: SyncOptions
    progress: Callable[[Progress], None] | None
    stats: TransferStats

    @property
    def script(self) -> RemoteScript:
        """Our helper on the machine."""
        return RemoteScript(
            connection=self.connection, path=Path(tree_ops.__file__), python=self.options.python
        )

    @property
    def there(self) -> str:
        """The directory there, for messages."""
        return f"{self.connection.host}:{self.remote}"

    def counter(self, blobs: Sequence[Blob]) -> ProgressCounter:
        """Start counting for these blobs."""
        return ProgressCounter(
            bytes_total=sum(blob.size for blob in blobs),
            files_total=sum(len(blob.parts) for blob in blobs),
            on_progress=self.progress,
            stats=self.stats,
            left={blob.name: blob.size for blob in blobs},
        )


def require_sftp(connection: SshConnection, *, silence_s: float = 30.0) -> None:
    """Raise `NoSftp` unless the server carries files; made for asking before anything dear."""
    with (
        translate_network_errors(connection.host, connection.transport),
        closing(Sftp.open(connection.transport, silence_s=silence_s)),
    ):
        pass


def transfer_chunks(
    transfer: Transfer,
    chunks: Sequence[Chunk],
    work: Callable[[Sftp, Chunk], None],
    counter: ProgressCounter,
) -> None:
    """Do `work` for every chunk, on as many channels as are useful; stop all at the first error.

    Raises what `work` raises, and `Unreachable` when the line is cut: what has arrived stays.
    """
    waiting: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
    for chunk in chunks:
        waiting.put(chunk)
    failures: list[BaseException] = []
    options = transfer.options
    minimum_speed = MinimumSpeed(
        bytes_per_s=options.speed_min_bytes_per_s,
        window_s=options.speed_window_s,
        clock=options.clock,
        who=str(transfer.connection.host),
    )
    stop = threading.Event()
    lock = threading.Lock()

    def channel() -> None:
        try:
            with (
                translate_network_errors(transfer.connection.host, transfer.connection.transport),
                closing(
                    Sftp.open(transfer.connection.transport, silence_s=options.silence_s)
                ) as sftp,
            ):
                sftp.arrived = minimum_speed.add
                while not stop.is_set():
                    try:
                        chunk = waiting.get_nowait()
                    except queue.Empty:
                        return
                    work(sftp, chunk)
                    with lock:
                        counter.add(chunk)
        except Exception as error:  # noqa: BLE001  (raised again in the caller's thread)
            failures.append(error)
            stop.set()

    threads = [
        threading.Thread(target=channel, daemon=True)
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
    """Choose the failure that tells most: one channel's real error cuts nothing else short."""
    ranks: tuple[type[BaseException], ...] = (NoSpace, Unreachable, RemoteError)
    for kind in ranks:
        for failure in failures:
            if isinstance(failure, kind):
                return failure
    return failures[0]
