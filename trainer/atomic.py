"""Replaces files and directories whole or not at all, by calls that a test can make fail."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol


class Disk(Protocol):
    """What a save needs from a file system; every method raises `OSError` if it fails."""

    def make_directory(self, path: Path) -> None:
        """Make `path`; its parent exists, it does not."""

    def create(self, path: Path) -> int:
        """Open a new file for writing and return its descriptor; refuse one that exists."""

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of `data` and return how many bytes were taken."""

    def sync(self, descriptor: int) -> None:
        """Return once everything written to `descriptor` would survive a power cut."""

    def close(self, descriptor: int) -> None:
        """Give the descriptor back."""

    def rename(self, source: Path, target: Path) -> None:
        """Give `source` the name `target` in one step."""

    def sync_directory(self, path: Path) -> None:
        """Return once the names in `path` would survive a power cut."""

    def remove_tree(self, path: Path) -> None:
        """Remove a file, a link (not what it points to) or a whole directory."""


class RealDisk:
    """The operating system's own calls."""

    def make_directory(self, path: Path) -> None:
        """Make `path`, for its owner only."""
        path.mkdir(mode=0o700)

    def create(self, path: Path) -> int:
        """Open a new file for writing; an existing name, or a link, is refused."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(path, flags, 0o600)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of `data`; the interpreter runs other threads meanwhile."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Bring the file's bytes to the medium."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close the file."""
        os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Rename within one file system."""
        source.rename(target)

    def sync_directory(self, path: Path) -> None:
        """Bring a directory's names to the medium."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove_tree(self, path: Path) -> None:
        """Remove whatever carries the name; a link is removed, never followed."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


class NoDisk:
    """Takes every write and does nothing, for a process whose files another one writes."""

    def make_directory(self, path: Path) -> None:
        """Make nothing."""

    def create(self, path: Path) -> int:  # noqa: ARG002 - the seam
        """Return a descriptor of nothing."""
        return -1

    def write(self, descriptor: int, data: memoryview) -> int:  # noqa: ARG002 - the seam
        """Take all of it."""
        return len(data)

    def sync(self, descriptor: int) -> None:
        """Bring nothing to the medium."""

    def close(self, descriptor: int) -> None:
        """Close nothing."""

    def rename(self, source: Path, target: Path) -> None:
        """Rename nothing."""

    def sync_directory(self, path: Path) -> None:
        """Bring nothing to the medium."""

    def remove_tree(self, path: Path) -> None:
        """Remove nothing."""


def write_all(disk: Disk, descriptor: int, data: memoryview) -> None:
    """Write every byte of `data`, in chunks so that other threads get their turn."""
    chunk = 4 << 20
    view = data.cast("B")
    done = 0
    while done < len(view):
        done += disk.write(descriptor, view[done : done + chunk])


def partial_of(target: Path) -> Path:
    """Return where this process writes what shall get the name `target` once it is whole."""
    return target.with_name(f".{target.name}.{os.getpid()}.partial")


def clear_partials(target: Path, *, disk: Disk) -> None:
    """Remove what processes that are gone left half-written for `target`; it may be gigabytes.

    What a living one writes stays, as does what cannot be removed. A name with this process's own
    number is an older process's: call it before anything is written.
    """
    start, end = f".{target.name}.", ".partial"
    for path in target.parent.glob(f"{glob.escape(start)}*{end}"):
        number = path.name.removeprefix(start).removesuffix(end)
        if number.isdecimal() and not _lives(int(number)):
            with suppress(OSError):  # in the way of nothing: left for another time
                disk.remove_tree(path)


def _lives(process: int) -> bool:
    """Tell whether there is another process of this number."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)  # asks only
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True


def replace_file(path: Path, text: str, *, disk: Disk) -> None:
    """Make `path` hold `text`, whole or not at all: temp file beside it, fsync, rename, fsync."""
    partial = partial_of(path)
    with suppress(FileNotFoundError):  # usually none is left over
        disk.remove_tree(partial)
    descriptor = disk.create(partial)
    try:
        write_all(disk, descriptor, memoryview(text.encode()))
        disk.sync(descriptor)
    finally:
        disk.close(descriptor)
    disk.rename(partial, path)
    disk.sync_directory(path.parent)


@contextmanager
def new_directory(target: Path, *, disk: Disk) -> Iterator[Path]:
    """Yield an empty directory that becomes `target`, whole and synced, when the block ends.

    If the block fails nothing is left. Files lie in it directly, not in folders.
    """
    clear_partials(target, disk=disk)
    partial = partial_of(target)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in sorted(partial.iterdir()):
            with path.open("rb") as file:
                disk.sync(file.fileno())
        disk.sync_directory(partial)
        disk.rename(partial, target)
        disk.sync_directory(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_directory(fresh: Path, target: Path, *, disk: Disk) -> None:
    """Give the whole, synced directory `fresh` the name `target`; one that is there goes after.

    Cut short anywhere, `restore_directory` finds a whole one, the old or the new.
    """
    old = _aside(target)
    restore_directory(target, disk=disk)
    if target.exists():
        disk.rename(target, old)
    disk.rename(fresh, target)
    disk.sync_directory(target.parent)
    with suppress(OSError):  # not there, or left to the next start: the new one stands
        disk.remove_tree(old)


def restore_directory(target: Path, *, disk: Disk) -> None:
    """Finish or undo a `replace_directory` that was cut short; without one, do nothing."""
    old = _aside(target)
    if not old.exists():
        return
    if target.exists():
        disk.sync_directory(target.parent)
        disk.remove_tree(old)
    else:
        disk.rename(old, target)
        disk.sync_directory(target.parent)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
