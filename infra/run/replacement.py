"""Decides whether a run needs another machine, for terms that its own cannot get any more: pure.

A provider may fix a machine's price cap and the end of its request when it is made. A run whose
user asks for another cap, or a later end of the budget, then goes on with another machine, once
the newest checkpoint of this one is home.
"""

from __future__ import annotations

from infra.provider import Vm
from infra.run.state import RunState
from infra.timestamps import format_utc, parse_utc_s

LEAD_S = 900.0
"""How long before its end a machine is given up: saving, copying home and removing take minutes."""


def reason_for_another(state: RunState, now_s: float) -> str:
    """Return why the run needs another machine than the one it has; empty if it does not.

    The end of the budget is computed at the price cap, so that it moves on by itself as long as the
    price is lower, at most as fast as time passes. Only beyond that a later end was asked for; else
    the machine serves until shortly before the latest limit to which it can be held.
    """
    vm, latest_s = state.vm, state.latest_limit_s
    if vm is None:
        return ""
    if state.other_cap:
        return state.other_cap
    if latest_s is None or state.safeguards_until_s <= latest_s:
        return ""
    age_s = max(now_s - (parse_utc_s(vm.created_at) or state.start_requested_s), 0.0)
    if state.safeguards_until_s <= latest_s + age_s and now_s < latest_s - LEAD_S:
        return ""
    return (
        f"the budget lasts until {format_utc(state.safeguards_until_s)}, and this machine can be"
        f" held to {format_utc(latest_s)} at the latest"
    )


def reason_not_to_start(state: RunState, now_s: float) -> str:
    """Return why a machine that is down is not started again; empty if it may be."""
    if state.latest_limit_s is None or now_s < state.latest_limit_s:
        return ""
    return f"this machine could be held to {format_utc(state.latest_limit_s)} at the latest"


def other_cap(vm: Vm, in_force: float | None, wanted: float | None) -> str:
    """Return why a machine whose cap never changes does not do; empty if its cap is as wanted."""
    if in_force is None or in_force == wanted:
        return ""
    now = "none is" if wanted is None else f"{wanted:g} USD/h is"
    return (
        f"the machine's price cap is {in_force:g} USD/h, and {now} asked for: {vm.provider} fixes"
        " it when the machine is made"
    )


def may_start_under(in_force: float | None, wanted: float | None, state: RunState) -> bool:
    """Whether to start a machine once more under its old cap, to bring home what is on its disk.

    Not if the old cap is higher: nobody pays more than what is asked for now.
    """
    higher = in_force is None or (wanted is not None and in_force > wanted)
    return not higher and state.disk_step > state.home_step
