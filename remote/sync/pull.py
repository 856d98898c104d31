"""One attempt to pull: what the machine offers is distrusted first, then fetched and verified."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from remote.errors import Absent, Damaged, NoSpace, Untrusted
from remote.on_machine import tree_ops
from remote.remote_script import tree_cache
from remote.sync import manifest, replies
from remote.sync.local import StaleError, scan_target
from remote.sync.manifest import Entry, Limits
from remote.sync.plan import (
    HASHING_S_MAX,
    Blob,
    Chunk,
    ProgressCounter,
    SyncReport,
    blobs_for,
    chunks_of,
)
from remote.sync.replies import Listing
from remote.sync.sftp import Sftp
from remote.sync.transfer import Transfer, transfer_chunks

HASHING_S_MIN = 600.0
HASHING_BYTES_PER_S = 20e6
"""A machine that hashes slower than this is not waited for; a disk of the cloud reads five times
as fast."""
STREAM_BYTES_PER_S = 50_000
"""The slowest line on which a bundle is still waited for."""


def pull_once(transfer: Transfer, local: Path, limits: Limits) -> SyncReport:
    """Pull what differs; raises `StaleError` if the machine's files changed meanwhile."""
    listing = list_there(transfer, limits)
    want = listing.tree
    with tree_ops.alone_in(str(local)):
        todo = manifest.difference(want, scan_target(local, want, transfer.options))
        blobs = blobs_for(todo.missing, want, transfer.options)
        if blobs:
            with room_given_back(local):
                bring(transfer, local, blobs, want)
        removed = todo.extraneous if transfer.options.delete else ()
        for path in removed:
            tree_ops.remove(str(local), path)
        tree_ops.clear(str(local))
    return SyncReport(
        files=len(want),
        bytes=manifest.total_bytes(want),
        files_sent=len(todo.missing),
        bytes_sent=transfer.stats.sent,
        bytes_resumed=transfer.stats.resumed,
        removed=removed,
        left=listing.left,
        left_names=listing.left_names,
    )


@contextlib.contextmanager
def room_given_back(local: Path) -> Iterator[None]:
    """Remove what was set aside or has come, once it is refused; what a cut left goes on later."""
    try:
        yield
    except (Untrusted, Damaged, NoSpace):
        tree_ops.clear(str(local))
        raise


def bring(
    transfer: Transfer, local: Path, blobs: Sequence[Blob], want: Mapping[str, Entry]
) -> None:
    """Fetch the blobs, verify what they hold and put it in place."""
    counter = transfer.counter(blobs)
    begun = reserve(local, blobs)
    counter.report()
    for blob in blobs:
        if blob.bundled:
            fetch_bundle(transfer, local, blob, want)
            counter.add(Chunk(blob=blob, offset=0, size=blob.size))
    big = [blob for blob in blobs if not blob.bundled]
    chunks = to_fetch(transfer, local, big, begun, counter)
    transfer_chunks(transfer, chunks, partial(fetch, transfer.remote, local), counter)
    place(local, big, want)


def list_there(transfer: Transfer, limits: Limits) -> Listing:
    """Ask the machine what it has, and admit only what may be written here."""
    options = transfer.options
    request: dict[str, Any] = {"root": transfer.remote, "exclude": options.exclude}
    request |= {
        "cache": tree_cache(transfer.remote),
        "only": options.only,
        "include": options.include,
    }
    wait_s = min(HASHING_S_MAX, HASHING_S_MIN + limits.total_bytes_max / HASHING_BYTES_PER_S)
    answer = transfer.script.call("manifest", request, timeout_s=wait_s)
    if refused := replies.read_refusal(answer):
        raise NoSpace(transfer.there, needed_bytes=refused.needed, free_bytes=refused.free)
    if not replies.read_exists(answer):
        raise Absent(f"there is no directory {transfer.there}")
    found = replies.read_listing(
        answer,
        wanted=manifest.Wanted(include=options.include),
        limits=limits,
        source=str(transfer.connection.host),
    )
    if options.only is not None:
        replies.refuse_alien(found.tree, options.only, source=transfer.there)
    return found


