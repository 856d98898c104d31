"""The seam to what happens on a machine, stated here so that `infra` knows no SSH."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from infra.provider import Vm
from infra.run.heartbeat import SILENCE, Heartbeat
from infra.run.order import Group


class JobPhase(StrEnum):
    """The phases of the trainer's process."""

    ABSENT = "absent"
    RUNNING = "running"
    EXITED = "exited"


class JobOutcome(StrEnum):
    """How the trainer's process ended, by its exit code."""

    DONE = "done"
    PREEMPTED = "preempted"
    """It saved its state because the machine is about to be taken."""
    LEFT = "left"
    """It saved its state and left because another machine of its group was lost."""
    DONE_ELSEWHERE = "done elsewhere"
    """Its group is done; the results are on another of the machines."""
    BAD_INPUT = "bad input"
    """It refused the data or the config: starting it again would end the same way."""
    CRASHED = "crashed"
    """Anything else, also where no exit code was left."""


@dataclass(frozen=True, kw_only=True)
class JobView:
    """One look at the job on the machine."""

    phase: JobPhase
    outcome: JobOutcome | None = None
    """How it ended; None while it has not."""
    exit_code: int | None = None
    """None if it is not over, or was killed before it could leave one."""
    error: str = ""
    """The last words of one that failed by itself; empty if another start may end otherwise."""
    eviction_announced: bool = False
    """Whether it ended because the vendor announced that it takes the machine."""
    step: int = 0
    steps: int = 0
    stalled_s: float = 0.0
    """Seconds without any sign of progress, measured by whoever watches."""
    silent_s: float = 0.0
    """Seconds without a heartbeat."""
    heartbeat: Heartbeat = SILENCE
    """What the trainer last wrote into `status.json`."""


class Workload(Protocol):
    """Prepares a machine and runs the trainer on it; `commands` hands the implementation in.

    Methods raise `HostUnreachable` when the machine does not answer, `HostNotTrusted` when it is
    not who it claims to be, `HostUnfit` when the work cannot be done there. All may be repeated.
    """

    def connect(self, vm: Vm) -> None:
        """Connect to the machine; quick when it is connected."""
        ...

    def make_host_key(self, vm: Vm) -> str:
        """Make a new host key on the machine, unless there is one; return its public line.

        It is not in use yet, unless it is the one that `vm` names as the next.
        """
        ...

    def use_host_key(self, vm: Vm, public_key: str) -> None:
        """Put that key into use; return when the machine presents it."""
        ...

    def prepare(self, vm: Vm) -> float | None:
        """Set the machine up and push data, code and the newest checkpoint to it.

        Return how many seconds the pushing took; None if nothing was pushed.
        """
        ...

    def set_time_limit(self, vm: Vm, left_s: float) -> None:
        """Set how many seconds the budget lasts from now, for the self-release on the machine.

        Not when it ends: the clock of this computer may be wrong by hours.
        """
        ...

    def launch(self, vm: Vm, group: Group | None = None) -> None:
        """Start the trainer unless it runs: never two. One of several machines joins `group`."""
        ...

    def job_status(self, vm: Vm) -> JobView:
        """Return the state of the trainer."""
        ...

    def stop(self, vm: Vm) -> None:
        """End the trainer, letting it save first if it still can."""
        ...

    def save_and_pull(self, vm: Vm) -> None:
        """End the trainer and pull its newest checkpoint, before the machine goes."""
        ...

    def fetch(self, vm: Vm) -> str:
        """Pull the results, verified; return where they lie."""
        ...

    def clear(self, vm: Vm) -> None:
        """Remove what the run left on a machine that stays the user's."""
        ...

    def home_step(self) -> int:
        """Return the step of the newest verified copy of a checkpoint here; 0 if there is none."""
        ...

    def disconnect(self) -> None:
        """Close connections to a machine that went down."""
        ...


class HostUnreachable(Exception):  # noqa: N818  (the seam's vocabulary)
    """The machine does not answer over SSH (yet). Next: wait, then look at the provider."""


class HostNotTrusted(Exception):  # noqa: N818
    """The machine is not who it claims to be, or offered something illegal. Next: stop."""


class HostUnfit(Exception):  # noqa: N818
    """The machine answers but cannot do the work (disk full, no driver). Next: a human."""
