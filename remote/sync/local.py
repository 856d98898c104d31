"""This computer's side of a sync: what is here, and the bytes of a chunk or a clear refusal."""

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
    """Some paths are no longer what the manifest said; look again. Never leaves `remote.sync`."""

    def __init__(self, paths: Iterable[str]) -> None:
        super().__init__("changed while it was read")
        self.paths = tuple(paths)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files here that should be there."""

    tree: Tree
    paths: Mapping[str, Path]
    """Where each file of the tree is on this computer."""
    named: bool
    """Whether the caller named files one by one rather than a whole directory."""
    skipped: tuple[str, ...] = ()
    """What is no file and was left out."""


def scan_source(local: Path | Mapping[str, Path], options: SyncOptions) -> Source:
    """Hash what should be pushed; raises `RemoteError` if it is absent or has an illegal name."""
    cache = cache_path(local, options)
    if isinstance(local, Path):
        if not local.is_dir():
            raise RemoteError(
                f"{local} is {'not a directory' if local.exists() else 'not there'}",
                hint="check the path in your run.yaml; it is relative to that file",
            )
        found = tree_ops.scan(str(local), options.exclude, cache, follow_links=True)
        paths = {path: local / path for path in found["files"]}
    else:
        for path, file in local.items():
            if not file.is_file():
                raise RemoteError(f"{file} (for {path}) is not there, or no file")
        found = tree_ops.listing([(path, str(file), "file") for path, file in local.items()], cache)
        paths = dict(local)
    for path in paths:
        if offence := path_offence(path):
            raise RemoteError(
                f"the file name {path!r} cannot be sent: {offence}",
                hint="rename the file, or exclude it by a pattern",
            )
    return Source(
        tree=as_tree(found["files"]),
        paths=paths,
        named=not isinstance(local, Path),
        skipped=tuple(path for path, _ in found["odd"]),
    )


def scan_target(local: Path, want: Tree, options: SyncOptions) -> dict[str, Entry]:
    """Hash what is already here before a pull; links count as absent, so they are replaced.

    Raises `RemoteError` if a directory on the way to a wanted file is a link or a file.
    """
    try:
        places = {path: tree_ops.inside(str(local), path) for path in want}
    except OSError as error:
        raise RemoteError(
            f"{error.filename} is {error.strerror}: nothing is written through it",
            hint="remove the link, or pull to another directory",
        ) from error
    if options.delete and options.only is None:
        cache = cache_path(local, options)
        asked = {"root": str(local), "exclude": options.exclude, "include": options.include}
        return as_tree(tree_ops.manifest({**asked, "cache": cache})["files"])
    rows = [(path, full, tree_ops.kind_of(full)) for path, full in places.items()]
    there = [row for row in rows if row[2] == "file"]
    return as_tree(tree_ops.listing(there, cache_path(local, options))["files"])


def as_tree(files: Mapping[str, tuple[int, str]]) -> dict[str, Entry]:
    """Turn our own listing into a tree."""
    return {path: Entry(size=size, sha256=digest) for path, (size, digest) in files.items()}


@contextmanager
def local_errors(where: object) -> Iterator[None]:
    """Translate this computer's file errors, once: a full disk, a file that cannot be read."""
    try:
        yield
    except OSError as error:
        said = f"{tree_ops.place_of(error) or where}: {error.strerror or error}"
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            free = tree_ops.free_bytes(str(where))
            raise NoSpace(str(where), needed_bytes=free + 1, free_bytes=free) from error
        raise RemoteError(f"a file cannot be synced: {said}") from error


def cache_path(local: Path | Mapping[str, Path], options: SyncOptions) -> str:
    """Name the file that remembers the hashes of this source; empty if nothing is remembered."""
    if options.cache_dir is None:
        return ""
    where = str(local.resolve()) if isinstance(local, Path) else repr(sorted(local.items()))
    name = hashlib.sha256(where.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return str(options.cache_dir / f"hashes-{name}.json")


def read_chunk(chunk: Chunk, paths: Mapping[str, Path]) -> bytes:
    """Read the bytes of a chunk; raises `StaleError` if a file is shorter than it was, or gone."""
    found = []
    for path, offset, size in file_ranges(chunk):
        try:
            with paths[path].open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except FileNotFoundError as error:
            raise StaleError([path]) from error
        if len(data) != size:
            raise StaleError([path])
        found.append(data)
    return b"".join(found)
