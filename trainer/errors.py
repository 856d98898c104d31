"""The ways in which a job ends other than well; each says what to do next, and has an exit code.

Preempted    75  the machine goes away; the state is saved, start again elsewhere
Busy         73  another trainer works here
OSError      74  the disk or the network failed; whole checkpoints stand
DataError    65  rows must change (defined in `rows.py`)
ConfigError  78  settings must change (defined in `config.py`)
├── DoesNotFit   even one sequence exceeds the device's memory
└── Diverged     the training left the finite numbers
"""

from __future__ import annotations

from trainer.config import ConfigError


class Preempted(Exception):  # noqa: N818 - an order from outside, not an error
    """The machine goes away: the state is whole and saved, or about to be."""


class Busy(Exception):  # noqa: N818 - says what is the case
    """Another trainer works in this run directory."""


class DoesNotFit(ConfigError):  # noqa: N818 - says what is the case
    """Even one sequence at a time does not fit into the memory of the device."""

    def __init__(self, message: str) -> None:
        super().__init__([message])


class Diverged(ConfigError):  # noqa: N818 - the training did, the program is fine
    """Too many steps in a row had no finite gradient; the message says what to try."""

    def __init__(self, message: str) -> None:
        super().__init__([message])
