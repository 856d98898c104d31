"""How a set of files travels, decided without I/O: big ones in chunks, small ones in bundles.

A blob is what travels: one big file, or a bundle of small ones (just their bytes, one after the
other). Its name is derived from its content, so that what an interrupted transfer has left behind
is recognised by the next one, and never mistaken for something else.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from remote.sync.manifest import Tree


@dataclass(frozen=True, kw_only=True)
class SyncOptions:
    """How to sync; the defaults suit a line of 50 ms to a machine in the cloud."""

    python: str = "python3"
    """The interpreter on the machine, at least 3.8, for our script there."""
    exclude: tuple[str, ...] = ()
    """Patterns as in the shell; one with `/` is matched against the whole path, else the name."""
    include: str = ""
    """For a pull: a regular expression; a file whose whole path it does not match stays there, and
    is left alone here. Empty: all come."""
    delete: bool = False
    """Whether files that the source does not have are removed from the target."""
    only: tuple[str, ...] | None = None
    """For a pull: just these paths, if they are there; the target's other files stay."""
    cache_dir: Path | None = None
    """Where hashes of local files are remembered; None hashes them anew."""
    channels: int = 4
    """SFTP channels at once."""
    chunk_bytes: int = 4 << 20
    """What one channel carries at a time, and what a cut connection loses at most per channel."""
    small_bytes: int = 256 << 10
    """Files up to this size travel in bundles."""
    silence_s: float = 60.0
    """How long the machine may say nothing while data travels."""
    speed_min_bytes_per_s: float = 1000.0
    """A transfer that is slower over `speed_window_s` is given up: no modem is."""
    speed_window_s: float = 120.0
    clock: Callable[[], float] = time.monotonic
    """Seconds, for the pace."""
    attempts: int = 3
    """How often to look again when a source changes while it is read."""


DEFAULT_OPTIONS = SyncOptions()

HASHING_S_MAX = 4 * 3600.0
"""A tree of hundreds of GB may be hashed for this long; a dead line is noticed much earlier."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a transfer is."""

    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What a transfer did."""

    files: int
    """Files in the source tree."""
    bytes: int
    """Their size together."""
    files_sent: int = 0
    """Files that were absent or different, and are now there."""
    bytes_sent: int = 0
    """Bytes of content that travelled, in all attempts."""
    bytes_resumed: int = 0
    """Bytes that an interrupted transfer had brought already."""
    removed: tuple[str, ...] = ()
    """Paths deleted from the target."""
    skipped: tuple[str, ...] = ()
    """Local paths that are no files (sockets, dangling links) and were left out."""
    left: int = 0
    """Files of the machine that were not asked for (`include`), and stayed there."""
    left_names: tuple[str, ...] = ()
    """Some of them: a stranger's words, to be shown with care."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A file, or a bundle of files, on its way."""

    name: str
    size: int
    parts: tuple[tuple[str, int], ...]
    """(path, bytes) in the order in which they are strung together."""
    bundled: bool


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A range of a blob, carried by one channel at a time."""

    blob: Blob
    offset: int
    size: int


@dataclass(kw_only=True)
class TransferStats:
    """Bytes that travelled, and bytes that did not have to, over all attempts of one call."""

    sent: int = 0
    resumed: int = 0


@dataclass(kw_only=True)
class ProgressCounter:
    """Counts what has travelled and tells the caller; shared by the channels under their lock."""

    bytes_total: int
    files_total: int
    on_progress: Callable[[Progress], None] | None
    stats: TransferStats
    left: dict[str, int]
    """Bytes that each blob still lacks."""
    bytes_done: int = 0
    files_done: int = 0

    def add(self, chunk: Chunk, *, sent: bool = True) -> None:
        """Count a chunk that has arrived, now (`sent`) or in an earlier transfer."""
        self.bytes_done += chunk.size
        if sent:
            self.stats.sent += chunk.size
        else:
            self.stats.resumed += chunk.size
        self.left[chunk.blob.name] -= chunk.size
        if self.left[chunk.blob.name] == 0:
            self.files_done += len(chunk.blob.parts)
        self.report()

    def report(self) -> None:
        """Tell the caller where we are."""
        if self.on_progress is not None:
            self.on_progress(
                Progress(
                    bytes_done=self.bytes_done,
                    bytes_total=self.bytes_total,
                    files_done=self.files_done,
                    files_total=self.files_total,
                )
            )


def blobs_for(paths: Iterable[str], tree: Tree, options: SyncOptions) -> list[Blob]:
    """Cut files into blobs: a big file is one, small ones share bundles of at most one chunk."""
    blobs: list[Blob] = []
    bundle: list[str] = []
    room = options.chunk_bytes
    for path in paths:
        size = tree[path].size
        if size > min(options.small_bytes, options.chunk_bytes):
            blobs.append(make_blob([path], tree, bundled=False))
            continue
        if bundle and (size > room or len(bundle) >= 4096):
            blobs.append(make_blob(bundle, tree, bundled=True))
            bundle, room = [], options.chunk_bytes
        bundle.append(path)
        room -= size
    if bundle:
        blobs.append(make_blob(bundle, tree, bundled=True))
    return blobs


def make_blob(paths: list[str], tree: Tree, *, bundled: bool) -> Blob:
    """String files together; the name stands for their places and their content."""
    index = [[path, tree[path].size, tree[path].sha256] for path in paths]
    name = hashlib.sha256(json.dumps([bundled, index]).encode()).hexdigest()[:32]
    parts = tuple((path, tree[path].size) for path in paths)
    return Blob(name=name, size=sum(size for _, size in parts), parts=parts, bundled=bundled)


def chunks_of(blob: Blob, chunk_bytes: int) -> list[Chunk]:
    """Cut a blob into ranges; an empty blob has none."""
    return [
        Chunk(blob=blob, offset=offset, size=min(chunk_bytes, blob.size - offset))
        for offset in range(0, blob.size, chunk_bytes)
    ]


def file_ranges(chunk: Chunk) -> Iterator[tuple[str, int, int]]:
    """Tell which bytes a chunk consists of: (path, offset in that file, bytes)."""
    start, end, at = chunk.offset, chunk.offset + chunk.size, 0
    for path, size in chunk.blob.parts:
        low, high = max(start, at), min(end, at + size)
        if low < high:
            yield path, low - at, high - low
        at += size
