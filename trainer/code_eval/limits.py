"""What one answer may use at most, and what its run came to. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

PASSED, WRONG, ERROR, TIMEOUT = "passed", "wrong", "error", "timeout"
MEMORY, OUTPUT, KILLED = "memory", "output", "killed"
VERDICTS = (PASSED, WRONG, ERROR, TIMEOUT, MEMORY, OUTPUT, KILLED)
"""Every verdict on an answer; `docs/code-eval.md` says what each means."""
MESSAGE_CHARS_MAX = 300


@dataclass(frozen=True)
class Limits:
    """The limits of one answer, all of its processes together unless it is said otherwise."""

    wall_s: float = 30.0
    memory_bytes: int = 2 << 30
    """Beyond what it shares with the parent that it was forked from."""
    address_bytes: int = 4 << 30
    """Address space of each process beyond the parent's: reserved is more than used."""
    processes: int = 64
    file_bytes: int = 64 << 20
    """Of each file."""
    open_files: int = 256
    folder_bytes: int = 128 << 20
    """Of the folder in memory that it may write to."""
    folder_files: int = 4096
    output_bytes: int = 1 << 20
    """Of standard output and error; more of it ends the answer."""


@dataclass(frozen=True)
class Outcome:
    """How the run of one answer ended.

    `error` is the name of an exception, or how the process ended; `message` is its text. Both are
    the words of a stranger. `left` counts processes that outlived the answer and could not be
    removed: always 0 in a sandbox that was proved. `output` is kept of attacks only.
    """

    verdict: str
    error: str = ""
    message: str = ""
    seconds: float = 0.0
    left: int = 0
    output: str = ""
