"""Makes one attempt to pull: check what the machine offers, fetch what is missing, verify, rename.

Nothing that the machine says is trusted: what it offers is checked before anything is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from remote.errors import Absent, Damaged, NoSpace, Unreachable, Untrusted
from remote.on_machine import tree_ops
from remote.remote_script import hash_cache_path
from remote.sync import manifest, replies
from remote.sync.background import Background
from remote.sync.local import StaleError, local_cache_path, scan_target
from remote.sync.manifest import Limits, Tree
from remote.sync.plan import HASHING_S_MAX, Blob, Chunk, SyncReport, chunks_of, make_blobs
from remote.sync.replies import RemoteListing
from remote.sync.sftp import Sftp
from remote.sync.transfer import ProgressCounter, Transfer, transfer_chunks

HASHING_S_MIN = 600.0
HASHING_BYTES_PER_S = 20e6
"""A machine that hashes slower than this is not waited for; a disk of the cloud reads five times
as fast."""
STREAM_BYTES_PER_S = 50_000
"""The slowest connection on which a bundle is still waited for."""


def pull_once(transfer: Transfer, local: Path, limits: Limits) -> SyncReport:
    """Pull what differs; raises `StaleError` if the machine's files changed meanwhile."""
    listing = list_source(transfer, limits, Background(lambda: scan_last_pull(local, transfer)))
    source = listing.tree
    with tree_ops.exclusive_lock(str(local)):
        target = source if listing.is_here else scan_target(local, source, transfer.options)
        difference = manifest.compare(source, target)
        blobs = make_blobs(difference.missing, source, transfer.options)
        if blobs:
            with partial_files_removed_if_refused(local):
                fetch_blobs(transfer, local, blobs, source)
        removed = difference.extraneous if transfer.options.delete else ()
        for path in removed:
            tree_ops.remove_file(str(local), path)
        tree_ops.remove_partial_dir(str(local))
    return SyncReport(
        files=len(source),
        bytes=manifest.total_bytes(source),
        files_sent=len(difference.missing),
        bytes_sent=transfer.stats.sent,
        bytes_resumed=transfer.stats.resumed,
        removed=removed,
        unmatched=listing.unmatched,
        unmatched_names=listing.unmatched_names,
    )


@contextlib.contextmanager
def partial_files_removed_if_refused(local: Path) -> Iterator[None]:
    """Delete what has arrived once it is refused; what a cut connection left is kept to resume."""
    try:
        yield
    except (Untrusted, Damaged, NoSpace):
        tree_ops.remove_partial_dir(str(local))
        raise


def fetch_blobs(transfer: Transfer, local: Path, blobs: Sequence[Blob], source: Tree) -> None:
    """Fetch the blobs, verify the files in them and rename these into place."""
    with contextlib.closing(PrefixHashing(local)) as hashing:
        counter = transfer.counter(blobs, hashing.extend)
        partial_names = reserve_space(local, blobs)
        counter.report()
        for blob in blobs:
            if blob.bundled:
                fetch_bundle(transfer, local, blob, source)
                counter.add(Chunk(blob=blob, offset=0, size=blob.size))
        big = [blob for blob in blobs if not blob.bundled]
        chunks = missing_chunks(transfer, local, big, partial_names, counter)
        transfer_chunks(transfer, chunks, partial(fetch_chunk, transfer.remote, local), counter)
        commit(local, big, source, hashing.wait())


def scan_last_pull(local: Path, transfer: Transfer) -> dict[str, Any]:
    """Hash the files here that the last pull brought, as far as their hashes were cached.

    Returns them as `tree_ops` lists them; none where more than an equal tree would be needed.
    """
    options = transfer.options
    cache = local_cache_path(local, options)
    names = list(tree_ops.load_json(cache)) if cache else []
    if not names or options.delete or options.only is not None:
        return {}
    try:
        files: dict[str, Any] = tree_ops.list_files(
            {"root": str(local), "only": names, "cache": cache}
        )["files"]
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return {}  # `scan_target` says what is wrong
    return files


