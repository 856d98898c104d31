"""Disks that fail: after so many calls, when full, or by losing what was never synced."""

# ruff: noqa: D102 - the promises are those of trainer.atomic.Disk

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.atomic import RealDisk


class Died(BaseException):
    """The process was killed at this very call; nothing of ours runs afterwards."""


class DyingDisk(RealDisk):
    """Does `calls` calls, then dies: the next call does nothing, or half of what it should."""

    def __init__(self, calls: int, *, halves: bool = False) -> None:
        self.left = calls
        self.calls: list[str] = []
        self._halves = halves

    def _step(self, name: str, half: Callable[[], object] | None = None) -> None:
        if self.left == 0:
            if self._halves and half is not None:
                half()
            raise Died
        self.left -= 1
        self.calls.append(name)

    def make_directory(self, path: Path) -> None:
        self._step("make_directory")
        super().make_directory(path)

    def create(self, path: Path) -> int:
        self._step("create")
        return super().create(path)

    def write(self, descriptor: int, data: memoryview) -> int:
        self._step(
            "write", lambda: super(DyingDisk, self).write(descriptor, data[: len(data) // 2])
        )
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._step("sync")
        super().sync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename")
        super().rename(source, target)

    def sync_directory(self, path: Path) -> None:
        self._step("sync_directory")
        super().sync_directory(path)

    def remove_tree(self, path: Path) -> None:
        self._step("remove_tree", lambda: self._remove_one(path))
        super().remove_tree(path)

    def _remove_one(self, path: Path) -> None:
        """Remove the first file of a directory, as a removal does that is cut short."""
        for entry in sorted(path.iterdir()) if path.is_dir() else []:
            entry.unlink()
            return


class FailingDisk(DyingDisk):
    """Does `calls` calls, fails the next one with `code`, and works again afterwards."""

    def __init__(self, calls: int, code: int) -> None:
        super().__init__(calls)
        self._code = code

    def _step(self, name: str, half: Callable[[], object] | None = None) -> None:  # noqa: ARG002 - as above
        self.left -= 1
        self.calls.append(name)
        if self.left == -1:
            raise OSError(self._code, errno.errorcode[self._code])


class FullDisk(RealDisk):
    """Takes `room` bytes and then says ENOSPC, also in the middle of a write."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, descriptor: int, data: memoryview) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = super().write(descriptor, data[: self.room])
        self.room -= done
        return done


class SmallDisk(DyingDisk):
    """Holds `capacity` bytes below `root`; what is removed makes room again. May die as well."""

    def __init__(
        self, root: Path, capacity: int, *, calls: int = 10**9, halves: bool = False
    ) -> None:
        super().__init__(calls, halves=halves)
        self._root = root
        self._capacity = capacity

    def write(self, descriptor: int, data: memoryview) -> int:
        room = self._capacity - bytes_below(self._root)
        if room <= 0:
            self._step("refused")
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(descriptor, data[:room])


def bytes_below(root: Path) -> int:
    """Return how many bytes the files below `root` have."""
    return sum(path.lstat().st_size for path in root.rglob("*") if path.is_file())


class ForgetfulDisk(RealDisk):
    """Remembers what a power cut would take: bytes never synced, names never synced.

    `cut()` plays the power cut in the worst way that POSIX allows: every file whose bytes were not
    synced since the last write loses them, and every rename or creation in a directory that was
    not synced afterwards is undone.
    """

    def __init__(self) -> None:
        self._paths: dict[int, Path] = {}
        self._unsynced_bytes: set[Path] = set()
        self._undo: dict[Path, list[Callable[[], object]]] = {}

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self._paths[descriptor] = path
        self._unsynced_bytes.add(path)
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        self._unsynced_bytes.add(self._paths[descriptor])
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        self._unsynced_bytes.discard(self._paths[descriptor])

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        moved = {p for p in self._unsynced_bytes if p.is_relative_to(source)}
        self._unsynced_bytes -= moved
        self._unsynced_bytes |= {target / p.relative_to(source) for p in moved}
        self._undo.setdefault(source.parent, []).append(lambda: _move_back(target, source))

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self._undo.pop(path, None)

    def cut(self) -> None:
        """Lose everything that was not synced."""
        for path in self._unsynced_bytes:
            if path.exists():
                path.write_bytes(b"")
        for moves in self._undo.values():
            for undo in reversed(moves):
                undo()


def _move_back(target: Path, source: Path) -> Any:
    return target.rename(source) if target.exists() else None
