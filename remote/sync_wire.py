"""Carries chunks over several SFTP channels of one connection, without a round trip per packet."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from remote import agent
from remote.call import Script
from remote.errors import NoSpace, RemoteError, Unreachable
from remote.link import Link, translated
from remote.sync_plan import Blob, Chunk, Progress, SyncOptions, Tally, Travelled

if TYPE_CHECKING:
    import paramiko

PACKET_BYTES = 32 << 10
"""What SSH servers accept in one channel packet."""
WINDOW_BYTES = 16 << 20
"""What the machine may send ahead of our reading, per channel: 320 MB/s at 50 ms."""


@dataclass(frozen=True, kw_only=True)
class Trip:
    """One call of push or pull: between whom, how, and what it counts."""

    link: Link
    remote: str
    """The directory there."""
    options: SyncOptions
    progress: Callable[[Progress], None] | None
    travelled: Travelled

    @property
    def script(self) -> Script:
        """Our helper on the machine."""
        return Script(link=self.link, path=Path(agent.__file__), python=self.options.python)

    @property
    def there(self) -> str:
        """The directory there, for messages."""
        return f"{self.link.host}:{self.remote}"

    def tally(self, blobs: Sequence[Blob]) -> Tally:
        """Start counting for these blobs."""
        return Tally(
            bytes_total=sum(blob.size for blob in blobs),
            files_total=sum(len(blob.parts) for blob in blobs),
            tell=self.progress,
            travelled=self.travelled,
            left={blob.name: blob.size for blob in blobs},
        )


def carry(
    trip: Trip,
    chunks: Sequence[Chunk],
    work: Callable[[paramiko.SFTPClient, Chunk], None],
    tally: Tally,
) -> None:
    """Do `work` for every chunk, on as many channels as are useful; stop all at the first error.

    Raises what `work` raises, and `Unreachable` when the line is cut: what has arrived stays.
    """
    waiting: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
    for chunk in chunks:
        waiting.put(chunk)
    failures: list[BaseException] = []
    stop = threading.Event()
    lock = threading.Lock()

    def channel() -> None:
        try:
            with (
                translated(trip.link.host, trip.link.transport),
                closing(open_sftp(trip.link, trip.options)) as sftp,
            ):
                while not stop.is_set():
                    try:
                        chunk = waiting.get_nowait()
                    except queue.Empty:
                        return
                    work(sftp, chunk)
                    with lock:
                        tally.add(chunk)
        except Exception as error:  # noqa: BLE001  (raised again in the caller's thread)
            failures.append(error)
            stop.set()

    threads = [
        threading.Thread(target=channel, daemon=True)
        for _ in range(min(trip.options.channels, len(chunks)))
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        stop.set()  # Ctrl-C here: the channels end after the chunk in hand
    if failures:
        raise worst(failures)


def worst(failures: Sequence[BaseException]) -> BaseException:
    """Choose the failure that tells most: one channel's real error cuts nothing else short."""
    ranks: tuple[type[BaseException], ...] = (NoSpace, Unreachable, RemoteError)
    for kind in ranks:
        for failure in failures:
            if isinstance(failure, kind):
                return failure
    return failures[0]


def open_sftp(link: Link, options: SyncOptions) -> paramiko.SFTPClient:
    """Open one more SFTP channel; raises `Unreachable` if the machine offers none."""
    import paramiko

    sftp = paramiko.SFTPClient.from_transport(link.transport, window_size=WINDOW_BYTES)
    if sftp is None:
        raise Unreachable(f"{link.host} opens no SFTP channel")
    channel = sftp.get_channel()
    if channel is not None:
        channel.settimeout(options.silence_s)
    return sftp


def write_range(sftp: paramiko.SFTPClient, path: str, offset: int, data: bytes) -> None:
    """Write `data` into an existing file; returns when the machine has acknowledged all of it."""
    with sftp.open(path, "r+") as file:
        file.set_pipelined(True)
        file.seek(offset)
        last = (len(data) - 1) // PACKET_BYTES * PACKET_BYTES
        for start in range(0, last, PACKET_BYTES):
            file.write(data[start : start + PACKET_BYTES])
        # A write that is not pipelined reads every answer that is due, so that no failure is lost.
        file.set_pipelined(False)
        file.write(data[last:])


def read_range(sftp: paramiko.SFTPClient, path: str, offset: int, size: int) -> bytes:
    """Read `size` bytes; all requests are under way before the first answer. May come short."""
    with sftp.open(path, "r") as file:
        spans = [
            (start, min(PACKET_BYTES, offset + size - start))
            for start in range(offset, offset + size, PACKET_BYTES)
        ]
        return b"".join(file.readv(spans))
