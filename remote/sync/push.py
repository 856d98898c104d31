"""One attempt to push: list, compare, reserve room, send what is missing, verify, put in place."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from remote.errors import NoSpace, RemoteError
from remote.on_machine import tree_ops
from remote.remote_script import tree_cache
from remote.sync import manifest, replies
from remote.sync.local import Source, StaleError, read_chunk, scan_source
from remote.sync.manifest import Entry
from remote.sync.plan import (
    HASHING_S_MAX,
    Blob,
    Chunk,
    ProgressCounter,
    SyncReport,
    blobs_for,
    chunks_of,
)
from remote.sync.sftp import Sftp
from remote.sync.transfer import Transfer, transfer_chunks


def push_once(transfer: Transfer, local: Path | Mapping[str, Path]) -> SyncReport:
    """Push what differs; raises `StaleError` if the source changed meanwhile."""
    source = scan_source(local, transfer.options)
    todo = manifest.difference(source.tree, list_there(transfer, source))
    blobs = blobs_for(todo.missing, source.tree, transfer.options)
    removed = todo.extraneous if transfer.options.delete and not source.named else ()
    if blobs:
        counter = transfer.counter(blobs)
        chunks = to_send(transfer, blobs, source, counter)
        counter.report()
        try:
            transfer_chunks(transfer, chunks, partial(send, transfer.remote, source), counter)
        except FileNotFoundError as error:
            raise StaleError(todo.missing) from error  # another push cleared the partial files
        except OSError as error:
            raise explain(transfer, counter, error) from error
    if blobs or removed:
        commit(transfer, source, blobs, removed)
    return SyncReport(
        files=len(source.tree),
        bytes=manifest.total_bytes(source.tree),
        files_sent=len(todo.missing),
        bytes_sent=transfer.stats.sent,
        bytes_resumed=transfer.stats.resumed,
        removed=removed,
        skipped=source.skipped,
    )


def list_there(transfer: Transfer, source: Source) -> dict[str, Entry]:
    """Ask the machine what it has; what is no regular file counts as absent."""
    request: dict[str, Any] = {"root": transfer.remote, "exclude": transfer.options.exclude}
    request["cache"] = tree_cache(transfer.remote)
    if source.named or not transfer.options.delete:
        request["only"] = sorted(source.tree)  # a machine full of other files is not hashed
    answer = transfer.script.call("manifest", request, timeout_s=HASHING_S_MAX)
    if refused := replies.read_refusal(answer):
        raise NoSpace(transfer.there, needed_bytes=refused.needed, free_bytes=refused.free)
    files = answer.get("files")
    if "only" in request and isinstance(files, dict):
        files = {path: row for path, row in files.items() if path in source.tree}
    return manifest.read_tree(files, source=str(transfer.connection.host), here=False)


def to_send(
    transfer: Transfer, blobs: Sequence[Blob], source: Source, counter: ProgressCounter
) -> list[Chunk]:
    """Set room aside for every blob; leave out chunks that an earlier transfer has brought.

    Raises `NoSpace`: then nothing is set aside and nothing has changed.
    """
    request = {
        "root": transfer.remote,
        "chunk": transfer.options.chunk_bytes,
        "blobs": [[blob.name, blob.size] for blob in blobs],
        "extra": max((blob.size for blob in blobs if blob.bundled), default=0),
    }
    answer = transfer.script.call("stage", request, timeout_s=HASHING_S_MAX)
    if refused := replies.read_refusal(answer):
        raise NoSpace(transfer.there, needed_bytes=refused.needed, free_bytes=refused.free)
    names = [blob.name for blob in blobs]
    begun = replies.read_chunks(answer, "begun", names=names, source=str(transfer.connection.host))
    chunks = []
    for blob in blobs:
        if blob.size == 0:
            counter.add(Chunk(blob=blob, offset=0, size=0))
        there = begun[blob.name]
        for number, chunk in enumerate(chunks_of(blob, transfer.options.chunk_bytes)):
            if number < len(there):
                digest = hashlib.sha256(read_chunk(chunk, source.paths)).hexdigest()
                if digest == there[number]:
                    counter.add(chunk, sent=False)
                    continue
            chunks.append(chunk)
    return chunks


def send(remote: str, source: Source, sftp: Sftp, chunk: Chunk) -> None:
    """Carry one chunk to its place in its partial file."""
    data = read_chunk(chunk, source.paths)
    sftp.write(f"{remote}/{tree_ops.PARTIAL_DIR}/{chunk.blob.name}", chunk.offset, data)


def explain(transfer: Transfer, counter: ProgressCounter, error: OSError) -> Exception:
    """Find out why a write failed: SFTP itself says no more than `Failure`."""
    answer = transfer.script.call("manifest", {"root": transfer.remote, "only": []}, timeout_s=60)
    left = counter.bytes_total - counter.bytes_done
    free = replies.read_free(answer)
    if free < left:
        return NoSpace(transfer.there, needed_bytes=left, free_bytes=free)
    return RemoteError(f"{transfer.there}: a write was refused: {error}")


def commit(
    transfer: Transfer, source: Source, blobs: Sequence[Blob], removed: Sequence[str]
) -> None:
    """Have the machine verify and rename; raises `StaleError` for what is not as announced."""

    def row(path: str) -> list[Any]:
        return [path, source.tree[path].size, source.tree[path].sha256]

    request = {
        "root": transfer.remote,
        "files": [[blob.name, *row(blob.parts[0][0])] for blob in blobs if not blob.bundled],
        "bundles": [
            [blob.name, [row(path) for path, _ in blob.parts]] for blob in blobs if blob.bundled
        ],
        "remove": list(removed),
    }
    answer = transfer.script.call("commit", request, timeout_s=HASHING_S_MAX)
    if refused := replies.read_refusal(answer):
        needed = max((blob.size for blob in blobs), default=0)
        raise NoSpace(transfer.there, needed_bytes=needed, free_bytes=refused.free)
    sent = {path for blob in blobs for path, _ in blob.parts}
    wrong = replies.read_wrong(answer, sent=sent, source=str(transfer.connection.host))
    if wrong:
        raise StaleError(wrong)
