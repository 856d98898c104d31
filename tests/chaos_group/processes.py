"""Starts the trainer with several ranks, finds its processes by a mark, and kills them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from support import tiny

MARK = "CHAOS_GROUP"  # a variable of the environment that all processes of a start inherit
LOOK_S = 0.01


class Group:
    """One start of a training: the process that was started, and the ranks that it starts."""

    def __init__(self, run: Path, *, world: int) -> None:
        self.mark = uuid.uuid4().hex
        self.world = world
        cards = ("--cards", str(world)) if world > 1 else ()
        with (run / "log").open("ab") as log:
            self.parent = subprocess.Popen(
                tiny.trainer_command("train", run, *cards),
                cwd=tiny.ROOT,
                env={**tiny.quiet_environment(), MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def has_ended(self) -> bool:
        """Tell whether the process that was started has ended."""
        return self.parent.poll() is not None

    def pids(self) -> list[int]:
        """Return all living processes of this start, whoever their parent is by now."""
        return marked(self.mark)

    def ranks(self) -> dict[int, int]:
        """Return the process of each rank."""
        if self.world == 1:
            return {} if self.has_ended else {0: self.parent.pid}
        numbers = {pid: rank_of(pid) for pid in self.pids()}
        return {rank: pid for pid, rank in numbers.items() if rank is not None}

    def kill_all(self) -> list[int]:
        """End whatever is left; return what that was."""
        left = self.pids()
        for pid in left:
            send(pid, signal.SIGKILL)
        self.parent.wait()
        return left


def marked(mark: str) -> list[int]:
    """Return the living processes that inherited a mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it has ended meanwhile, or is another user's
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def rank_of(pid: int) -> int | None:
    """Return which rank a process was started as; None if it is no rank."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
    except OSError:  # it has ended meanwhile
        return None
    return int(words[words.index("--rank") + 1]) if "--rank" in words else None


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process, which may have ended."""
    with suppress(ProcessLookupError):  # then it is as it should be
        os.kill(pid, number)


def await_true(is_true: Callable[[], bool], *, limit_s: float) -> bool:
    """Wait until something holds; return whether it does before the time is over."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        if is_true():
            return True
        time.sleep(LOOK_S)
    return is_true()
