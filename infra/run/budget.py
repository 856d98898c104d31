"""Adds up the hours and dollars of a run, and checks them against its budget: pure arithmetic.

Errs towards spending: a span opens when a machine is asked for and closes when it was seen down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from infra.run.state import RunState

SECONDS_PER_H = 3600.0
LIMIT_S_MAX = 24 * SECONDS_PER_H
"""A machine without a budget is still looked after once a day, or gives itself back."""

RENEW_S_MIN = 120.0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that a run may use, counted across restarts and machines."""

    usd: float | None = None
    hours: float | None = None
    """Billed machine hours, not wall-clock hours."""
    evictions: int | None = None
    disk_days: float | None = None
    """How long after its limit a machine may be removed with its disk, by the cloud itself."""


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What a run has used so far."""

    usd: float
    compute_h: float
    idle_h: float
    usd_per_h_now: float
    """What still runs up, each hour, at this moment."""


def bill(state: RunState, now_s: float) -> Bill:
    """Add up the spans of a run; a span that still runs counts until `now_s`."""
    usd = compute_h = idle_h = usd_per_h_now = 0.0
    for span in state.spans:
        end_s = now_s if span.end_s is None else span.end_s
        hours = max(0.0, end_s - span.start_s) / SECONDS_PER_H
        usd += hours * span.usd_per_h
        if span.compute:
            compute_h += hours
        else:
            idle_h += hours
        if span.end_s is None:
            usd_per_h_now += span.usd_per_h
    return Bill(usd=usd, compute_h=compute_h, idle_h=idle_h, usd_per_h_now=usd_per_h_now)


def with_others(state: RunState, others: Sequence[RunState]) -> RunState:
    """Return the state of a machine with what the others of its run have cost and suffered."""
    if not others:
        return state
    return replace(
        state,
        spans=(*state.spans, *(span for one in others for span in one.spans)),
        evictions=state.evictions + sum(one.evictions for one in others),
    )


def bills_by_provider(state: RunState, now_s: float) -> dict[str, Bill]:
    """Add up the spans of each provider, in the order in which they were rented from."""
    names = dict.fromkeys(span.provider for span in state.spans)
    return {
        name: bill(
            replace(state, spans=tuple(one for one in state.spans if one.provider == name)), now_s
        )
        for name in names
    }


def limit_reached(budget: Budget, state: RunState, now_s: float) -> str:
    """Return which limit of the budget is used up, with its figures; empty if none is."""
    used = bill(state, now_s)
    if budget.usd is not None and used.usd >= budget.usd:
        return f"${used.usd:.2f} of ${budget.usd:.2f} spent"
    if budget.hours is not None and used.compute_h >= budget.hours:
        return f"{used.compute_h:.2f} of {budget.hours:g} machine hours used"
    if budget.evictions is not None and state.evictions > budget.evictions:
        return f"{state.evictions} evictions, {budget.evictions} allowed"
    return ""


def seconds_left(
    budget: Budget, state: RunState, now_s: float, usd_per_h: float, machines: int = 1
) -> float | None:
    """Return how long so many machines at that price may run within the budget; None: no limit."""
    used = bill(state, now_s)
    limits = []
    if budget.hours is not None:
        limits.append((budget.hours - used.compute_h) / machines * SECONDS_PER_H)
    if budget.usd is not None and usd_per_h > 0:
        limits.append((budget.usd - used.usd) / (machines * usd_per_h) * SECONDS_PER_H)
    return max(0.0, min(limits)) if limits else None


def budget_end_s(
    budget: Budget, state: RunState, now_s: float, usd_per_h: float, machines: int = 1
) -> float:
    """Return when the budget ends, in seconds since 1970; without a limit, a day from now."""
    left_s = seconds_left(budget, state, now_s, usd_per_h, machines)
    return now_s + (LIMIT_S_MAX if left_s is None else left_s)


def renewal_age_s(set_s: float, until_s: float, every_s: float) -> float:
    """Return at what age safeguards set at `set_s` for `until_s` are renewed, `every_s` at most.

    It was set for the highest price that is possible. At a lower one the budget lasts longer, and a
    limit that is not moved on in time would end the machine with money left.
    """
    return min(every_s, max((until_s - set_s) / 2, RENEW_S_MIN))


def worst_case_usd(budget: Budget, max_price_usd_per_h: float | None) -> float | None:
    """Return the most a run can cost: the smaller of the dollar budget and cap times hours.

    None if neither limits it.
    """
    cap_usd = None
    if budget.hours is not None and max_price_usd_per_h is not None:
        cap_usd = budget.hours * max_price_usd_per_h
    return min((one for one in (budget.usd, cap_usd) if one is not None), default=None)