def list_source(
    transfer: Transfer, limits: Limits, last_pull: Background[dict[str, Any]] | None = None
) -> RemoteListing:
    """List the files there; raises `Untrusted` unless all may be written here.

    If they are those of the last pull, as a digest of these tells the machine, no list travels.
    """

    def digest() -> bytes:
        files = last_pull.result() if last_pull is not None else {}
        return tree_ops.tree_digest(files).encode() if files else b""

    options = transfer.options
    request: dict[str, Any] = {"exclude": options.exclude, "only": options.only}
    request |= {"cache": hash_cache_path(transfer.remote), "include": options.include}
    wait_s = min(HASHING_S_MAX, HASHING_S_MIN + limits.total_bytes_max / HASHING_BYTES_PER_S)
    if last_pull is not None:
        request["compare"] = True
    answer = transfer.call("list", request, timeout_s=wait_s, after_request=digest)
    files = last_pull.result() if last_pull is not None else {}
    is_here = bool(files) and answer.get("equal") is True
    if is_here:
        answer["files"] = files
    if answer.get("exists") is not True:
        raise Absent(f"there is no directory {transfer.place}")
    listing = replies.read_listing(
        answer, include=options.include, limits=limits, host=transfer.host
    )
    if options.only is not None and (extra := sorted(set(listing.tree) - set(options.only))):
        raise Untrusted(f"{transfer.place} offers {extra[0][:200]!r}, which was not asked for")
    return replace(listing, is_here=is_here)


def reserve_space(local: Path, blobs: Sequence[Blob]) -> list[str]:
    """Reserve disk space here; return the names of blobs that have a partial file already.

    Raises `NoSpace` before anything travels.
    """
    answer = tree_ops.reserve_space(
        {
            "root": str(local),
            "chunk": 1,
            "hash": False,
            "blobs": [[blob.name, blob.size] for blob in blobs if not blob.bundled],
            "extra": sum(blob.size for blob in blobs if blob.bundled),
        }
    )
    if "error" in answer:
        raise NoSpace(str(local), needed_bytes=answer["needed"], free_bytes=answer["free"])
    names: list[str] = answer["partial"]
    return names


def fetch_bundle(transfer: Transfer, local: Path, blob: Blob, source: Tree) -> None:
    """Stream small files in one go, verify each, and rename the good ones into place at once.

    A cut connection keeps the files that have come whole.
    """
    parts: list[bytes] = []
    try:
        code, stderr = transfer.script.stream(
            "pack",
            {"root": transfer.remote, "files": blob.files},
            parts.append,
            timeout_s=60 + blob.size / STREAM_BYTES_PER_S,
            limit_bytes=blob.size,
        )
    except Unreachable:
        place_small_files(local, blob, source, b"".join(parts)[: blob.size])
        raise
    data = b"".join(parts)
    if code != 0:
        raise transfer.script.failure("pack", code, b"", stderr)
    if len(data) != blob.size:
        raise Untrusted(f"{transfer.place} sent {len(data)} bytes instead of {blob.size}")
    if damaged := place_small_files(local, blob, source, data):
        raise StaleError(damaged)


def place_small_files(local: Path, blob: Blob, source: Tree, data: bytes) -> list[str]:
    """Put the files that are whole in the first bytes of a bundle into place; return bad ones."""
    ends = itertools.accumulate(size for _, size in blob.files)
    index = [
        [path, size, source[path].sha256]
        for (path, size), end in zip(blob.files, ends, strict=True)
        if end <= len(data)
    ]
    if not index:
        return []
    bundle = str(partial_file(local, blob))
    tree_ops.write_whole(bundle, data)
    ready: list[tuple[str, str]] = []
    failed: dict[str, list[str]] = {"damaged": [], "absent": []}
    tree_ops.unpack_bundle(str(local), bundle, index, ready, failed)
    tree_ops.rename_into_place(ready)
    return failed["damaged"]


