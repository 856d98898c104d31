"""Takes a run out of the hands of another `qft`, as Ctrl-C in its terminal would.

Who asks for the end of the bill must not be told to look for the right terminal first, and a driver
that nobody stopped would start the machine again.
"""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Callable, Iterator

from commands.home import Busy, RunFolder, driving

PATIENCE_S = ((signal.SIGINT, 15.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
"""What a driver is asked with, and how long it is waited for; a run survives each of them."""
LOOK_EVERY_S = 0.1


@contextlib.contextmanager
def taken(
    folder: RunFolder,
    say: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Hold the run alone, ending its driver if there is one.

    Raises Busy if the driver cannot be found on this computer or does not let go.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(driving(folder))
        except Busy as busy:
            _end(busy, folder, say, clock=clock, sleep=sleep)
            held.enter_context(driving(folder))
        yield


def _end(
    busy: Busy,
    folder: RunFolder,
    say: Callable[[str], None],
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Ask the driver to leave, more firmly each time, until it has."""
    pid = _driver(busy, folder)
    if pid is None:
        raise busy
    say(f"stopping the `qft` that drives `{folder.name}` ({busy.holder})")
    for number, patience_s in PATIENCE_S:
        _signal(pid, number)
        ends_s = clock() + patience_s
        while clock() < ends_s:
            if _driver(busy, folder) is None:
                return
            sleep(LOOK_EVERY_S)


def _driver(busy: Busy, folder: RunFolder) -> int | None:
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

    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).send_signal(number)
