"""The exit codes of `python -m trainer`.

Those from 64 on are of sysexits.h. `commands` acts on them; 128 + N is a death by signal N.
"""

from __future__ import annotations

from enum import IntEnum


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
