"""The errors that `qft` ends with, and the exit code that each of them stands for."""

from __future__ import annotations

from enum import IntEnum
from typing import Self

from infra.run.journal import Outcome


class Exit(IntEnum):
    """The exit codes of `qft`, each with its meaning; anything else is a failure too."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Self:
        """Make a member that is its code and carries its meaning."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    DONE = 0, "done"
    BUG = 1, "our bug"
    USAGE = 2, "usage or config"
    CLOUD = 3, "the cloud refused"
    HOST = 4, "host unreachable or unfit"
    TRAINING = 5, "training failed"
    BUDGET = 6, "budget reached"
    INTERRUPTED = 130, "interrupted, here or in the cloud"


class QftError(Exception):
    """An error for a person: what happened, what it means, and a hint that can be typed.

    `problems` lists further lines, such as every fault of a config at once.
    """

    exit_code: Exit = Exit.USAGE

    def __init__(self, message: str, *, hint: str = "", problems: list[str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.problems = problems or []


class UsageError(QftError):
    """The command line, `run.yaml` or the data is wrong; nothing was rented or changed."""


class CloudError(QftError):
    """The cloud refused: capacity, quota, price or rights."""

    exit_code = Exit.CLOUD


class HostError(QftError):
    """The machine does not answer, or is not who it claims to be."""

    exit_code = Exit.HOST


class TrainingError(QftError):
    """The trainer failed for a reason of its own."""

    exit_code = Exit.TRAINING


class BudgetError(QftError):
    """The budget is used up; the compute is released."""

    exit_code = Exit.BUDGET


class StoppedError(QftError):
    """Somebody stopped the machine in the cloud; the state is kept."""

    exit_code = Exit.INTERRUPTED


ERROR_OF: dict[Outcome, type[QftError]] = {
    Outcome.BAD_INPUT: UsageError,
    Outcome.CLOUD_REFUSED: CloudError,
    Outcome.MACHINE_FAILED: HostError,
    Outcome.TRAINING_FAILED: TrainingError,
    Outcome.BUDGET_REACHED: BudgetError,
    Outcome.STOPPED_BY_USER: StoppedError,
}
"""What `qft` says of a run that ended so, and with which exit code."""


def exit_of(outcome: Outcome) -> Exit:
    """Return the exit code of a command whose run ended so."""
    return Exit.DONE if outcome is Outcome.DONE else ERROR_OF[outcome].exit_code
