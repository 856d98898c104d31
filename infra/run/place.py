"""Keeps the machines of a run at one place, where a private network joins them: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from infra.offer import Offer
from infra.run.decide import find_refusal
from infra.run.order import Order
from infra.run.plan import Policy
from infra.run.state import RunState


def with_other_places_blocked(
    offers: Sequence[Offer], order: Order, policy: Policy, now_s: float
) -> tuple[Offer, ...]:
    """Return the offers with those blocked at which the other machines of the run cannot be.

    While the run has no place, that is where one of them has just been refused; then it is every
    other place and every other size.
    """
    return tuple(one if one.blocked_by else _blocked(one, order, policy, now_s) for one in offers)


def _blocked(offer: Offer, order: Order, policy: Policy, now_s: float) -> Offer:
    if order.place is not None:
        if _key(offer) == _key(order.place):
            return offer
        where = f"{order.place.provider} {order.place.place}, {order.place.machine}"
        reason = f"the other machines of the run are at {where}"
        return replace(offer, blocked_by=reason, clears=True)
    for state in order.others:
        refusal = find_refusal(state, offer, policy, now_s)
        if refusal is not None:
            reason = f"another machine of the run was refused: {refusal}"
            return replace(offer, blocked_by=reason, clears=not refusal.needs_human)
    return offer


def place_of(states: Sequence[RunState]) -> Offer | None:
    """Return the offer that the first machine of the run took that still has one; None if none."""
    for state in states:
        if state.offer is not None and (state.vm is not None or state.pending is not None):
            return state.offer
    return None


def _key(offer: Offer) -> tuple[str, str, str, str]:
    return (offer.provider, offer.region, offer.zone, offer.size)