def reserve(local: Path, blobs: Sequence[Blob]) -> list[str]:
    """Set room aside here and name the blobs begun earlier; raises `NoSpace` before any travels."""
    answer = tree_ops.stage(
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
    begun: list[str] = answer["begun"]
    return begun


def fetch_bundle(transfer: Transfer, local: Path, blob: Blob, want: Mapping[str, Entry]) -> None:
    """Stream small files in one go, verify each, and put the good ones in place at once."""
    said: list[bytes] = []
    code, stderr = transfer.script.stream(
        "pack",
        {"root": transfer.remote, "files": blob.parts},
        said.append,
        timeout_s=60 + blob.size / STREAM_BYTES_PER_S,
        limit_bytes=blob.size,
    )
    data = b"".join(said)
    if code != 0:
        raise transfer.script.failure("pack", code, b"", stderr)
    if len(data) != blob.size:
        raise Untrusted(f"{transfer.there} sent {len(data)} bytes instead of {blob.size}")
    staged = str(partial_file(local, blob))
    tree_ops.write_whole(staged, data)
    index = [[path, size, want[path].sha256] for path, size in blob.parts]
    ready: list[tuple[str, str]] = []
    wrong: dict[str, Any] = {"damaged": [], "absent": []}
    tree_ops.unpack(str(local), staged, index, ready, wrong)
    tree_ops.place(ready)
    if wrong["damaged"]:
        raise StaleError(wrong["damaged"])


def to_fetch(
    transfer: Transfer,
    local: Path,
    blobs: Sequence[Blob],
    begun: Sequence[str],
    counter: ProgressCounter,
) -> list[Chunk]:
    """Leave out the chunks that an earlier transfer has brought, by their hash."""
    size = transfer.options.chunk_bytes
    there: dict[str, tuple[str, ...]] = {}
    if paths := [blob.parts[0][0] for blob in blobs if blob.name in begun]:
        request = {"root": transfer.remote, "chunk": size, "paths": paths}
        answer = transfer.script.call("hashes", request, timeout_s=HASHING_S_MAX)
        there = replies.read_chunks(
            answer, "hashes", names=paths, source=str(transfer.connection.host)
        )
    chunks = []
    for blob in blobs:
        hashes = there.get(blob.parts[0][0], ())
        for number, chunk in enumerate(chunks_of(blob, size)):
            if number < len(hashes) and chunk_digest(local, chunk) == hashes[number]:
                counter.add(chunk, sent=False)
            else:
                chunks.append(chunk)
    return chunks


def chunk_digest(local: Path, chunk: Chunk) -> str:
    """Hash what the partial file holds at the place of a chunk."""
    with partial_file(local, chunk.blob).open("rb") as file:
        file.seek(chunk.offset)
        return hashlib.sha256(file.read(chunk.size)).hexdigest()


def fetch(remote: str, local: Path, sftp: Sftp, chunk: Chunk) -> None:
    """Carry one chunk into its partial file here."""
    path = chunk.blob.parts[0][0]
    try:
        data = sftp.read(f"{remote}/{path}", chunk.offset, chunk.size)
    except FileNotFoundError as error:
        raise StaleError([path]) from error
    if len(data) != chunk.size:
        raise StaleError([path])
    with partial_file(local, chunk.blob).open("r+b") as file:
        file.seek(chunk.offset)
        file.write(data)


def place(local: Path, blobs: Sequence[Blob], want: Mapping[str, Entry]) -> None:
    """Verify, fsync and rename the big files; raises `StaleError` for what is not as announced."""
    ready, wrong = [], []
    for blob in blobs:
        path = blob.parts[0][0]
        staged = partial_file(local, blob)
        if tree_ops.is_right(str(staged), want[path].size, want[path].sha256):
            ready.append((str(staged), tree_ops.inside(str(local), path)))
        else:
            staged.unlink()
            wrong.append(path)
    tree_ops.place(ready)
    if wrong:
        raise StaleError(wrong)


def partial_file(local: Path, blob: Blob) -> Path:
    """Name the file in which a blob gathers."""
    return local / tree_ops.PARTIAL_DIR / blob.name
