"""A tree of files as data: `{path: size, sha256}`; trees are compared, and distrusted, without I/O.

A tree that a machine tells us about is input from a stranger: `read_tree` admits it only if writing
it below a directory cannot touch anything else, on any file system, and stays within the limits.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from remote.errors import Garbled, Untrusted, megabytes
from remote.on_machine.tree_ops import PARTIAL_DIR

SHA256 = re.compile(r"[0-9a-f]{64}")
NAME_BYTES_MAX = 255
PATH_BYTES_MAX = 1024


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file: how long it is and what is in it."""

    size: int
    """Bytes."""
    sha256: str
    """Lower-case hex."""


Tree = Mapping[str, Entry]
"""Files by their path below the root, `/` between the parts."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a machine may hand us at most."""

    files_max: int = 100_000
    file_bytes_max: int = 64_000_000_000
    total_bytes_max: int = 256_000_000_000
    sizes: tuple[tuple[str, int], ...] = ()
    """Regular expressions for whole paths and the bytes that such a file may have; the first that
    matches counts, and `file_bytes_max` where none does."""

    def bytes_max(self, path: str) -> int:
        """The most that the file at this path may have."""
        for pattern, most in self.sizes:
            if re.fullmatch(pattern, path):
                return most
        return self.file_bytes_max


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which files of a machine are asked for."""

    include: str = ""
    """A regular expression for whole paths; empty: all."""

    def takes(self, path: object) -> bool:
        """Tell whether a file at this path was asked for."""
        if not self.include:
            return True
        return isinstance(path, str) and re.fullmatch(self.include, path) is not None


EVERYTHING = Wanted()


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What must happen to make one tree like another, each part sorted."""

    missing: tuple[str, ...]
    """Paths that are absent or have other bytes."""
    same: tuple[str, ...]
    extraneous: tuple[str, ...]
    """Paths that only the second tree has."""


def difference(want: Tree, have: Tree) -> Difference:
    """Compare what should be there with what is there."""
    return Difference(
        missing=tuple(sorted(path for path in want if have.get(path) != want[path])),
        same=tuple(sorted(path for path in want if have.get(path) == want[path])),
        extraneous=tuple(sorted(path for path in have if path not in want)),
    )


def total_bytes(tree: Tree) -> int:
    """Sum the sizes."""
    return sum(entry.size for entry in tree.values())


def read_tree(
    found: object,
    *,
    odd: object = (),
    limits: Limits = DEFAULT_LIMITS,
    source: str,
    here: bool = True,
) -> dict[str, Entry]:
    """Admit `{path: [size, sha256]}` from a stranger, or raise `Untrusted` naming the offence.

    Refused: paths that are absolute, leave the root, or hold NUL or control characters, names that
    collide once upper and lower case or Unicode forms are folded, a file that is also a directory,
    anything that is no regular file (`odd`), sizes or counts above `limits`, malformed checksums.
    Colliding names are no offence in a tree that is not to be written `here`.
    """
    if not isinstance(found, dict) or not isinstance(odd, (list, tuple)):
        raise Garbled(f"{source} sent a file list that is none")
    for row in odd:
        if isinstance(row, (list, tuple)) and len(row) == 2:
            raise Untrusted(
                f"{source} offers {str(row[0])[:200]!r}, which is no regular file"
                f" ({str(row[1])[:20]})",
                hint="nothing was written; remove it there, or exclude it by a pattern",
            )
        raise Garbled(f"{source} sent a file list that is none")
    if len(found) > limits.files_max:
        raise Untrusted(f"{source} offers {len(found)} files; {limits.files_max} are allowed")
    tree: dict[str, Entry] = {}
    total = 0
    for path, row in found.items():
        if offence := path_offence(path):
            raise Untrusted(f"{source} offers the path {str(path)[:200]!r}: {offence}")
        tree[path] = read_entry(path, row, limits, source)
        total += tree[path].size
    if total > limits.total_bytes_max:
        raise Untrusted(
            f"{source} offers {megabytes(total)}; {megabytes(limits.total_bytes_max)} are allowed",
            hint="a job of this config cannot make so much: nothing of it was copied",
        )
    if here and (clash := find_clash(tree)):
        raise Untrusted(f"{source} offers {clash[0]!r} and {clash[1]!r}, which are one place")
    return tree


def read_entry(path: str, row: object, limits: Limits, source: str) -> Entry:
    """Admit one `[size, sha256]`, or raise `Untrusted`."""
    if not isinstance(row, (list, tuple)) or len(row) != 2:
        raise Garbled(f"{source} sent a malformed entry for {path!r}")
    size, digest = row
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise Garbled(f"{source} gives {path!r} the size {str(size)[:40]!r}")
    if size > (most := limits.bytes_max(path)):
        raise Untrusted(
            f"{source} gives {path!r} a size of {megabytes(size)}; {megabytes(most)} are allowed",
            hint="a job of this config cannot make so much: nothing of it was copied",
        )
    if not isinstance(digest, str) or not SHA256.fullmatch(digest):
        raise Garbled(f"{source} sent a malformed checksum for {path!r}")
    return Entry(size=size, sha256=digest)


def path_offence(path: object) -> str:
    """Say why `path` may not be written below a directory; empty if it may."""
    if not isinstance(path, str) or not path:
        return "not a name"
    try:
        length = len(path.encode("utf-8"))
    except UnicodeEncodeError:
        return "not valid Unicode"
    if path.startswith("/"):
        return "absolute"
    if any(unicodedata.category(char) == "Cc" for char in path):
        return "control characters"
    if "\\" in path:
        return "a backslash"
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return "it leaves its directory or is not in its shortest form"
    if PARTIAL_DIR in (fold(part) for part in parts):
        return "reserved for partial files"
    if length > PATH_BYTES_MAX or any(len(part.encode()) > NAME_BYTES_MAX for part in parts):
        return "too long"
    return ""


def find_clash(tree: Tree) -> tuple[str, str] | None:
    """Find two paths that are one place on some file system, or a file used as a directory."""
    seen: dict[str, str] = {}
    for path in tree:
        other = seen.setdefault(fold(path), path)
        if other != path:
            return other, path
    for path in tree:
        folded = fold(path)
        while "/" in folded:
            folded = folded.rsplit("/", 1)[0]
            if folded in seen:
                return seen[folded], path
    return None


def fold(text: str) -> str:
    """Make names equal that a file system may take for equal."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
