"""Finds and ends every process that ever ran in a local machine, whatever it did to hide."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil

MARK = "QFT_VM"
"""Environment variable that every process of a machine inherits; it holds the machine's mark."""
VM_PROCESS = "QFT_GUEST"
"""Environment variable of the machine's own process alone: the number of its boot."""
FREEZE_AFTER_S = 0.5
"""How long processes are killed one by one before they are suspected of forking."""
KILL_TIMEOUT_S = 60.0
"""How long a killed process may take: in the middle of an fsync it ends when the disk is done."""


class StillAlive(Exception):  # noqa: N818  (the provider decides what it means)
    """Some processes did not die in time, such as one stuck in a disk that hangs."""

    def __init__(self, pids: Iterable[int], *, waited_s: float) -> None:
        names = ", ".join(str(pid) for pid in sorted(pids))
        super().__init__(f"these processes survived SIGKILL for {waited_s:.0f} s: {names}")


def kill_all(
    find: Callable[[], set[psutil.Process]],
    *,
    timeout_s: float = KILL_TIMEOUT_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Kill what `find` finds until it finds nothing; raises `StillAlive` after `timeout_s`.

    The machine's own process dies last, because it adopts what the others leave behind. What is not
    dead soon may be forking: then all are frozen before the first is killed. Not sooner, because if
    we were killed in between, the frozen would stay.
    """
    began = clock()
    while found := find():
        elapsed_s = clock() - began
        if elapsed_s > timeout_s:
            raise StillAlive((process.pid for process in found), waited_s=timeout_s)
        victims = {process for process in found if VM_PROCESS not in _environ(process)} or found
        if elapsed_s > FREEZE_AFTER_S:
            victims |= freeze(find)
        for process in victims:
            _send(process, signal.SIGKILL)
        sleep(0.005)


def freeze(find: Callable[[], set[psutil.Process]]) -> set[psutil.Process]:
    """Stop all that `find` finds, and what these did before they stopped, until nothing is new."""
    frozen: set[psutil.Process] = set()
    while fresh := find() - frozen:
        for process in fresh:
            _send(process, signal.SIGSTOP)
        frozen |= fresh
    return frozen


def thaw(frozen: set[psutil.Process]) -> None:
    """Let processes go on that were stopped."""
    for process in frozen:
        _send(process, signal.SIGCONT)


def machine_processes(mark: str, disk: Path) -> set[psutil.Process]:
    """Find all living processes of a machine: those with its mark, and all their descendants.

    The mark finds those whose ancestors died; descent finds those that cleaned their environment.
    If the machine's own process was killed from outside, one may be neither marked nor descended:
    it is known by its working directory on the machine's disk without a terminal, as no person has.
    """
    ours = _self_and_ancestors()

    def belongs(process: psutil.Process) -> bool:
        if process.pid in ours:
            return False
        return _environ(process).get(MARK) == mark or _works_in(process, disk)

    return {process for process in _with_descendants(belongs) if process.pid not in ours}


def processes_inside(mark: str, disk: Path) -> set[psutil.Process]:
    """Find all living processes of the machine except this one, the machine's own."""
    me = os.getpid()
    below = _with_descendants(lambda process: process.pid == me)
    return {process for process in below if process.pid != me} | machine_processes(mark, disk)


def find_vm_process(mark: str, boot: int) -> psutil.Process | None:
    """Find the living process that is this boot of the machine, by search over all processes."""
    for process in _all_processes():
        environ = _environ(process)
        if environ.get(MARK) == mark and environ.get(VM_PROCESS) == str(boot) and _alive(process):
            return process
    return None


def is_vm_process(pid: int, created_at: float, mark: str, boot: int) -> bool:
    """Whether `pid` is alive and still that process, not a later one of the same number.

    `created_at` (seconds since 1970) decides only where the environment may not be read: it moves
    when the clock of the computer is set.
    """
    try:
        process = psutil.Process(pid)
        if not _alive(process):
            return False
        try:
            environ = process.environ()
        except psutil.AccessDenied:
            return abs(process.create_time() - created_at) < 1.0
    except psutil.NoSuchProcess:
        return False
    return environ.get(MARK) == mark and environ.get(VM_PROCESS) == str(boot)


def adopt_orphans() -> bool:
    """Become the parent of every descendant whose own parent dies; false where that is unknown.

    On Linux this is PR_SET_CHILD_SUBREAPER (36) of prctl(2): a process that called setsid and lost
    its parent stays below us instead of moving to process 1.
    """
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0) == 0)


def _all_processes() -> Iterator[psutil.Process]:
    """All processes as they are now.

    `psutil.process_iter` remembers those that it met before, and hides a process that was given
    the number of one of them until the next look: too late for whoever looks once.
    """
    for pid in psutil.pids():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended while we looked
            yield psutil.Process(pid)


def _self_and_ancestors() -> set[int]:
    """This process and its ancestors, none of which may be ended by mistake."""
    me = psutil.Process()
    return {me.pid, *(parent.pid for parent in me.parents())}


def _works_in(process: psutil.Process, disk: Path) -> bool:
    """Whether a process without a terminal has its working directory in `disk`."""
    try:
        return process.terminal() is None and Path(process.cwd()).is_relative_to(disk)
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return False


def _with_descendants(is_root: Callable[[psutil.Process], bool]) -> set[psutil.Process]:
    """The living processes that satisfy `is_root`, and all that descend from them."""
    children: dict[int, list[psutil.Process]] = {}
    found: set[psutil.Process] = set()
    for process in _all_processes():
        try:
            parent = process.ppid()
        except psutil.NoSuchProcess:
            continue
        children.setdefault(parent, []).append(process)
        if is_root(process):
            found.add(process)
    queue = list(found)
    while queue:
        for child in children.get(queue.pop().pid, ()):
            if child not in found:
                found.add(child)
                queue.append(child)
    return {process for process in found if _alive(process)}


def _environ(process: psutil.Process) -> dict[str, str]:
    """The environment of a process; empty if it is gone or somebody else's."""
    try:
        return process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return {}


def _alive(process: psutil.Process) -> bool:
    """Whether a process can still do anything; a zombie cannot, it only waits to be counted."""
    try:
        return process.is_running() and process.status() not in {
            psutil.STATUS_ZOMBIE,
            psutil.STATUS_DEAD,
        }
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal; a process that is gone already is what we want anyway."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
