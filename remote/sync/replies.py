"""What our helper on the machine answers, read once, here, to plain checked values.

The helper is ours, but the machine runs it and may answer what it likes. A wrong answer is
`Garbled`: the act failed, and may be tried again. An offer that could do harm is `Untrusted`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from remote.errors import Garbled, Untrusted
from remote.sync import manifest
from remote.sync.manifest import SHA256, Entry, Limits
from remote.untrusted import text, texts, whole

CHUNKS_MAX = 64 << 20
"""Of one file."""
NAMED_MAX = 5


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What is below a directory there."""

    tree: Mapping[str, Entry]
    left: int
    """How many files were not asked for; they stay there."""
    left_names: tuple[str, ...]
    """Some of them, made printable."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The disk there is too small: bytes."""

    needed: int
    free: int


def read_refusal(answer: Mapping[str, Any]) -> Refused | None:
    """Return what the disk there lacks, None if the answer is no such refusal."""
    if "error" not in answer:
        return None
    return Refused(
        needed=whole(answer.get("needed")) or 0,
        free=whole(answer.get("free")) or 0,
    )


def read_listing(
    answer: Mapping[str, Any],
    *,
    wanted: manifest.Wanted,
    limits: Limits = manifest.DEFAULT_LIMITS,
    source: str,
    here: bool = True,
) -> Listing:
    """Return the files there that were asked for; the others are counted.

    Raises `Garbled` for what is no list of files, `Untrusted` for one that could do harm.
    """
    files, odd = answer.get("files"), answer.get("odd", [])
    if not isinstance(files, dict) or not isinstance(odd, list):
        raise Garbled(f"{source} sent a file list that is none")
    told = answer.get("left", [0, []])
    if not isinstance(told, list) or len(told) != 2 or whole(told[0]) is None:
        raise Garbled(f"{source} sent a file list that is none")
    names = [*(texts(told[1], most=NAMED_MAX) or ()), *(p for p in files if not wanted.takes(p))]
    tree = manifest.read_tree(
        {path: row for path, row in files.items() if wanted.takes(path)},
        odd=[row for row in odd if not isinstance(row, list) or not row or wanted.takes(row[0])],
        limits=limits,
        source=source,
        here=here,
    )
    return Listing(
        tree=tree,
        left=(whole(told[0]) or 0) + len(files) - len(tree),
        left_names=tuple(text(name, most=100) or "" for name in names[:NAMED_MAX]),
    )


def read_exists(answer: Mapping[str, Any]) -> bool:
    """Tell whether the directory that was listed is there."""
    return answer.get("exists") is True


def read_free(answer: Mapping[str, Any]) -> int:
    """Return how many bytes are free there, 0 if it does not say."""
    return whole(answer.get("free")) or 0


def read_chunks(
    answer: Mapping[str, Any], key: str, *, names: Collection[str], source: str
) -> dict[str, tuple[str, ...]]:
    """Return the hashes of the chunks that are there already, by the names that were asked about.

    Raises `Garbled` for anything else.
    """
    found = answer.get(key)
    if not isinstance(found, dict):
        raise Garbled(f"{source} did not say what it has")
    chunks: dict[str, tuple[str, ...]] = {}
    for name in names:
        hashes = texts(found.get(name, []), most=CHUNKS_MAX)
        if hashes is None or not all(SHA256.fullmatch(one) for one in hashes):
            raise Garbled(f"{source} did not say what it has of a file")
        chunks[name] = hashes
    return chunks


def read_wrong(answer: Mapping[str, Any], *, sent: Collection[str], source: str) -> tuple[str, ...]:
    """Return the paths that did not arrive as they were sent, of those that were.

    Raises `Garbled` for anything else.
    """
    wrong: list[str] = []
    for key in ("damaged", "absent"):
        paths = texts(answer.get(key), most=len(sent))
        if paths is None or not set(paths) <= set(sent):
            raise Garbled(f"{source} did not say which files are in place")
        wrong += paths
    return tuple(wrong)


def refuse_alien(tree: Mapping[str, Entry], only: Collection[str], *, source: str) -> None:
    """Raise `Untrusted` if a file is offered that was not among those named one by one."""
    alien = sorted(set(tree) - set(only))
    if alien:
        raise Untrusted(f"{source} offers {alien[0][:200]!r}, which was not asked for")
