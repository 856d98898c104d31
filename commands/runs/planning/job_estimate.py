"""What a whole job needs on one card: memory, and the hours of each of its parts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trainer.estimate.span import NOTHING, Span


@dataclass(frozen=True, kw_only=True)
class JobPart:
    """One part of a job, such as `train` or `send`, in the order in which they happen."""

    name: str
    hours: Span
    source: str = ""
    """Where the rate comes from, with its date, or that it is assumed."""
    measured: bool = False
    """Whether it was measured on runs of ours."""
    billed: bool = True
    """Whether a machine is rented meanwhile."""


@dataclass(frozen=True, kw_only=True)
class JobEstimate:
    """Memory and hours of a job on one card; what is not known is None, and `problem` says why."""

    card: str
    card_bytes: float
    memory_bytes: Span | None = None
    """The need on the card at the worst moment of a step, allocator and context included."""
    fits: bool | None = None
    micro_batch: int | None = None
    trained_tokens: float | None = None
    """Tokens of all steps together, prompts included."""
    parts: tuple[JobPart, ...] = ()
    problem: str = ""
    sharing: dict[str, Any] | None = None
    """How several cards share it (`trainer.estimate.cards.Sharing`); None of one."""
    step_s: float | None = None
    """Of a step of several cards; None of one."""
    nodes: int = 1
    """How many machines do it together."""
    idle_cards: str = ""
    """What to warn of where cards have nothing to do."""
    notes: tuple[str, ...] = ()
    """What the user should know of how the figures were found, each a sentence."""

    @property
    def hours(self) -> Span | None:
        """The hours of all parts; None if there are none."""
        return sum((part.hours for part in self.parts), NOTHING) if self.parts else None

    @property
    def billed_hours(self) -> Span | None:
        """The hours for which machines are rented, added up over all; None if there are none."""
        billed = [part.hours for part in self.parts if part.billed]
        return sum(billed, NOTHING) * self.nodes if self.parts else None

    @property
    def cards(self) -> int:
        """How many cards do it."""
        return 1 if self.sharing is None else int(self.sharing["cards"])

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with both sums."""
        hours, billed = self.hours, self.billed_hours
        values = asdict(self)
        if self.nodes == 1:
            del values["nodes"]
        if self.sharing is None:
            for name in ("sharing", "step_s", "idle_cards"):
                del values[name]
        return {
            **values,
            "hours": None if hours is None else hours.to_json(),
            "billed_hours": None if billed is None else billed.to_json(),
        }