class PrefixHashing:
    """A thread that hashes the partial files here from their beginning while the rest arrives."""

    def __init__(self, local: Path) -> None:
        self._local = local
        self._hashes = tree_ops.PrefixHashes()
        self._waiting: queue.SimpleQueue[tuple[Blob, int] | None] = queue.SimpleQueue()
        self._thread = Background(self._run)

    def extend(self, blob: Blob, size: int) -> None:
        """Have the first bytes of a large file hashed, without waiting for it."""
        if not blob.bundled:
            self._waiting.put((blob, size))

    def wait(self) -> tree_ops.PrefixHashes:
        """End the thread once it is done; return the hashes so far."""
        self._waiting.put(None)
        self._thread.result()
        return self._hashes

    def close(self) -> None:
        """End the thread and close its files."""
        self.wait().close()

    def _run(self) -> None:
        while (one := self._waiting.get()) is not None:
            blob, size = one
            with contextlib.suppress(OSError):  # `commit` meets it again
                self._hashes.extend(str(partial_file(self._local, blob)), size)


def missing_chunks(
    transfer: Transfer,
    local: Path,
    blobs: Sequence[Blob],
    partial_names: Sequence[str],
    counter: ProgressCounter,
) -> list[Chunk]:
    """Return the chunks that the partial files here still lack, by their hashes."""
    size = transfer.options.chunk_bytes
    hashes: dict[str, tuple[str, ...]] = {}
    if paths := [blob.files[0][0] for blob in blobs if blob.name in partial_names]:
        answer = transfer.call("hash", {"chunk": size, "paths": paths})
        hashes = replies.read_chunk_hashes(answer, "hashes", names=paths, host=transfer.host)
    chunks = []
    for blob in blobs:
        expected = hashes.get(blob.files[0][0], ())
        for number, chunk in enumerate(chunks_of(blob, size)):
            if number < len(expected) and partial_digest(local, chunk) == expected[number]:
                counter.add(chunk, sent=False)
            else:
                chunks.append(chunk)
    return chunks


def partial_digest(local: Path, chunk: Chunk) -> str:
    """Hash the range of a chunk in its partial file."""
    with partial_file(local, chunk.blob).open("rb") as file:
        file.seek(chunk.offset)
        return hashlib.sha256(file.read(chunk.size)).hexdigest()


def fetch_chunk(remote: str, local: Path, sftp: Sftp, chunk: Chunk) -> Callable[[], None]:
    """Begin to read one chunk there; the result waits, and writes it into its partial file here."""
    path = chunk.blob.files[0][0]
    try:
        receive = sftp.read(f"{remote}/{path}", chunk.offset, chunk.size)
    except FileNotFoundError as error:
        raise StaleError([path]) from error

    def finish() -> None:
        with partial_file(local, chunk.blob).open("r+b", buffering=0) as file:
            if receive(partial(write_at, file.fileno())) != chunk.size:
                raise StaleError([path])

    return finish


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at an offset of a file."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def commit(local: Path, blobs: Sequence[Blob], source: Tree, hashes: tree_ops.PrefixHashes) -> None:
    """Verify, fsync and rename big files; raises `StaleError` for those not as announced."""
    ready, failed = [], []
    with tree_ops.fsynced_meanwhile([str(partial_file(local, blob)) for blob in blobs]):
        for blob in blobs:
            path = blob.files[0][0]
            file = partial_file(local, blob)
            entry = source[path]
            if tree_ops.has_content(str(file), entry.size, entry.sha256, hashes):
                ready.append((str(file), tree_ops.safe_join(str(local), path)))
            else:
                file.unlink()
                failed.append(path)
    tree_ops.rename_into_place(ready)
    if failed:
        raise StaleError(failed)


def partial_file(local: Path, blob: Blob) -> Path:
    """Return the partial file of a blob."""
    return local / tree_ops.PARTIAL_DIR / blob.name
