"""Asks a person at the terminal, where there is one who can answer."""

from __future__ import annotations

import os
import sys


def can_ask() -> bool:
    """Return whether somebody reads stderr and can type an answer.

    False in a pipe, and for a job in the background: the system would stop it when it reads.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # it is nobody's terminal any more
        return False


def ask_yes(prompt: str) -> bool:
    """Ask on stderr; only `y` and `yes` mean yes, an empty line and the end of input do not."""
    print(f"{prompt} [y/N] ", end="", file=sys.stderr, flush=True)  # noqa: T201
    line = sys.stdin.readline()
    if not line.endswith("\n"):
        print(file=sys.stderr, flush=True)  # noqa: T201
    return line.strip().lower() in {"y", "yes"}
