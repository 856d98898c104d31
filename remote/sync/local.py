"""Reads this computer's side of a sync: the trees here, and the bytes of a chunk."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from remote.errors import NoSpace, RemoteError
from remote.on_machine import tree_ops
from remote.sync.manifest import Entry, Tree, path_offence
from remote.sync.plan import Chunk, SyncOptions, file_ranges


class StaleError(Exception):
    """Some paths changed since they were listed; list them again. Never leaves `remote.sync`."""

    def __init__(self, paths: Iterable[str]) -> None:
        super().__init__("changed while it was read")
        self.paths = tuple(paths)


@dataclass(frozen=True, kw_only=True)
class LocalSource:
    """The files here that are to be pushed."""

    tree: Tree
    digest: str
    """What `tree_ops.tree_digest` makes of the tree."""
    paths: Mapping[str, str]
    """Where each file of the tree is on this computer."""
    is_file_list: bool
    """Whether the caller named files one by one rather than a directory."""
    skipped: tuple[str, ...] = ()
    """Paths that are no files and are not sent."""


@dataclass(frozen=True, kw_only=True)
class FoundSource:
    """What is here to be pushed, not hashed yet."""

    rows: tuple[tuple[str, str, str], ...]
    """(path, path on this computer, kind), as `tree_ops.walk` yields them."""
    is_file_list: bool
    cache: str

    @property
    def names(self) -> list[str]:
        """The paths of the files, sorted."""
        return sorted(path for path, _, kind in self.rows if kind == "file")


def find_source(local: Path | Mapping[str, Path], options: SyncOptions) -> FoundSource:
    """Find what is to be pushed; raises `RemoteError` if it is absent or has an illegal name."""
    if isinstance(local, Path):
        if not local.is_dir():
            raise RemoteError(
                f"{local} is {'not a directory' if local.exists() else 'not there'}",
                hint="check the path in your run.yaml; it is relative to that file",
            )
        rows = tuple(tree_ops.walk(str(local), options.exclude, follow=True))
    else:
        for path, file in local.items():
            if not file.is_file():
                raise RemoteError(f"{file} (for {path}) is not there, or no file")
        rows = tuple((path, str(file), "file") for path, file in local.items())
    for path, _, kind in rows:
        if kind == "file" and (offence := path_offence(path)):
            raise RemoteError(
                f"the file name {path!r} cannot be sent: {offence}",
                hint="rename the file, or exclude it by a pattern",
            )
    return FoundSource(
        rows=rows,
        is_file_list=not isinstance(local, Path),
        cache=local_cache_path(local, options),
    )


def hash_source(source: FoundSource) -> LocalSource:
    """Hash the files that were found; one that is gone by now is left out."""
    found = tree_ops.hash_files(source.rows, source.cache)
    return LocalSource(
        tree=to_tree(found["files"]),
        digest=tree_ops.tree_digest(found["files"]),
        paths={path: full for path, full, _ in source.rows},
        is_file_list=source.is_file_list,
        skipped=tuple(path for path, _ in found["irregular"]),
    )


def scan_target(local: Path, source: Tree, options: SyncOptions) -> dict[str, Entry]:
    """Hash what is here before a pull; links count as absent, so that they are replaced.

    Raises `RemoteError` if a directory on the way to a file of `source` is a link or a file.
    """
    try:
        checked: set[str] = set()
        paths = {path: tree_ops.safe_join(str(local), path, checked) for path in source}
    except OSError as error:
        raise RemoteError(
            f"{error.filename} is {error.strerror}: nothing is written through it",
            hint="remove the link, or pull to another directory",
        ) from error
    cache = local_cache_path(local, options)
    if options.delete and options.only is None:
        request = {"root": str(local), "exclude": options.exclude, "include": options.include}
        return to_tree(tree_ops.list_files({**request, "cache": cache})["files"])
    rows = [(path, full, tree_ops.file_kind(full)) for path, full in paths.items()]
    return to_tree(tree_ops.hash_files([row for row in rows if row[2] == "file"], cache)["files"])


def to_tree(files: Mapping[str, tuple[int, str]]) -> dict[str, Entry]:
    """Turn a listing of `tree_ops` into a tree."""
    return {path: Entry(size=size, sha256=digest) for path, (size, digest) in files.items()}


@contextmanager
def translate_local_errors(where: object) -> Iterator[None]:
    """Translate this computer's file errors, once: a full disk, a file that cannot be read."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            free = tree_ops.free_disk_bytes(str(where))
            raise NoSpace(str(where), needed_bytes=free + 1, free_bytes=free) from error
        path = tree_ops.error_path(error) or where
        reason = error.strerror or error
        raise RemoteError(f"a file cannot be synced: {path}: {reason}") from error


def local_cache_path(local: Path | Mapping[str, Path], options: SyncOptions) -> str:
    """Return the file that caches the hashes of these files; empty if nothing is cached."""
    if options.cache_dir is None:
        return ""
    where = str(local.resolve()) if isinstance(local, Path) else repr(sorted(local.items()))
    name = hashlib.sha256(where.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return str(options.cache_dir / f"hashes-{name}.json")


def read_chunk(chunk: Chunk, paths: Mapping[str, str]) -> bytes:
    """Read the bytes of a chunk; raises `StaleError` if a file is shorter than it was, or gone."""
    parts = []
    for path, offset, size in file_ranges(chunk):
        try:
            with Path(paths[path]).open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except FileNotFoundError as error:
            raise StaleError([path]) from error
        if len(data) != size:
            raise StaleError([path])
        parts.append(data)
    return b"".join(parts)
