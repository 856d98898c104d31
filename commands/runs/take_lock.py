"""Takes a run out of the hands of another `qft`, as Ctrl-C in its terminal would.

Who asks for the end of the bill must not be told to look for the right terminal first, and a driver
that nobody stopped would start the machine again. Who takes a run leaves a note beside it, so that
the one that had it, and whoever follows it, can say by whom it was ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from commands.runs.home import RunBusyError, RunFolder, run_lock
from infra.durable import read_json, write_json

SIGNALS = ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0))
"""What a driver is asked with, and how long it is waited for; a run survives each of them.

Not SIGINT, which is ignored in what a script started in the background.
"""
POLL_EVERY_S = 0.1
DRIVERS_MAX = 3
"""Who followed the one that was ended may have taken its place meanwhile."""
DOWN_WAIT_S = 1200.0
"""How long another `qft down` that is at work is waited for: longer than it lets anything take."""
NOTE = "down.json"


@dataclass(frozen=True, kw_only=True)
class LockTaker:
    """A `qft` that ends a run: its process here, and the command that was typed."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"`{self.command}`, process {self.pid}"


def lock_taker_of(folder: RunFolder) -> LockTaker | None:
    """Who ends the run at this moment, if it is another living process; None if nobody does."""
    try:
        note = read_json(folder.root / NOTE)
    except (ValueError, OSError):  # torn by a full disk: as if nobody had left one
        return None
    if not isinstance(note, dict) or note.get("pid") == os.getpid():
        return None
    pid, since = note.get("pid"), note.get("since")
    if not isinstance(pid, int) or since is None or _began(pid) != since:
        return None
    return LockTaker(pid=pid, command=str(note.get("command")))


@contextlib.contextmanager
def take_lock(  # noqa: PLR0913  (clock and sleep are a test's)
    folder: RunFolder,
    on_message: Callable[[str], None],
    *,
    command: str = "qft down",
    urgent: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[bool]:
    """Hold the run alone, ending its driver if there is one; yield whether there was.

    Another `qft down` at work is waited for, unless this one is `urgent`: then it is ended, too.
    Raises Busy if the driver cannot be found on this computer or does not let go.
    """
    ended = False
    with contextlib.ExitStack() as held:
        for left in reversed(range(DRIVERS_MAX + 1)):
            try:
                held.enter_context(run_lock(folder))
            except RunBusyError as busy:
                if not left:
                    raise
                other = None if urgent else lock_taker_of(folder)
                waits = other is not None and busy.holder == f"process {other.pid}"
                if not (waits and _is_done(other, folder, on_message, clock=clock, sleep=sleep)):
                    held.enter_context(_noted(folder, command))
                    _end(busy, folder, on_message, clock=clock, sleep=sleep)
                    ended = True
            else:
                break
        held.enter_context(_noted(folder, command))
        yield ended


@contextlib.contextmanager
def _noted(folder: RunFolder, command: str) -> Iterator[None]:
    """Leave a note of who takes the run; on a full disk none, and the driver will say less."""
    note = folder.root / NOTE
    mine = {"pid": os.getpid(), "since": _began(os.getpid()), "command": command}
    with contextlib.suppress(OSError):  # a full disk: the other then says less
        write_json(note, mine)
    try:
        yield
    finally:
        if _read(folder) == mine:  # not that of a later one
            note.unlink(missing_ok=True)


def _read(folder: RunFolder) -> Any:
    try:
        return read_json(folder.root / NOTE)
    except (ValueError, OSError):
        return None


def _began(pid: int) -> float | None:
    """When a process began; None if there is none of that number."""
    import psutil

    try:
        return round(psutil.Process(pid).create_time(), 2)
    except psutil.Error:
        return None


def _is_done(
    other: LockTaker | None,
    folder: RunFolder,
    on_message: Callable[[str], None],
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> bool:
    """Wait until another `qft down` has done its work, or is gone; tell whether it is."""
    on_message(f"{other} is at work on `{folder.name}`: waiting for it (`--now` does not)")
    ends_s = clock() + DOWN_WAIT_S
    while lock_taker_of(folder) == other:
        if clock() >= ends_s:
            return False
        sleep(POLL_EVERY_S)
    return True


def _end(
    busy: RunBusyError,
    folder: RunFolder,
    on_message: Callable[[str], None],
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Ask the driver to leave, more firmly each time, until it has."""
    pid = _driver(busy, folder)
    if pid is None:
        raise busy
    on_message(f"stopping the `qft` that drives `{folder.name}` ({busy.holder})")
    for number, wait_s in SIGNALS:
        _signal(pid, number)
        ends_s = clock() + wait_s
        while clock() < ends_s:
            if _driver(busy, folder) is None:
                return
            sleep(POLL_EVERY_S)


def _driver(busy: RunBusyError, folder: RunFolder) -> int | None:
    """The process that holds the lock, if it is one of this computer that has the file open.

    A number alone proves nothing: it may be of another computer, or of a process that came later.
    """
    import psutil

    named = re.fullmatch(r"process (\d+)", busy.holder)
    if named is None:
        return None
    try:
        opened = [file.path for file in psutil.Process(int(named[1])).open_files()]
    except psutil.Error:
        return None
    return int(named[1]) if str(folder.lock.resolve()) in opened else None


def _signal(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that is gone already has done what was asked."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):  # it has ended: what was wanted
        psutil.Process(pid).send_signal(number)
