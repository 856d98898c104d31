"""Chooses the exit code of a training by several ranks: the one that whoever started it acts on.

A rank that leaves because another one was lost ends with `PEER_LOST`, which only the launcher sees.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.exit_codes import ExitCode

PEER_LOST = 76
"""The exit code of a rank that saved and left because another rank was gone or silent."""
PEER_DONE = 79
"""The exit code of a machine whose group is done, and has left the results on another one."""
SIGNALLED = 128

NEVER_CURED = (ExitCode.BAD_CONFIG, ExitCode.BAD_DATA, ExitCode.USAGE)
"""Starting again cannot help, so these beat whatever else happened."""
LEFT = (ExitCode.DONE, ExitCode.PREEMPTED, ExitCode.INTERRUPTED, PEER_LOST)
"""How a rank ends that did nothing wrong."""


@dataclass(frozen=True, kw_only=True)
class RankEnd:
    """How the process of one rank ended."""

    code: int
    """Its exit code, or 128 and the number of the signal that killed it."""
    killed_by_launcher: bool = False
    """Whether it did not leave in time after another rank had ended."""
    terminated: bool = False
    """Whether it had been sent a SIGTERM, which kills a process that does not listen yet."""


def exit_code_of(returncode: int) -> int:
    """Return the exit code for what `subprocess` returns, which has signals below zero."""
    return returncode if returncode >= 0 else SIGNALLED - returncode


def choose(ends: Sequence[RankEnd], *, noticed: bool = False) -> int:
    """Return the exit code of the whole: done only if all are, else what is to be acted on.

    What no further start can cure comes first, then a fault of the program, then a rank that was
    killed or had no disk, then one that was silent, then an interrupt or a notice. If ranks only
    lost each other, what is between them failed, unless they were told to leave (`noticed`).
    """
    codes = [_effective(end) for end in ends]
    own = [code for end, code in zip(ends, codes, strict=True) if not end.killed_by_launcher]
    for wanted in (*NEVER_CURED, ExitCode.BUG):
        if wanted in own:
            return int(wanted)
    for code in own:
        if code not in LEFT:
            return code
    for end, code in zip(ends, codes, strict=True):
        if end.killed_by_launcher:
            return code
    for wanted in (ExitCode.INTERRUPTED, ExitCode.PREEMPTED):
        if wanted in own:
            return int(wanted)
    if PEER_LOST in own:
        return int(ExitCode.PREEMPTED if noticed else ExitCode.FAILED_IO)
    return int(ExitCode.DONE)


def culprit(ends: Sequence[RankEnd]) -> int | None:
    """Return which rank decided about the exit code; None if none of them did anything wrong."""
    code = choose(ends)
    if code in LEFT or not ends:
        return None
    silent = [rank for rank, end in enumerate(ends) if end.killed_by_launcher]
    own = [rank for rank, end in enumerate(ends) if rank not in silent]
    return next((rank for rank in (*own, *silent) if _effective(ends[rank]) == code), None)


def describe(end: RankEnd) -> str:
    """Return in words how a rank ended that says nothing itself."""
    if end.killed_by_launcher:
        return "did not answer when another rank had ended, and was killed"
    if end.code > SIGNALLED:
        try:
            name = signal.Signals(end.code - SIGNALLED).name
        except ValueError:
            name = f"signal {end.code - SIGNALLED}"
        return f"was killed by {name}"
    return f"ended with exit code {end.code}"


def _effective(end: RankEnd) -> int:
    """Return the code of a rank; one that a SIGTERM of the launcher killed did as it was told."""
    if end.terminated and end.code == SIGNALLED + signal.SIGTERM:
        return int(ExitCode.PREEMPTED)
    return end.code
