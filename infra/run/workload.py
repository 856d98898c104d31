"""What the supervisor needs done on a machine, stated by this room so that it knows no SSH."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from infra.provider import Vm
from infra.run.heartbeat import SILENCE, Heartbeat


class JobPhase(StrEnum):
    """What the supervisor must know of the trainer's process."""

    ABSENT = "absent"
    RUNNING = "running"
    EXITED = "exited"


class JobOutcome(StrEnum):
    """How the trainer's process ended, as far as its exit code says."""

    DONE = "done"
    PREEMPTED = "preempted"
    """It saved its state because the machine is about to be taken."""
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
    step: int = 0
    steps: int = 0
    stalled_s: float = 0.0
    """Seconds without any sign of progress, measured by whoever watches."""
    silent_s: float = 0.0
    """Seconds without a heartbeat."""
    heartbeat: Heartbeat = SILENCE
    """What the trainer says of itself."""


class Workload(Protocol):
    """What happens on the machine; the door hands it in, so that this room knows no SSH.

    Methods raise `HostUnreachable` when the machine does not answer, `HostNotTrusted` when it is
    not who it claims to be, `HostUnfit` when the work cannot be done there. All may be repeated.
    """

    def connect(self, vm: Vm) -> None:
        """Make sure that the machine answers; quick when it does."""
        ...

    def prepare(self, vm: Vm) -> None:
        """Make the machine trainable and bring data, code and the newest checkpoint to it."""
        ...

    def set_time_limit(self, vm: Vm, left_s: float) -> None:
        """Tell the machine how many seconds its budget lasts from now, for its own watchdog.

        Not when it ends: the clock of this computer may be wrong by hours.
        """
        ...

    def launch(self, vm: Vm) -> None:
        """Start the trainer unless it runs: never two."""
        ...

    def job_status(self, vm: Vm) -> JobView:
        """Look at the trainer once."""
        ...

    def stop(self, vm: Vm) -> None:
        """End the trainer, letting it save first if it still can."""
        ...

    def save_and_pull(self, vm: Vm) -> None:
        """End the trainer and bring its newest checkpoint home, before the machine goes."""
        ...

    def fetch(self, vm: Vm) -> str:
        """Bring the results home, verified; return where they lie."""
        ...

    def clear(self, vm: Vm) -> None:
        """Remove what the run left on a machine that stays the user's."""
        ...

    def home_step(self) -> int:
        """Step of the newest verified checkpoint at home; 0 if there is none."""
        ...

    def disconnect(self) -> None:
        """Drop connections to a machine that went down."""
        ...


class HostUnreachable(Exception):  # noqa: N818  (the seam's vocabulary)
    """The machine does not answer over SSH (yet). Next: wait, then look at the provider."""


class HostNotTrusted(Exception):  # noqa: N818
    """The machine is not who it claims to be, or offered something illegal. Next: stop."""


class HostUnfit(Exception):  # noqa: N818
    """The machine answers but cannot do the work (disk full, no driver). Next: a human."""
