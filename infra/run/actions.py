"""The actions that `decide.decide` returns and the supervisor carries out, as values."""

from __future__ import annotations

from dataclasses import dataclass

from infra.offer import Offer
from infra.provider import Observation
from infra.run.order import Group
from infra.run.state import RunEnd


@dataclass(frozen=True, kw_only=True)
class FindOffers:
    """Ask the provider what could be rented now."""


@dataclass(frozen=True, kw_only=True)
class Create:
    """Rent a machine."""

    offer: Offer
    generation: int


@dataclass(frozen=True, kw_only=True)
class Start:
    """Start the deallocated machine again."""

    running_since_s: float | None = None
    """Since when it bills already, seconds since 1970, if it runs although nobody here started it.
    """


@dataclass(frozen=True, kw_only=True)
class RecordStop:
    """Write down that the machine went down without our asking."""

    observation: Observation


@dataclass(frozen=True, kw_only=True)
class AbandonBoot:
    """Deallocate a machine that runs but does not answer, and count that."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Set the machine up and push data, code and the newest checkpoint to it."""


@dataclass(frozen=True, kw_only=True)
class ChangeHostKey:
    """Replace the host key, which others can read, by one that never leaves the machine."""


@dataclass(frozen=True, kw_only=True)
class SetSafeguards:
    """Set the safeguards that end the bill when everything of ours is dead."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Start the trainer, once."""

    group: Group | None = None
    """The machines that it trains with; None where a run has one machine."""


@dataclass(frozen=True, kw_only=True)
class LeaveGroup:
    """Let the trainer save and end, because its group does not go on as it is."""

    step: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class RecordExit:
    """Write down that the trainer ended by itself."""

    exit_code: int | None
    step: int
    crash: bool
    error: str = ""
    """Its last words, if every start would end with them; else empty."""


@dataclass(frozen=True, kw_only=True)
class StopHung:
    """Stop a trainer that no longer makes progress or writes heartbeats."""

    step: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class RehearseEviction:
    """Ask the provider to evict the machine now."""

    step: int


@dataclass(frozen=True, kw_only=True)
class RecordTrained:
    """Write down that the training is complete, and whether it is bit for bit."""

    exact: bool = True
    inexact_from: int | None = None
    """The first step that other hardware or versions computed."""


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Copy the adapter to this computer, verified."""


@dataclass(frozen=True, kw_only=True)
class Deallocate:
    """Release the compute, keep the disk."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Replace:
    """Bring the newest checkpoint home and remove the machine, to rent another one."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Delete:
    """Remove everything of the run from the cloud; one of several machines removes itself only."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Look again later."""

    wait_s: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Finish:
    """End the run: its goal is reached, or cannot be."""

    ending: RunEnd


Action = (
    FindOffers
    | Create
    | Start
    | RecordStop
    | AbandonBoot
    | ChangeHostKey
    | Prepare
    | SetSafeguards
    | Launch
    | LeaveGroup
    | RecordExit
    | StopHung
    | RehearseEviction
    | RecordTrained
    | Fetch
    | Deallocate
    | Delete
    | Replace
    | Wait
    | Finish
)
