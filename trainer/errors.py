"""The errors that end a job; each stands for an exit code of `exit_codes.py`.

Preempted    the machine goes away; the state is saved, start again elsewhere
Busy         another trainer works here
OSError      the disk or the network failed; whole checkpoints stand
DataError    rows must change (defined in `rows.py`)
ConfigError  settings must change (defined in `config.py`)
├── DoesNotFit   even one sequence exceeds the device's memory
└── Diverged     the training left the finite numbers
"""

from __future__ import annotations

from trainer.config import ConfigError
from trainer.exit_codes import ExitCode, TrainerError


class Preempted(Exception):  # noqa: N818 - an order from outside, not an error
    """The machine goes away: the state is whole and saved, or about to be."""


class Busy(TrainerError):  # noqa: N818 - says what is the case
    """Another trainer works in this run directory."""

    exit_code = ExitCode.BUSY
    heading = "busy"


class DoesNotFit(ConfigError):  # noqa: N818 - says what is the case
    """Even one sequence at a time does not fit into the memory of the device."""


class Diverged(ConfigError):  # noqa: N818 - the training did, the program is fine
    """Too many steps in a row had no finite gradient; the message says what to try."""
