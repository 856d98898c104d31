"""Decides which machines of a run train together, and when none of them may bill: pure.

    decide_group(views, memory, plan, now_s) -> GroupDecision

What each machine does within that is `decide_node`'s. The order of the rules is that of somebody
careful with money: what ends the run ends all of it, what is done goes home, then the machines that
are there train, and those that wait for others too long are released.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from infra.run.journal import Kind, Outcome
from infra.run.order import Group, Order
from infra.run.place import place_of
from infra.run.plan import Goal, RunPlan
from infra.run.state import RunEnd, RunState

GROUPS_IN_VAIN_MAX = 5
"""How many groups in a row may end without a step before the run does."""
HOLD_S_MAX = 3600.0
"""How long machines that are too few stay released at most, before they are tried again."""
ENDS_ALL = {
    Outcome.BAD_INPUT,
    Outcome.TRAINING_FAILED,
    Outcome.BUDGET_REACHED,
    Outcome.STOPPED_BY_USER,
}
"""Endings of one machine that would be those of every other one, too."""


@dataclass(frozen=True, kw_only=True)
class NodeView:
    """What is known of one machine, for the decision about all of them."""

    node: int
    state: RunState
    unreachable: bool = False
    """Whether it did not answer at the last look."""
    leaving: bool = False
    """Whether its trainer saved at the last look, because the machine is about to be taken."""
    ending: RunEnd | None = None
    """How its part of the run ended; None if it goes on."""

    @property
    def is_ready(self) -> bool:
        """Whether it could train now, were its trainer started."""
        found = self.state
        private = found.vm.private_host if found.vm is not None else ""
        return self.answers and found.prepared and bool(private) and not self.leaving

    @property
    def answers(self) -> bool:
        """Whether it is up, and answered at the last look."""
        return self.ending is None and self.state.up and not self.unreachable

    @property
    def is_coming(self) -> bool:
        """Whether it is asked for or boots, and will be ready soon."""
        requested = self.state.pending in {Kind.CREATE_INTENDED, Kind.START_INTENDED}
        starting = self.state.up and not self.state.prepared
        return self.ending is None and (requested or starting) and not self.leaving

    @property
    def trains(self) -> bool:
        """Whether its trainer runs, or is being started."""
        state = self.state
        started = state.launched or state.pending is Kind.LAUNCH_INTENDED
        return state.up and started and not self.leaving


@dataclass(frozen=True, kw_only=True)
class GroupMemory:
    """What the decisions before have left for the next; lost with the process, at no harm."""

    group: Group | None = None
    """The group that trains."""
    ended: int = 0
    """The number of the last group that was told to end; its trainers may still be at it."""
    formed_s: float = 0.0
    """When it formed."""
    survivors: frozenset[tuple[int, int]] = frozenset()
    """Who of that group was still there: the machines, each with the number of its boot."""
    gathering_since_s: float | None = None
    """Since when enough machines are ready and wait for another."""
    short_since_s: float | None = None
    """Since when machines bill that are too few to train."""
    held: frozenset[int] = frozenset()
    """Those that were released for that, until enough others can be had."""
    held_since_s: float = 0.0
    """When the last of them was put on hold."""
    step: int = 0
    """The furthest step when a group last ended."""
    groups_in_vain: int = 0
    """Groups in a row that ended without a new step, though none of their machines went down."""
    tries: int = 0
    """How often they were let go again since a group last formed."""
    leaves_place: bool = False
    """Whether they are removed, because there is no room for enough of them where they were."""
    moves: int = 0
    """How many places in a row had no room for enough of them."""


@dataclass(frozen=True, kw_only=True)
class GroupDecision:
    """The order of every machine, and what the next decision needs."""

    orders: tuple[Order, ...]
    memory: GroupMemory


def decide_group(
    views: Sequence[NodeView], memory: GroupMemory, plan: RunPlan, now_s: float
) -> GroupDecision:
    """Return what each machine is to do now; `views` has one of each node, in their order."""
    if _is_reached(views, plan):
        return _all(views, memory, Order(over=True))
    ending = _ending_of_all(views, plan) or _ending_in_vain(memory)
    if ending is not None:
        return _all(views, memory, Order(ending=ending))
    free = _free_orders(views, plan)
    lasts = plan.goal is Goal.FETCH  # it is not trained anew, so whoever has it is started
    trained = next(
        (one for one in views if one.state.trained and (one.state.up or (lasts and one.state.vm))),
        None,
    )
    if trained is not None or plan.goal is Goal.FETCH:
        leader = trained or _leader(views)
        free = [replace(one, settles=True) for one in free]
        free[leader.node] = Order(leads=True)
        return _decision(views, free, replace(memory, group=None))
    memory = _with_hold(views, memory, plan, now_s)
    if plan.goal is Goal.UP:
        ready, memory = _gathered(views, memory, plan, now_s)
        if ready:
            return _all(views, memory, Order(over=True))
    else:
        memory = _with_group(views, memory, plan, now_s)
    return _decision(views, [_ordered(one, memory, plan) for one in _pairs(views, free)], memory)


def _free_orders(views: Sequence[NodeView], plan: RunPlan) -> list[Order]:
    """Return what each machine may do by itself: be where the others are, and wait to train."""
    first = next((one.node for one in views if one.ending is None), 0)
    orders = []
    for view in views:
        place = place_of([one.state for one in views if one.node != view.node])
        if view.node >= plan.nodes:
            reason = f"run.yaml asks for {plan.nodes} machines (vm.nodes)"
            orders.append(Order(hold=reason, leaves_place=True, surplus=True))
            continue
        waits = place is None and view.node != first and view.state.vm is None
        orders.append(Order(place=place, waits_for_place=waits))
    return orders


def _pairs(views: Sequence[NodeView], orders: Sequence[Order]) -> list[tuple[NodeView, Order]]:
    return list(zip(views, orders, strict=True))


def _ordered(pair: tuple[NodeView, Order], memory: GroupMemory, plan: RunPlan) -> Order:
    """Return the order of a machine with its group, or with why it is on hold."""
    view, order = pair
    if order.hold:
        return order
    if view.node in memory.held:
        reason = f"fewer than {plan.nodes_min} machines (vm.nodes_min) can be had"
        return replace(order, hold=reason, leaves_place=memory.leaves_place)
    group = memory.group
    member = group is not None and view.node in group.members
    return replace(order, group=group if member else None)


def _decision(
    views: Sequence[NodeView], orders: Sequence[Order], memory: GroupMemory
) -> GroupDecision:
    """Return the orders, each with the states of the other machines."""
    return GroupDecision(
        orders=tuple(
            replace(order, others=tuple(one.state for one in views if one.node != view.node))
            for view, order in _pairs(views, orders)
        ),
        memory=memory,
    )


def _all(views: Sequence[NodeView], memory: GroupMemory, order: Order) -> GroupDecision:
    return _decision(views, [order for _ in views], replace(memory, group=None))


def _ending_of_all(views: Sequence[NodeView], plan: RunPlan) -> RunEnd | None:
    """Return how the whole run ends because of how the part of a machine did; None if it goes on.

    One that cannot be had or does not answer ends the run only if the others are too few.
    """
    ends = [one.ending for one in views if one.ending is not None]
    for ending in ends:
        if ending.outcome in ENDS_ALL:
            return ending
    failed = [one for one in ends if one.outcome is not Outcome.DONE]
    wanted = [one.ending for one in views[: plan.nodes]]
    left = sum(1 for one in wanted if one is None or one.outcome is Outcome.DONE)
    return failed[0] if failed and left < plan.nodes_min else None


def _ending_in_vain(memory: GroupMemory) -> RunEnd | None:
    """Return the end of a run whose groups form again and again and train nothing."""
    if memory.groups_in_vain < GROUPS_IN_VAIN_MAX:
        return None
    reason = (
        f"the machines found each other in none of {memory.groups_in_vain} tries, or lost each"
        " other before a step: a firewall between their private addresses, such as one that the"
        " image brings, may block their ports; `vm.nodes: 1` trains without them"
    )
    return RunEnd(outcome=Outcome.TRAINING_FAILED, reason=reason)


def _is_reached(views: Sequence[NodeView], plan: RunPlan) -> bool:
    """Whether the goal is reached by one machine for all."""
    if plan.goal is Goal.TRAIN:
        return any(one.state.trained for one in views)
    return any(one.state.fetched for one in views)


def _leader(views: Sequence[NodeView]) -> NodeView:
    """Return the machine that has the results, if any has: the first of the newest group."""
    members = max((one.state for one in views), key=lambda state: state.group).members
    if members and members[0] < len(views) and views[members[0]].state.vm is not None:
        return views[members[0]]
    return max(views, key=lambda one: (one.state.vm is not None, one.state.disk_step))


# ---- the group ----


def _with_group(
    views: Sequence[NodeView], memory: GroupMemory, plan: RunPlan, now_s: float
) -> GroupMemory:
    """Return the memory with the group that is to train now; None while it forms anew."""
    group = memory.group if memory.group is not None else _running(views, after=memory.ended)
    if group is not None:
        if memory.group is None:
            memory = replace(memory, group=group, formed_s=now_s)
        lost = any(not _goes_on(views[node], group) for node in group.members)
        grows = now_s - memory.formed_s >= plan.policy.regroup_every_s and any(
            one.is_ready and one.node not in group.members and one.node < plan.nodes
            for one in views
        )
        if not lost and not grows:
            return memory
        there = [views[node] for node in group.members if views[node].answers]
        survivors = frozenset((one.node, one.state.starts) for one in there if not one.leaving)
        step = max(one.state.step for one in views)
        vain = lost and step <= memory.step and len(there) == len(group.members)
        return replace(
            memory,
            group=None,
            ended=group.number,
            survivors=survivors,
            step=step,
            groups_in_vain=memory.groups_in_vain + 1 if vain else 0,
        )
    if any(one.answers and one.trains for one in views):
        return memory  # they save and end first
    ready, memory = _gathered(views, memory, plan, now_s)
    if not ready:
        return memory
    number = 1 + max(memory.ended, *(one.state.group for one in views))
    return replace(memory, group=_form(ready, number=number), formed_s=now_s, moves=0, tries=0)


def _gathered(
    views: Sequence[NodeView], memory: GroupMemory, plan: RunPlan, now_s: float
) -> tuple[list[NodeView], GroupMemory]:
    """Return the machines that are ready if they are enough, and not while another one comes.

    Those that have just trained do not wait: whoever comes joins them later.
    """
    ready = [one for one in views if one.is_ready and one.node < plan.nodes]
    if len(ready) < plan.nodes_min:
        return [], replace(memory, gathering_since_s=None)
    since_s = now_s if memory.gathering_since_s is None else memory.gathering_since_s
    coming = any(one.is_coming and one.node < plan.nodes for one in views)
    trained = any((one.node, one.state.starts) in memory.survivors for one in ready)
    if coming and not trained and now_s - since_s < plan.policy.gather_s:
        return [], replace(memory, gathering_since_s=since_s)
    return ready, replace(memory, gathering_since_s=None)


def _form(ready: Sequence[NodeView], *, number: int) -> Group:
    """Put the machine with the newest state first: the others get theirs from it."""
    order = sorted(ready, key=lambda one: (-one.state.disk_step, one.node))
    master = order[0].state.vm
    return Group(
        number=number,
        members=tuple(one.node for one in order),
        master=master.private_host if master is not None else "",
    )


def _running(views: Sequence[NodeView], *, after: int) -> Group | None:
    """Return the newest group that a trainer still is in, as after a restart of this process."""
    training = [
        one.state for one in views if one.trains and one.answers and one.state.group > after
    ]
    if not training:
        return None
    newest = max(training, key=lambda state: state.group)
    first = views[newest.members[0]].state.vm
    master = first.private_host if first is not None else ""
    return Group(number=newest.group, members=newest.members, master=master)


def _goes_on(view: NodeView, group: Group) -> bool:
    """Whether a member trains in that group, or is about to.

    One that does not answer may train all the same; if not, its mates leave and say so.
    """
    if view.ending is not None or not view.state.up:
        return False
    if view.state.group_done == group.number:
        return True
    return view.trains if view.state.group == group.number else view.state.group < group.number


# ---- machines that bill while they are too few ----


def _with_hold(
    views: Sequence[NodeView], memory: GroupMemory, plan: RunPlan, now_s: float
) -> GroupMemory:
    """Return the memory with who is released, because too few can be had for too long."""
    wanted = [one for one in views if one.node < plan.nodes and one.ending is None]
    ready = {one.node for one in wanted if one.is_ready}
    held, free = memory.held, memory.held
    if held:
        waited = now_s - memory.held_since_s >= _pause_s(memory, plan)
        all_held = {one.node for one in wanted} <= held
        enough = len(held | ready) >= plan.nodes_min and bool(ready - held)
        back = (enough and (waited or not memory.tries)) or (all_held and waited)
        free = held if waited or not memory.tries else frozenset()
        emptied = memory.leaves_place and all(views[node].state.vm is None for node in held)
        if back or emptied:
            moves = memory.moves + emptied
            return replace(
                memory,
                held=frozenset(),
                leaves_place=False,
                short_since_s=None,
                moves=moves,
                tries=memory.tries + 1,
            )
    billing = {one.node for one in wanted if one.state.up} - held
    if len(ready - held) >= plan.nodes_min or not billing:
        memory = replace(memory, short_since_s=None)
        missing = [one for one in wanted if one.node not in held]
        kept = [one.state for one in _kept(wanted)]
        full = _is_refused(missing, wanted) if held else _is_full(kept, plan)
        if billing or not plan.several_places or not full:
            return memory
        return _held(views, memory, held, now_s, leaves=True)
    if memory.short_since_s is None:
        return replace(memory, short_since_s=now_s)
    coming = {one.node for one in wanted if one.is_coming}
    quick = memory.moves or memory.tries  # it has been tried for long before
    most_s = plan.policy.gather_s if quick else plan.policy.short_max_s
    if len(ready | coming | free) >= plan.nodes_min or now_s - memory.short_since_s < most_s:
        return memory
    found = {one.node for one in wanted if one.answers}
    if not found - held:
        return memory
    leaves = plan.several_places and _is_refused(wanted, wanted)
    return _held(views, memory, held | found, now_s, leaves=leaves)


def _pause_s(memory: GroupMemory, plan: RunPlan) -> float:
    """Return for how long machines stay on hold: twice as long each time that it was in vain."""
    return float(min(plan.policy.short_max_s * 2.0 ** min(memory.tries, 10), HOLD_S_MAX))


def _held(
    views: Sequence[NodeView],
    memory: GroupMemory,
    held: frozenset[int] | set[int],
    now_s: float,
    *,
    leaves: bool,
) -> GroupMemory:
    """Return the memory with those on hold: all that have a machine, if they leave their place."""
    leaves = leaves or memory.leaves_place
    kept = [one.node for one in _kept(views)] if leaves else []
    return replace(memory, held=frozenset((*held, *kept)), held_since_s=now_s, leaves_place=leaves)


def _is_refused(missing: Sequence[NodeView], wanted: Sequence[NodeView]) -> bool:
    """Whether a machine that is not there was last refused where the others are."""
    place = place_of([one.state for one in wanted])
    return place is not None and any(
        refusal.rules_out(place) and refusal.at_s >= one.state.vm_started_s
        for one in missing
        if not one.state.up
        for refusal in one.state.refusals
    )


def _kept(views: Sequence[NodeView]) -> list[NodeView]:
    """Return those that have a machine, up or down."""
    return [one for one in views if one.state.vm is not None and one.ending is None]


def _is_full(kept: Sequence[RunState], plan: RunPlan) -> bool:
    """Whether no machine that is down can be started where they all are.

    One whose disk is ahead of the checkpoint at home is tried more often.
    """
    tries = plan.policy.start_attempts_max
    return bool(kept) and all(
        one.start_failures >= (tries if one.disk_step > one.home_step else 1) for one in kept
    )
