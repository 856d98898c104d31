"""`qft` in a terminal of its own: a real pseudo-terminal, in which a test reads and types."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from support.runs import Project
from support.tiny import ROOT

TIMEOUT_S = 300.0
CTRL_C, CTRL_D = "\x03", "\x04"
IN_FOREGROUND = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    " os.execv(sys.argv[1], sys.argv[1:])"
)
"""Makes the terminal the process's own, so that it is in the foreground and Ctrl-C reaches it."""


@dataclass
class Terminal:
    """One program in a terminal, and what it has printed there."""

    process: subprocess.Popen[bytes]
    keyboard: int
    """The file descriptor of the terminal's other end."""
    screen: str = ""

    def wait_for(self, text: str) -> None:
        """Read until a text stands on the screen."""
        ends_s = time.monotonic() + TIMEOUT_S
        while text not in self.screen:
            assert time.monotonic() < ends_s, f"`{text}` never came:\n{self.screen}"
            assert self._read(1.0), f"it ended without `{text}`:\n{self.screen}"

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.keyboard, keys.encode())

    def wait_for_end(self) -> int:
        """Read to the end and return the exit code."""
        ends_s = time.monotonic() + TIMEOUT_S
        while self._read(1.0):
            assert time.monotonic() < ends_s, f"it did not end:\n{self.screen}"
        return self.process.wait(TIMEOUT_S)

    def _read(self, wait_s: float) -> bool:
        """Read what is there; False once the program has closed the terminal."""
        ready, _, _ = select.select([self.keyboard], [], [], wait_s)
        if not ready:
            return True
        try:
            data = os.read(self.keyboard, 65536)
        except OSError:  # what Linux answers when nobody holds the other end
            return False
        self.screen += data.decode(errors="replace")
        return bool(data)


@contextmanager
def terminal(project: Project, *arguments: str) -> Iterator[Terminal]:
    """Start `qft` with these arguments in a terminal; whatever is left of it is killed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_FOREGROUND, sys.executable, str(ROOT / "cli.py"), *arguments],
        cwd=project.folder,
        env=project.environment() | {"TERM": "xterm", "COLUMNS": "80"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process=process, keyboard=ours)
    finally:
        process.kill()
        process.wait(TIMEOUT_S)
        os.close(ours)
