"""Describes a tree of files as data, `{path: size, sha256}`, and compares and checks such trees.

There is no I/O. A tree that a machine sends is untrusted input: `read_tree` accepts it only if
writing it below a directory cannot touch anything else, on any file system, and stays within the
limits.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from remote.errors import Garbled, Untrusted, megabytes
from remote.on_machine.tree_ops import PARTIAL_DIR

SHA256 = re.compile(r"[0-9a-f]{64}")
PLAIN_PATH = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.+=@-]*+(?:/|\Z))+(?<!/)", re.ASCII)
"""Most paths: of letters and digits that every file system takes, no part with a leading dot."""
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
    """The most that a machine may send."""

    files_max: int = 100_000
    file_bytes_max: int = 64_000_000_000
    total_bytes_max: int = 256_000_000_000
    sizes: tuple[tuple[str, int], ...] = ()
    """Regular expressions for whole paths and the bytes that such a file may have; the first that
    matches counts, and `file_bytes_max` where none does."""

    def bytes_max(self, path: str) -> int:
        """Return the most bytes that the file at this path may have."""
        for pattern, most in self.sizes:
            if re.fullmatch(pattern, path):
                return most
        return self.file_bytes_max


DEFAULT_LIMITS = Limits()


def is_included(path: object, include: str) -> bool:
    """Whether the regular expression `include` matches the whole path; an empty one matches all."""
    return not include or (isinstance(path, str) and re.fullmatch(include, path) is not None)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How a target tree differs from its source, each part sorted."""

    missing: tuple[str, ...]
    """Paths that are absent from the target or have other bytes there."""
    extraneous: tuple[str, ...]
    """Paths that only the target has."""


def compare(source: Tree, target: Tree) -> Difference:
    """Compare the tree that should be there with the one that is there."""
    return Difference(
        missing=tuple(sorted(path for path in source if target.get(path) != source[path])),
        extraneous=tuple(sorted(path for path in target if path not in source)),
    )


def total_bytes(tree: Tree) -> int:
    """Return the sum of the files' sizes."""
    return sum(entry.size for entry in tree.values())


def read_tree(
    found: object,
    *,
    irregular: object = (),
    limits: Limits = DEFAULT_LIMITS,
    host: str,
    unique_names: bool = True,
) -> dict[str, Entry]:
    """Check `{path: [size, sha256]}` from a machine and return it as a tree.

    Raises `Untrusted` that names the offence: paths that are absolute, leave the root, or hold NUL
    or control characters, names that collide once upper and lower case or Unicode forms are made
    equal, a file that is also a directory, anything that is no regular file (`irregular`), sizes or
    counts above `limits`, malformed checksums. Colliding names are no offence without
    `unique_names`: in a tree that is not to be written here.
    """
    if not isinstance(found, dict) or not isinstance(irregular, (list, tuple)):
        raise Garbled(f"{host} sent a file list that is none")
    for row in irregular:
        if isinstance(row, (list, tuple)) and len(row) == 2:
            raise Untrusted(
                f"{host} offers {str(row[0])[:200]!r}, which is no regular file"
                f" ({str(row[1])[:20]})",
                hint="nothing was written; remove it there, or exclude it by a pattern",
            )
        raise Garbled(f"{host} sent a file list that is none")
    if len(found) > limits.files_max:
        raise Untrusted(f"{host} offers {len(found)} files; {limits.files_max} are allowed")
    tree: dict[str, Entry] = {}
    total = 0
    for path, row in found.items():
        if offence := path_offence(path):
            raise Untrusted(f"{host} offers the path {str(path)[:200]!r}: {offence}")
        tree[path] = read_entry(path, row, limits, host)
        total += tree[path].size
    if total > limits.total_bytes_max:
        raise Untrusted(
            f"{host} offers {megabytes(total)}; {megabytes(limits.total_bytes_max)} are allowed",
            hint="a job of this config cannot make so much: nothing of it was copied",
        )
    if unique_names and (clash := find_clash(tree)):
        raise Untrusted(f"{host} offers {clash[0]!r} and {clash[1]!r}, which are one place")
    return tree


def read_entry(path: str, row: object, limits: Limits, host: str) -> Entry:
    """Check one `[size, sha256]`, or raise `Untrusted`."""
    if not isinstance(row, (list, tuple)) or len(row) != 2:
        raise Garbled(f"{host} sent a malformed entry for {path!r}")
    size, digest = row
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise Garbled(f"{host} gives {path!r} the size {str(size)[:40]!r}")
    if size > (most := limits.bytes_max(path)):
        raise Untrusted(
            f"{host} gives {path!r} a size of {megabytes(size)}; {megabytes(most)} are allowed",
            hint="a job of this config cannot make so much: nothing of it was copied",
        )
    if not isinstance(digest, str) or not SHA256.fullmatch(digest):
        raise Garbled(f"{host} sent a malformed checksum for {path!r}")
    return Entry(size=size, sha256=digest)


def path_offence(path: object) -> str:
    """Return why `path` may not be written below a directory; empty if it may."""
    if not isinstance(path, str) or not path:
        return "not a name"
    if len(path) <= NAME_BYTES_MAX and PLAIN_PATH.fullmatch(path):
        return ""  # for a tree of 100,000 files the rest takes seconds
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
    if PARTIAL_DIR in (normalize(part) for part in parts):
        return "reserved for partial files"
    if length > PATH_BYTES_MAX or any(len(part.encode()) > NAME_BYTES_MAX for part in parts):
        return "too long"
    return ""


def find_clash(tree: Tree) -> tuple[str, str] | None:
    """Find two paths that are the same on some file system, or a file used as a directory."""
    seen: dict[str, str] = {}
    for path in tree:
        other = seen.setdefault(normalize(path), path)
        if other != path:
            return other, path
    checked: set[str] = set()
    for normal, path in seen.items():
        while "/" in normal:
            normal = normal.rsplit("/", 1)[0]  # noqa: PLW2901  (from a path to each of its folders)
            if normal in checked:
                break
            if normal in seen:
                return seen[normal], path
            checked.add(normal)
    return None


def normalize(text: str) -> str:
    """Make names equal that a file system may take for equal: by case and Unicode form."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
