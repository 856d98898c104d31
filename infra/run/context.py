"""The dependencies of the supervisor, and the report that it sends at each turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infra.offer import Offer, Want
from infra.provider import Provider, VmSpec
from infra.run import actions as act
from infra.run.budget import Bill
from infra.run.decide import Seen
from infra.run.journal import Journal
from infra.run.nodes import NodeJournal
from infra.run.order import Order
from infra.run.state import RunState
from infra.run.workload import Workload


@dataclass(frozen=True, kw_only=True)
class TurnReport:
    """What the supervisor reports to the console at each turn."""

    state: RunState
    seen: Seen
    action: act.Action
    bill: Bill
    now_s: float
    warning: str = ""
    """What stands in the way of driving the run, as long as it does."""
    node: int | None = None
    """Which of several machines `seen` and `action` are of, while `state` and `bill` are of all."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The dependencies of the supervisor; nothing in it is global."""

    provider: Provider
    workload: Workload
    journal: Journal | NodeJournal
    make_spec: Callable[[Offer, int], VmSpec]
    """Offer and generation in, spec with that generation's keys out; same in, same out."""
    want: Want
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    on_turn: Callable[[TurnReport], None]
    order: Callable[[Sequence[Offer]], list[Offer]] = list
    """Offers as the provider lists them in, as they are to be tried out; may block some."""
    node: int = 0
    orders: Callable[[], Order] | None = None
    """What the machine is to do with the others now; None where the run has one machine."""
