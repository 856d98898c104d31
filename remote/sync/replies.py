"""Reads the answers of `tree_ops` on the machine into plain checked values.

The script is ours, but the machine runs it and may answer anything. A malformed answer is
`Garbled`: the act failed, and may be tried again. An offer that could do harm is `Untrusted`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from remote.errors import Garbled
from remote.sync import manifest
from remote.sync.manifest import SHA256, Entry, Limits
from remote.untrusted import text, texts, whole

CHUNKS_MAX = 64 << 20
"""Of one file."""
NAMES_MAX = 5


@dataclass(frozen=True, kw_only=True)
class RemoteListing:
    """The files below a directory there."""

    tree: Mapping[str, Entry]
    unmatched: int
    """How many files `include` does not match; they stay there."""
    unmatched_names: tuple[str, ...]
    """Some of them, made printable."""
    is_here: bool = False
    """Whether all of the tree is on this computer already."""


def read_disk_full(answer: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the bytes that are needed and free on a disk that is too small, None if it is not."""
    if "error" not in answer:
        return None
    return whole(answer.get("needed")) or 0, read_free(answer)


def read_listing(
    answer: Mapping[str, Any],
    *,
    include: str,
    limits: Limits = manifest.DEFAULT_LIMITS,
    host: str,
) -> RemoteListing:
    """Return the files there whose paths match `include` (empty: all); the others are counted.

    Raises `Garbled` for what is no list of files, `Untrusted` for one that could do harm.
    """
    files, irregular = answer.get("files"), answer.get("irregular", [])
    rest = answer.get("unmatched", [0, []])
    if (
        not isinstance(files, dict)
        or not isinstance(irregular, list)
        or not isinstance(rest, list)
        or len(rest) != 2
        or whole(rest[0]) is None
    ):
        raise Garbled(f"{host} sent a file list that is none")
    matched = {path: row for path, row in files.items() if manifest.is_included(path, include)}
    tree = manifest.read_tree(
        matched,
        irregular=[
            row
            for row in irregular
            if not isinstance(row, list) or not row or manifest.is_included(row[0], include)
        ],
        limits=limits,
        host=host,
    )
    names = [*(texts(rest[1], most=NAMES_MAX) or ()), *(path for path in files if path not in tree)]
    return RemoteListing(
        tree=tree,
        unmatched=(whole(rest[0]) or 0) + len(files) - len(tree),
        unmatched_names=tuple(text(name, most=100) or "" for name in names[:NAMES_MAX]),
    )


def read_free(answer: Mapping[str, Any]) -> int:
    """Return how many bytes are free there, 0 if the answer does not say."""
    return whole(answer.get("free")) or 0


def read_chunk_hashes(
    answer: Mapping[str, Any], key: str, *, names: Collection[str], host: str
) -> dict[str, tuple[str, ...]]:
    """Return the sha256 of the chunks there, of each of the files or blobs `names`.

    Raises `Garbled` for anything else.
    """
    found = answer.get(key)
    if not isinstance(found, dict):
        raise Garbled(f"{host} did not say what it has")
    chunks: dict[str, tuple[str, ...]] = {}
    for name in names:
        hashes = texts(found.get(name, []), most=CHUNKS_MAX)
        if hashes is None or not all(SHA256.fullmatch(one) for one in hashes):
            raise Garbled(f"{host} did not say what it has of a file")
        chunks[name] = hashes
    return chunks


def read_failed_paths(
    answer: Mapping[str, Any], *, sent: Collection[str], host: str
) -> tuple[str, ...]:
    """Return which of the paths `sent` did not arrive as they were announced.

    Raises `Garbled` for anything else.
    """
    failed: list[str] = []
    for key in ("damaged", "absent"):
        paths = texts(answer.get(key), most=len(sent))
        if paths is None or not set(paths) <= set(sent):
            raise Garbled(f"{host} did not say which files are in place")
        failed += paths
    return tuple(failed)
