"""The exit codes of `python -m trainer`, and the error that carries one.

Those from 64 on are of sysexits.h. `commands` acts on them; 128 + N is a death by signal N.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar

PROBLEMS_SHOWN_MAX = 20


class ExitCode(IntEnum):
    """How a command of the trainer ended, and what to do next."""

    DONE = 0
    DIFFERS = 1  # `verify` only: the replayed steps gave other bits
    USAGE = 2  # argparse refused the command line
    BAD_DATA = 65  # the rows must change; starting again cannot help
    BUG = 70  # a fault of the program, with a traceback
    BUSY = 73  # another trainer works in this run directory
    FAILED_IO = 74  # the disk or the network failed; whole checkpoints stand
    PREEMPTED = 75  # the machine goes away; the state is saved, the same command goes on
    BAD_CONFIG = 78  # the settings, or the packages, must change; starting again cannot help
    INTERRUPTED = 130


class TrainerError(Exception):
    """Ends a command with `exit_code`; its text, one line a problem, says what to change."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_CONFIG
    heading: ClassVar[str] = ""  # above the problems in the log of a job

    def __init__(self, problems: Sequence[str] | str = ()) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(TrainerError):
    """The data cannot be trained on; `problems` are all that were found, the text the first twenty.

    Repeating the run cannot help, mending the data can.
    """

    exit_code = ExitCode.BAD_DATA
    heading = "the data cannot be used"

    def __str__(self) -> str:
        shown = self.problems[:PROBLEMS_SHOWN_MAX]
        hidden = len(self.problems) - len(shown)
        return "\n".join([*shown, *([f"... and {hidden} more"] if hidden else [])])
