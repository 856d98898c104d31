"""What `qft` says when something is wrong, and with which exit code: the tree behind the table.

0 done · 1 our bug · 2 usage or config · 3 the cloud refused · 4 host unreachable or not who it
claims · 5 training failed · 6 budget reached · 130 interrupted, here or in the cloud
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of `qft`; anything else is a failure too."""

    DONE = 0
    BUG = 1
    USAGE = 2
    CLOUD = 3
    HOST = 4
    TRAINING = 5
    BUDGET = 6
    INTERRUPTED = 130


class QftError(Exception):  # noqa: N818  (said to people)
    """Something a person must read: what happened, what it means, and a hint that can be typed.

    `problems` lists further lines, such as every fault of a config at once.
    """

    exit_code = Exit.USAGE

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


class RunInterrupted(QftError):
    """Somebody stopped the machine in the cloud; the state is kept."""

    exit_code = Exit.INTERRUPTED


BY_CODE: dict[int, type[QftError]] = {
    Exit.USAGE: UsageError,
    Exit.CLOUD: CloudError,
    Exit.HOST: HostError,
    Exit.TRAINING: TrainingError,
    Exit.BUDGET: BudgetError,
    Exit.INTERRUPTED: RunInterrupted,
}
