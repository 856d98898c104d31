"""Drives the machines of a run with several: a supervisor for each, and one rule above them.

Each machine is driven in a thread of its own by `Supervisor`, over its own events of the journal.
This file holds no policy (that is `decide_group`) and no memory that matters: killed at any point,
a new one over the same journal goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from infra.errors import ProviderError
from infra.run.budget import bill
from infra.run.context import RunContext, TurnReport
from infra.run.decide_group import GroupMemory, NodeView, decide_group
from infra.run.journal import Journal, Kind, Outcome
from infra.run.nodes import NodeJournal, is_removed_whole, together
from infra.run.order import Order
from infra.run.plan import RunPlan
from infra.run.state import RunEnd, RunState
from infra.run.supervisor import Supervisor

LOOK_EVERY_S = 1.0
"""How often the rule for all is asked, at most."""


class Stopped(BaseException):
    """The run is let go of: the thread of a machine ends where it is, as if it had been killed."""


@dataclass(frozen=True, kw_only=True)
class GroupContext:
    """The dependencies of the group supervisor; nothing in it is global."""

    journal: Journal
    make_node: Callable[[int, NodeJournal], RunContext]
    """Makes what the supervisor of a machine works with, with a provider and a workload of its own;
    `orders` and `on_turn` in it are replaced."""
    on_turn: Callable[[TurnReport], None]
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    start: Callable[[Callable[[], None], str], None] = field(
        default=lambda run, name: threading.Thread(target=run, name=name, daemon=True).start()
    )
    """Runs a function, named, beside the caller."""


@dataclass(kw_only=True)
class _Node:
    """One machine as its thread leaves it for the others to see."""

    supervisor: Supervisor
    context: RunContext
    journal: NodeJournal
    order: Order = field(default_factory=Order)
    ending: RunEnd | None = None
    error: BaseException | None = None


class GroupSupervisor:
    """Drives one run with several machines. The caller holds the run's lock."""

    def __init__(self, context: GroupContext, *, count: int) -> None:
        self._context = context
        self._append_lock = threading.Lock()
        self._report_lock = threading.Lock()
        self._stopped = threading.Event()
        self._nodes = [self._make(number) for number in range(count)]
        self._memory = GroupMemory()

    @property
    def state(self) -> RunState:
        """The states of all machines as one, up to date with the journal."""
        return together([one.supervisor.state for one in self._nodes])

    def run(self, plan: RunPlan) -> RunEnd:
        """Drive all machines until the goal is reached or cannot be; return how it ended.

        Raises ProviderError as `Supervisor.run` does, when every other machine has been released.
        """
        self._decide(plan)
        try:
            for number in range(len(self._nodes)):
                self._context.start(self._thread_of(number, plan), f"node {number}")
            while any(one.ending is None for one in self._nodes):
                self._raise_bugs()
                self._decide(plan)
                self._context.sleep(min(LOOK_EVERY_S, plan.policy.poll_s))
            self._raise_bugs()
            self._remove_rest(plan)
        finally:
            self._stop()
        return self._end(plan)

    def _make(self, number: int) -> _Node:
        """Wire one machine: what it sees of the run, and what it is told."""
        journal = NodeJournal(self._context.journal, number, self._append_lock)
        made = self._context.make_node(number, journal)
        context = replace(
            made,
            journal=journal,
            node=number,
            orders=lambda: self._nodes[number].order,
            on_turn=lambda turn: self._report(number, turn),
            sleep=lambda seconds: self._sleep(made, seconds),
        )
        return _Node(supervisor=Supervisor(context), context=context, journal=journal)

    def _sleep(self, context: RunContext, seconds: float) -> None:
        """Sleep as the machine's own context does, and end its thread if the run is let go of."""
        if self._stopped.is_set():
            raise Stopped
        context.sleep(seconds)
        if self._stopped.is_set():
            raise Stopped

    def _thread_of(self, number: int, plan: RunPlan) -> Callable[[], None]:
        """Return what the thread of a machine does: its part of the run, and how that ended."""
        node = self._nodes[number]
        # The rehearsals are shared out: never two machines at the same step.
        shared = plan.rehearse_evictions[number :: len(self._nodes)]
        mine = tuple(step for step in shared if step not in self.state.rehearsed)
        own = replace(plan, rehearse_evictions=mine)

        def run_node() -> None:
            try:
                node.ending = node.supervisor.run(own)
            except Stopped:
                return
            except ProviderError as error:  # raised in the end, if the run fails for it
                node.error = error
                node.ending = RunEnd(outcome=Outcome.CLOUD_REFUSED, reason=str(error))
            except BaseException as error:  # noqa: BLE001  (handed to the thread that waits)
                node.error = error

        return run_node

    def _raise_bugs(self) -> None:
        """Raise here what no rule expected in the thread of a machine."""
        for node in self._nodes:
            if node.error is not None and not isinstance(node.error, ProviderError):
                raise node.error

    def _decide(self, plan: RunPlan) -> None:
        """Ask the rule for all, and hand each machine its order."""
        views = [
            NodeView(
                node=number,
                state=one.supervisor.state,
                unreachable=bool(one.supervisor.unreachable),
                leaving=one.supervisor.leaving,
                ending=one.ending,
            )
            for number, one in enumerate(self._nodes)
        ]
        decision = decide_group(views, self._memory, plan, self._context.clock())
        self._memory = decision.memory
        for node, order in zip(self._nodes, decision.orders, strict=True):
            node.order = order

    def _report(self, number: int, turn: TurnReport) -> None:
        """Report a turn of one machine, with the state and the bill of all."""
        if self._stopped.is_set():
            raise Stopped
        states = [one.supervisor.state for one in self._nodes]
        states[number] = turn.state
        whole = together(states)
        with self._report_lock:
            self._context.on_turn(
                replace(turn, state=whole, bill=bill(whole, turn.now_s), node=number)
            )

    def _remove_rest(self, plan: RunPlan) -> None:
        """Remove what the machines of the run shared, where none of them is left."""
        states = [one.supervisor.state for one in self._nodes]
        left = any(one.vm is not None or one.pending is not None for one in states)
        if plan.rents and not left and not is_removed_whole(self._context.journal.events):
            self._nodes[0].supervisor.remove_run("none of its machines is left")

    def _stop(self) -> None:
        """Let go of the run: no thread writes or begins anything any more."""
        self._stopped.set()
        for node in self._nodes:
            node.journal.close()
        for node in self._nodes:
            node.context.workload.disconnect()

    def _end(self, plan: RunPlan) -> RunEnd:
        """Record how the whole run ended. Raises the error of a machine that it failed for."""
        wanted = self._nodes[: plan.nodes]
        endings = [one.ending for one in wanted if one.ending is not None]
        ending = _ending_of(endings, plan)
        if ending.outcome is not Outcome.DONE:
            for node in self._nodes:
                if node.error is not None and node.ending == ending:
                    raise node.error
        self._context.journal.append(
            Kind.RUN_ENDED, code=ending.outcome.value, reason=ending.reason
        )
        return ending


def _ending_of(endings: Sequence[RunEnd], plan: RunPlan) -> RunEnd:
    """Return the ending of the run: well if enough machines ended well, else the first failure."""
    well = [one for one in endings if one.outcome is Outcome.DONE]
    if len(well) >= min(plan.nodes_min, plan.nodes):
        return well[0]
    return next(one for one in endings if one.outcome is not Outcome.DONE)
