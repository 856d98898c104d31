"""What `qft` says when something is wrong, and with which exit code: the tree behind the table.

0 done · 1 our bug · 2 usage or config · 3 the cloud refused · 4 host unreachable or not who it
claims · 5 training failed · 6 budget reached · 130 interrupted, here or in the cloud
"""

from __future__ import annotations

from enum import IntEnum

from infra.run.journal import Outcome


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


class Trouble(Exception):  # noqa: N818  (said to people)
    """Something a person must read: what happened, what it means, and a hint that can be typed.

    `problems` lists further lines, such as every fault of a config at once.
    """

    exit_code = Exit.USAGE

    def __init__(self, message: str, *, hint: str = "", problems: list[str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.problems = problems or []


class Usage(Trouble):
    """The command line, `run.yaml` or the data is wrong; nothing was rented or changed."""


class CloudTrouble(Trouble):
    """The cloud refused: capacity, quota, price or rights."""

    exit_code = Exit.CLOUD


class HostTrouble(Trouble):
    """The machine does not answer, or is not who it claims to be."""

    exit_code = Exit.HOST


class TrainingTrouble(Trouble):
    """The trainer failed for a reason of its own."""

    exit_code = Exit.TRAINING


class BudgetTrouble(Trouble):
    """The budget is used up; the compute is released."""

    exit_code = Exit.BUDGET


class Stopped(Trouble):
    """Somebody stopped the machine in the cloud; the state is kept."""

    exit_code = Exit.INTERRUPTED


EXIT_OF = {
    Outcome.DONE: Exit.DONE,
    Outcome.BAD_INPUT: Exit.USAGE,
    Outcome.CLOUD_REFUSED: Exit.CLOUD,
    Outcome.MACHINE_FAILED: Exit.HOST,
    Outcome.TRAINING_FAILED: Exit.TRAINING,
    Outcome.BUDGET_REACHED: Exit.BUDGET,
    Outcome.STOPPED_BY_USER: Exit.INTERRUPTED,
}
"""The exit code of a command whose run ended so."""

TROUBLE_OF: dict[Outcome, type[Trouble]] = {
    Outcome.BAD_INPUT: Usage,
    Outcome.CLOUD_REFUSED: CloudTrouble,
    Outcome.MACHINE_FAILED: HostTrouble,
    Outcome.TRAINING_FAILED: TrainingTrouble,
    Outcome.BUDGET_REACHED: BudgetTrouble,
    Outcome.STOPPED_BY_USER: Stopped,
}
