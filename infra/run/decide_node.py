"""Decides the next action of one machine of several: as if it were alone, within its order.

    decide_node(state, seen, order, plan, now_s) -> Action

What a machine costs, how it is rented, set up and brought back is decided for each of them as for
the machine of a run that has one. Its order says when its trainer may run and with whom, and when
it may not bill.
"""

from __future__ import annotations

from infra.provider import PowerState
from infra.run.actions import (
    Action,
    ChangeHostKey,
    Create,
    Deallocate,
    Delete,
    Fetch,
    FindOffers,
    Finish,
    Launch,
    LeaveGroup,
    Prepare,
    RecordExit,
    RecordStop,
    Replace,
    SetSafeguards,
    Start,
    Wait,
)
from infra.run.decide import Seen, decide, is_up
from infra.run.journal import Kind, Outcome
from infra.run.order import Order
from infra.run.plan import Goal, RunPlan
from infra.run.state import RunEnd, RunState
from infra.run.workload import JobPhase

WORK = (ChangeHostKey, Fetch, Launch, Prepare, SetSafeguards, Wait)
"""What a machine does while it bills, and what it does not do any more when it is put on hold."""
BEGIN = (Create, FindOffers, Launch, Prepare, Start)
"""What begins something with a machine."""


def decide_node(state: RunState, seen: Seen, order: Order, plan: RunPlan, now_s: float) -> Action:
    """Return the next action of a machine that has `order`."""
    action = decide(state, seen, plan, now_s)
    if isinstance(action, RecordStop):
        return action
    if order.ending is not None:
        return _end(state, seen, plan, order.ending)
    if order.over:
        return _wind_down(state, plan)
    if state.fetched or (plan.goal is Goal.TRAIN and state.trained):
        return Wait(wait_s=plan.policy.poll_s, reason="done; the other machines finish")
    if order.hold:
        return _hold(state, seen, order, action, plan)
    requested = state.pending is Kind.CREATE_INTENDED  # what was asked for may exist
    begins = isinstance(action, BEGIN) and not (requested and isinstance(action, Create))
    if order.settles and begins:
        return Wait(wait_s=plan.policy.poll_s, reason="the training is done")
    if order.waits_for_place and begins and isinstance(action, FindOffers | Create):
        return Wait(wait_s=plan.policy.poll_s, reason="another machine finds a place first")
    if isinstance(action, Fetch) and not order.leads:
        return Wait(wait_s=plan.policy.poll_s, reason="another machine brings the adapter home")
    if isinstance(action, Finish) and action.ending.outcome is Outcome.DONE:
        return Wait(wait_s=plan.policy.poll_s, reason="ready; it waits for the other machines")
    if isinstance(action, Launch):
        return _launch(state, seen, order, plan)
    if isinstance(action, Wait) and _runs_outside(state, seen, order):
        return LeaveGroup(step=_step(seen), reason="the group forms anew")
    return action


def _end(state: RunState, seen: Seen, plan: RunPlan, ending: RunEnd) -> Action:
    """End the part of a machine; what nobody has on record as billing is released first."""
    if state.pending in {Kind.CREATE_INTENDED, Kind.DELETE_INTENDED}:
        return Delete(reason=ending.reason)
    bills = seen.machine is not None and seen.machine.power.bills_compute
    if bills and plan.rents and not state.up and not ending.keeps_machine:
        return Deallocate(reason=ending.reason)
    return Finish(ending=ending)


def _wind_down(state: RunState, plan: RunPlan) -> Action:
    """End what is left of a machine whose run has reached its goal."""
    rented = state.vm is not None or state.pending is not None
    if plan.goal is Goal.RUN and rented and not state.deleted:
        return Delete(reason="the adapter is home")
    if state.pending in {Kind.CREATE_INTENDED, Kind.DELETE_INTENDED}:
        return Delete(reason="what was asked for may exist, and is not needed any more")
    return Finish(ending=RunEnd(outcome=Outcome.DONE, reason="done"))


def _hold(state: RunState, seen: Seen, order: Order, action: Action, plan: RunPlan) -> Action:
    """Release a machine that may not bill, and begin nothing with one that does not."""
    if order.surplus and state.vm is None and state.pending is None:
        return Finish(ending=RunEnd(outcome=Outcome.DONE, reason=order.hold))
    if seen.machine is not None and is_up(seen.machine) and isinstance(action, WORK):
        if order.leaves_place:
            return Replace(reason=order.hold)
        return Deallocate(reason=order.hold)
    begins = isinstance(action, Start | FindOffers) or (
        isinstance(action, Create) and state.pending is not Kind.CREATE_INTENDED
    )
    rests = isinstance(action, Start | FindOffers | Wait)
    if order.leaves_place and state.vm is not None and rests:
        return Delete(reason=order.hold)
    if begins and not (seen.machine is not None and is_up(seen.machine)):
        return Wait(wait_s=plan.policy.poll_s, reason=order.hold)
    return action


def _launch(state: RunState, seen: Seen, order: Order, plan: RunPlan) -> Action:
    """Start the trainer in the group that the order names, once; else wait."""
    runs = seen.job is not None and seen.job.phase is JobPhase.RUNNING
    group = order.group
    if runs and (group is None or group.number != state.group):
        return LeaveGroup(step=_step(seen), reason="the group forms anew")
    pending = state.pending is Kind.LAUNCH_INTENDED
    if pending and (group is None or group.number != state.group):  # it came to nothing
        return RecordExit(exit_code=None, step=_step(seen), crash=False)
    if group is None or (group.number <= state.group and not (pending or runs)):
        return Wait(wait_s=plan.policy.poll_s, reason="ready; it waits for the other machines")
    return Launch(group=group)


def _runs_outside(state: RunState, seen: Seen, order: Order) -> bool:
    """Whether its trainer runs in a group that does not train any more."""
    runs = seen.job is not None and seen.job.phase is JobPhase.RUNNING
    up = seen.machine is not None and seen.machine.power is PowerState.RUNNING
    number = 0 if order.group is None else order.group.number
    return runs and up and state.launched and number != state.group


def _step(seen: Seen) -> int:
    return seen.job.step if seen.job is not None else 0
