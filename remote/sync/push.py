"""Makes one attempt to push: list, compare, reserve space, send what is missing, verify, rename."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from remote.errors import NoSpace, RemoteError
from remote.on_machine import tree_ops
from remote.remote_script import hash_cache_path
from remote.sync import manifest, replies
from remote.sync.background import Background
from remote.sync.local import (
    FoundSource,
    LocalSource,
    StaleError,
    find_source,
    hash_source,
    read_chunk,
)
from remote.sync.manifest import Tree
from remote.sync.plan import Blob, Chunk, SyncReport, chunks_of, make_blobs
from remote.sync.session import ScriptSession
from remote.sync.sftp import Sftp
from remote.sync.transfer import ProgressCounter, Transfer, transfer_chunks


def push_once(transfer: Transfer, local: Path | Mapping[str, Path]) -> SyncReport:
    """Push what differs; raises `StaleError` if the source changed meanwhile."""
    found = find_source(local, transfer.options)
    with closing(ScriptSession(transfer.script)) as session:
        return push_found(replace(transfer, session=session), session, found)


def push_found(transfer: Transfer, session: ScriptSession, found: FoundSource) -> SyncReport:
    """Push what differs of the files that were found, with one process there for all requests."""
    source, target = list_both(transfer, found)
    difference = manifest.compare(source.tree, target)
    blobs = make_blobs(difference.missing, source.tree, transfer.options)
    delete = transfer.options.delete and not source.is_file_list
    removed = difference.extraneous if delete else ()
    if blobs:

        def hash_received(blob: Blob, size: int) -> None:
            if not blob.bundled:
                row = {"root": transfer.remote, "blob": blob.name, "bytes": size}
                session.notify("received", row)

        counter = transfer.counter(blobs, hash_received)
        chunks = reserve_space(transfer, blobs, source, counter)
        counter.report()
        try:
            transfer_chunks(transfer, chunks, partial(send_chunk, transfer.remote, source), counter)
        except FileNotFoundError as error:
            # Another push has removed the partial files.
            raise StaleError(difference.missing) from error
        except OSError as error:
            raise explain_refused_write(transfer, counter, error) from error
    if blobs or removed:
        commit(transfer, source, blobs, removed)
    return SyncReport(
        files=len(source.tree),
        bytes=manifest.total_bytes(source.tree),
        files_sent=len(difference.missing),
        bytes_sent=transfer.stats.sent,
        bytes_resumed=transfer.stats.resumed,
        removed=removed,
        skipped=source.skipped,
    )


def list_both(transfer: Transfer, found: FoundSource) -> tuple[LocalSource, Tree]:
    """Hash the files here while the machine hashes its own; return the source and the tree there.

    What is no regular file there counts as absent.
    """
    request: dict[str, Any] = {"exclude": transfer.options.exclude, "compare": True}
    request["cache"] = hash_cache_path(transfer.remote)
    if found.is_file_list or not transfer.options.delete:
        request["only"] = found.names  # a machine full of other files is not hashed
    hashing = Background(lambda: hash_source(found))
    try:
        answer = transfer.call("list", request, after_request=lambda: digest_once_hashed(hashing))
    except RemoteError:
        hashing.result()  # the next attempt finds these hashes in the cache
        raise
    source = hashing.result()
    if answer.get("equal") is True:
        return source, source.tree
    files = answer.get("files")
    if "only" in request and isinstance(files, dict):
        files = {path: row for path, row in files.items() if path in source.tree}
    return source, manifest.read_tree(files, host=transfer.host, unique_names=False)


def digest_once_hashed(hashing: Background[LocalSource]) -> bytes:
    """Wait for the digest of the source; empty, which equals none, if it cannot be hashed."""
    try:
        return hashing.result().digest.encode()
    except Exception:  # noqa: BLE001  (`list_both` raises it)
        return b""


def reserve_space(
    transfer: Transfer, blobs: Sequence[Blob], source: LocalSource, counter: ProgressCounter
) -> list[Chunk]:
    """Reserve disk space for every blob; return the chunks that its partial file still lacks.

    Raises `NoSpace`: then nothing is reserved and nothing has changed.
    """
    request = {
        "chunk": transfer.options.chunk_bytes,
        "blobs": [[blob.name, blob.size] for blob in blobs],
        "extra": max((blob.size for blob in blobs if blob.bundled), default=0),
    }
    answer = transfer.call("reserve", request)
    names = [blob.name for blob in blobs]
    hashes = replies.read_chunk_hashes(answer, "partial", names=names, host=transfer.host)
    chunks = []
    for blob in blobs:
        if blob.size == 0:
            counter.add(Chunk(blob=blob, offset=0, size=0))
        for number, chunk in enumerate(chunks_of(blob, transfer.options.chunk_bytes)):
            if number < len(hashes[blob.name]):
                digest = hashlib.sha256(read_chunk(chunk, source.paths)).hexdigest()
                if digest == hashes[blob.name][number]:
                    counter.add(chunk, sent=False)
                    continue
            chunks.append(chunk)
    return chunks


def send_chunk(remote: str, source: LocalSource, sftp: Sftp, chunk: Chunk) -> Callable[[], None]:
    """Begin to write one chunk into the partial file there; the result waits until it is there."""
    data = read_chunk(chunk, source.paths)
    return sftp.write(f"{remote}/{tree_ops.PARTIAL_DIR}/{chunk.blob.name}", chunk.offset, data)


def explain_refused_write(
    transfer: Transfer, counter: ProgressCounter, error: OSError
) -> RemoteError:
    """Find out why a write failed: SFTP itself says no more than `Failure`."""
    request = {"root": transfer.remote, "only": []}
    answer = transfer.script.call("list", request, timeout_s=60)
    missing = counter.bytes_total - counter.bytes_done
    free = replies.read_free(answer)
    if free < missing:
        return NoSpace(transfer.place, needed_bytes=missing, free_bytes=free)
    return RemoteError(f"{transfer.place}: a write was refused: {error}")


def commit(
    transfer: Transfer, source: LocalSource, blobs: Sequence[Blob], removed: Sequence[str]
) -> None:
    """Verify and rename what was sent; raises `StaleError` for files that are not as announced."""

    def row(path: str) -> list[Any]:
        return [path, source.tree[path].size, source.tree[path].sha256]

    request = {
        "files": [[blob.name, *row(blob.files[0][0])] for blob in blobs if not blob.bundled],
        "bundles": [
            [blob.name, [row(path) for path, _ in blob.files]] for blob in blobs if blob.bundled
        ],
        "remove": list(removed),
    }
    needed = max((blob.size for blob in blobs), default=0)
    answer = transfer.call("commit", request, needed_bytes=needed)
    sent = {path for blob in blobs for path, _ in blob.files}
    if failed := replies.read_failed_paths(answer, sent=sent, host=transfer.host):
        raise StaleError(failed)
