"""Limits memory and processes of an answer and its children together, by control groups.

Groups are made below the one that this process is in (version 1), or in a part of the tree that
is this process's alone (version 2); no other group is changed. Standard library only.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainer.code_eval.limits import Limits

ROOT = Path("/sys/fs/cgroup")
SELF = Path("/proc/self/cgroup")
PREFIX = "qft-answers-"
EMPTIED_S, REMOVED_S = 30.0, 2.0


@dataclass(frozen=True)
class Group:
    """The control group of one answer: a folder (version 2), or one per controller (1)."""

    folders: tuple[Path, ...]

    def join(self) -> None:
        """Move this process into the group; what it forks is born there."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def killed_for_memory(self) -> bool:
        """Tell whether the kernel ended a process of the group because its memory ran out."""
        for folder in self.folders:
            for name in ("memory.events", "memory.oom_control"):
                with suppress(OSError):  # a group of another version or controller has no such file
                    for line in (folder / name).read_text().splitlines():
                        key, _, count = line.partition(" ")
                        if key == "oom_kill" and count.strip() not in {"", "0"}:
                            return True
        return False

    def processes(self) -> set[int]:
        """Return the processes that are in the group."""
        found: set[int] = set()
        for folder in self.folders:
            with suppress(OSError):  # it is gone, and so are they
                found |= {int(line) for line in (folder / "cgroup.procs").read_text().split()}
        return found

    def remove(self, kill: Callable[[int], None]) -> int:
        """Kill what is left in the group and remove it; return how many processes stayed."""
        ends_at = time.monotonic() + EMPTIED_S
        while True:
            for folder in self.folders:
                with suppress(OSError):  # only version 2 has it, since Linux 5.14
                    (folder / "cgroup.kill").write_text("1")
            left = self.processes()
            for process in left:
                kill(process)
            if not left or time.monotonic() > ends_at:
                break
            time.sleep(0.01)
        for folder in self.folders:
            _remove(folder)
        return len(left)


def _remove(folder: Path) -> None:
    """Remove an empty group; the kernel may need a moment after its last process."""
    ends_at = time.monotonic() + REMOVED_S
    while folder.is_dir():
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > ends_at:
                return  # empty, and nobody's any more
            time.sleep(0.005)


@dataclass(frozen=True)
class Groups:
    """Where the groups of answers are made."""

    parents: tuple[Path, ...]
    """One folder per controller; one in all under version 2."""

    def make(self, name: str, limits: Limits) -> Group:
        """Make the group of one answer, with its limits set.

        Raises:
            OSError: the group cannot be made, or not be limited.
        """
        folders = tuple(parent / name for parent in self.parents)
        for folder in folders:
            folder.mkdir()
            _limit(folder, limits)
        return Group(folders=folders)

    def remove(self) -> None:
        """Remove the empty folders that held the groups."""
        for parent in self.parents:
            _remove(parent)


def _limit(folder: Path, limits: Limits) -> None:
    # Two more than the answer may have: its namespace's first process, and who waits for that.
    processes, memory = str(limits.processes + 2), str(limits.memory_bytes)
    for name, value, needed in (
        ("pids.max", processes, True),
        ("memory.max", memory, True),
        ("memory.swap.max", "0", False),
        ("memory.limit_in_bytes", memory, True),
        ("memory.memsw.limit_in_bytes", memory, False),
    ):
        path = folder / name
        if not path.exists():
            continue
        try:
            path.write_text(value)
        except OSError:
            if needed:
                raise


def find_groups(*, root: Path = ROOT, own: Path = SELF, name: str = "") -> Groups | None:
    """Make the folders in which groups can be made; None where this process may not."""
    name = name or f"{PREFIX}{os.getpid()}"
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return None
    places = {controllers: path for _, controllers, path in lines}
    if (root / "cgroup.controllers").is_file():
        return _version_2(root, root / places.get("", "/").strip("/"), name)
    return _version_1(root, places, name)


def _version_1(root: Path, places: dict[str, str], name: str) -> Groups | None:
    parents = []
    for controller in ("memory", "pids"):
        path = next((at for names, at in places.items() if controller in names.split(",")), None)
        if path is None:
            continue
        mounted = root / controller
        here = mounted / path.strip("/")
        # In a container the path is the host's, and the container's own group is the root.
        parents.append((here if here.is_dir() else mounted) / name)
    return _made(parents) if len(parents) == 2 else None


def _version_2(root: Path, own: Path, name: str) -> Groups | None:
    """Take the part of the tree that was delegated to this process, or a new one at the root.

    A group with processes can hand out no controllers, so this process moves into a leaf first.
    """
    own = own if own.is_dir() else root
    if own != root and _is_alone(own):
        leaf = own / "parent"
        with suppress(OSError):  # it is not ours to divide: the root is tried
            leaf.mkdir(exist_ok=True)
            (leaf / "cgroup.procs").write_text(str(os.getpid()))
            (own / "cgroup.subtree_control").write_text("+memory +pids")
            return _made([own / name], divided=True)
    return _made([root / name], divided=True)


def _is_alone(folder: Path) -> bool:
    try:
        return (folder / "cgroup.procs").read_text().split() == [str(os.getpid())]
    except OSError:
        return False


def _made(parents: list[Path], *, divided: bool = False) -> Groups | None:
    try:
        for parent in parents:
            _sweep(parent.parent)
            parent.mkdir(exist_ok=True)
            if divided:
                (parent / "cgroup.subtree_control").write_text("+memory +pids")
    except OSError:
        for parent in parents:
            _remove(parent)
        return None
    return Groups(parents=tuple(parents))


def _sweep(folder: Path) -> None:
    """Remove the groups of parents of answers that were killed, and what still runs in them."""
    for old in folder.glob(f"{PREFIX}*"):
        number = old.name.removeprefix(PREFIX)
        if not number.isdecimal() or Path(f"/proc/{number}").exists():
            continue
        for inner in (one for one in old.iterdir() if one.is_dir()):
            Group(folders=(inner,)).remove(_kill)
        _remove(old)


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):  # it ended by itself
        os.kill(process, signal.SIGKILL)
