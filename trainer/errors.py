"""The errors that end a command of the trainer, each with its exit code.

Preempted          the machine goes away; the state is saved, start again elsewhere
└── PeerLost       another rank of this training is gone or silent; start all of them again
OSError            the disk or the network failed; whole checkpoints stand
TrainerError
├── Busy           another trainer works here
├── CardsDisagree  the cards of one training have computed other bits; one of them is at fault
├── DataError      rows must change
└── ConfigError    settings must change
    ├── NoSandbox    answers that are code cannot be held here; they are not run
    ├── DoesNotFit   even one sequence exceeds the device's memory
    └── Diverged     the training left the finite numbers
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from trainer.exit_codes import ExitCode

PROBLEMS_SHOWN_MAX = 20


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


class ConfigError(TrainerError):
    """The config cannot be used; the message lists every fault."""

    exit_code = ExitCode.BAD_CONFIG
    heading = "the config cannot be used"


class Preempted(Exception):  # noqa: N818 - an order from outside, not an error
    """The machine goes away: the state is whole and saved, or about to be."""


class PeerLost(Preempted):
    """Another rank is gone, silent or has left; the state of the last whole step stands.

    Whoever can leave at a notice can leave at this: the same command goes on.
    """


class CardsDisagree(TrainerError):  # noqa: N818 - says what is the case
    """The ranks of one training no longer have the same state, which only a fault explains."""

    exit_code = ExitCode.BUG
    heading = "the cards do not agree"


class Busy(TrainerError):  # noqa: N818 - says what is the case
    """Another trainer works in this run directory."""

    exit_code = ExitCode.BUSY
    heading = "busy"


class DoesNotFit(ConfigError):  # noqa: N818 - says what is the case
    """Even one sequence at a time does not fit into the memory of the device."""


class Diverged(ConfigError):  # noqa: N818 - the training did, the program is fine
    """Too many steps in a row had no finite gradient; the message says what to try."""


class NoSandbox(ConfigError):  # noqa: N818 - says what is the case
    """No sandbox holds answers that are code on this machine, so none of them is run."""

    heading = "answers cannot be run here"
