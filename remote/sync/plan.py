"""Decides how a set of files travels, without I/O: big files in chunks, small ones in bundles.

A blob is the unit of a transfer: one big file, or a bundle of small ones (their bytes, one file
after the other). Its name is a hash of its paths and contents, so that the partial file of an
interrupted transfer is recognised by the next one, and never taken for something else.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from remote.sync.manifest import Tree

HASHING_S_MAX = 4 * 3600.0
"""A tree of hundreds of GB may be hashed for this long; a lost connection is noticed earlier."""
BUNDLE_FILES_MAX = 4096


@dataclass(frozen=True, kw_only=True)
class SyncOptions:
    """Options of a push or pull; the defaults suit a round trip of 50 ms to a cloud machine."""

    python: str = "python3"
    """The interpreter on the machine, at least 3.8, for our script there."""
    exclude: tuple[str, ...] = ()
    """Patterns as in the shell; one with `/` is matched against the whole path, else the name."""
    include: str = ""
    """For a pull: a regular expression; a file whose whole path it does not match stays there, and
    is left alone here. Empty: all come."""
    delete: bool = False
    """Whether files that the source does not have are deleted from the target."""
    only: tuple[str, ...] | None = None
    """For a pull: just these paths, if they are there; the target's other files stay."""
    cache_dir: Path | None = None
    """Where hashes of local files are cached; None hashes them anew."""
    channels: int = 4
    """SFTP channels at once."""
    chunk_bytes: int = 1 << 20
    """What is sent again at most per channel after a cut connection, beside what was in transit."""
    chunks_ahead: int = 4
    """Chunks that one channel begins before the first of them is finished: at 50 ms and with what
    SSH servers take per channel, fewer would leave the connection idle."""
    bundle_bytes: int = 4 << 20
    """What the small files in one bundle add up to at most."""
    small_bytes: int = 256 << 10
    """Files up to this size travel in bundles."""
    silence_s: float = 60.0
    """How long the machine may send nothing during a transfer."""
    speed_min_bytes_per_s: float = 1000.0
    """A transfer that is slower over `speed_window_s` is given up: no modem is."""
    speed_window_s: float = 120.0
    clock: Callable[[], float] = time.monotonic
    """Seconds, for the speed."""
    attempts: int = 3
    """How often to start over when a source changes while it is read."""


DEFAULT_OPTIONS = SyncOptions()


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How much of a transfer is done."""

    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What a push or pull did."""

    files: int
    """Files in the source tree."""
    bytes: int
    """Their size together."""
    files_sent: int = 0
    """Files that were absent or different in the target, and are now there."""
    bytes_sent: int = 0
    """Bytes of content that travelled, in all attempts."""
    bytes_resumed: int = 0
    """Bytes that an interrupted transfer had brought already."""
    removed: tuple[str, ...] = ()
    """Paths deleted from the target."""
    skipped: tuple[str, ...] = ()
    """Local paths that are no files (sockets, dangling links) and were not sent."""
    unmatched: int = 0
    """Files on the machine that `include` does not match; they stay there."""
    unmatched_names: tuple[str, ...] = ()
    """Some of them: untrusted text, to be shown with care."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """The unit of a transfer: one file, or a bundle of small files."""

    name: str
    """Of its partial file."""
    size: int
    files: tuple[tuple[str, int], ...]
    """(path, bytes) in the order in which they are strung together."""
    bundled: bool


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A range of a blob, transferred by one channel at a time."""

    blob: Blob
    offset: int
    size: int


def make_blobs(paths: Iterable[str], tree: Tree, options: SyncOptions) -> list[Blob]:
    """Group files into blobs: each big file is one, small ones share bundles."""
    blobs: list[Blob] = []
    bundle: list[str] = []
    room = options.bundle_bytes
    for path in paths:
        size = tree[path].size
        if size > min(options.small_bytes, options.bundle_bytes):
            blobs.append(make_blob([path], tree, bundled=False))
            continue
        if bundle and (size > room or len(bundle) >= BUNDLE_FILES_MAX):
            blobs.append(make_blob(bundle, tree, bundled=True))
            bundle, room = [], options.bundle_bytes
        bundle.append(path)
        room -= size
    if bundle:
        blobs.append(make_blob(bundle, tree, bundled=True))
    return blobs


def make_blob(paths: list[str], tree: Tree, *, bundled: bool) -> Blob:
    """String files together; the blob's name is a hash of their paths and contents."""
    index = [[path, tree[path].size, tree[path].sha256] for path in paths]
    name = hashlib.sha256(json.dumps([bundled, index]).encode()).hexdigest()[:32]
    files = tuple((path, tree[path].size) for path in paths)
    return Blob(name=name, size=sum(size for _, size in files), files=files, bundled=bundled)


def chunks_of(blob: Blob, chunk_bytes: int) -> list[Chunk]:
    """Split a blob into ranges; an empty blob has none."""
    return [
        Chunk(blob=blob, offset=offset, size=min(chunk_bytes, blob.size - offset))
        for offset in range(0, blob.size, chunk_bytes)
    ]


def file_ranges(chunk: Chunk) -> Iterator[tuple[str, int, int]]:
    """Yield the parts of files that a chunk consists of: (path, offset in that file, bytes)."""
    start, end, at = chunk.offset, chunk.offset + chunk.size, 0
    for path, size in chunk.blob.files:
        low, high = max(start, at), min(end, at + size)
        if low < high:
            yield path, low - at, high - low
        at += size
