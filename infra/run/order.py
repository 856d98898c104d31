"""What one machine of several is told to do with the others, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.offer import Offer
from infra.run.state import RunEnd, RunState


@dataclass(frozen=True, kw_only=True)
class Group:
    """The machines that train together until one of them is lost or another one joins."""

    number: int
    """From 1; each time that a group forms it gets the next one."""
    members: tuple[int, ...]
    """Their nodes, in the order of their ranks: the first has the newest state."""
    master: str = ""
    """The private address of the first."""

    def rank_of(self, node: int) -> int:
        """Return the place of a machine among the members. Raises ValueError if it has none."""
        return self.members.index(node)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `from_json`."""
        return {"number": self.number, "members": list(self.members), "master": self.master}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Group:
        """Rebuild a group that `to_json` wrote. Raises KeyError, TypeError for what it is not."""
        return cls(
            number=int(data["number"]),
            members=tuple(int(one) for one in data["members"]),
            master=str(data["master"]),
        )


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a machine is to do, as long as it holds; without any, it stays up and does not train."""

    group: Group | None = None
    """The group in which its trainer is to run; None: none may."""
    hold: str = ""
    """Why it may not bill compute for now; empty if it may."""
    leaves_place: bool = False
    """Whether it is removed while on hold, since there is no room for its mates where it is."""
    surplus: bool = False
    """Whether it is one more than the run is to have: it is removed, and its part of the run ends.
    """
    place: Offer | None = None
    """Where the run is: it is rented there or not at all. None: wherever the offers are best."""
    waits_for_place: bool = False
    """Whether it is rented only when another machine has found a place."""
    settles: bool = False
    """Whether nothing is begun with it any more, because the training is done."""
    leads: bool = False
    """Whether it brings the adapter home."""
    over: bool = False
    """Whether the run has reached its goal."""
    ending: RunEnd | None = None
    """How the run ends without having reached it; None if it goes on."""
    others: tuple[RunState, ...] = ()
    """The states of the other machines, which the budget counts, too."""
