"""Keeps a run on the card that it was trained on, unless its user lets it move to another: pure.

Another card computes other bits, so that the result is not that of an undisturbed run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from infra.catalog.gpus import UnknownGpu, resolve_gpu, with_article
from infra.offer import Offer, Want
from infra.run.state import RunState

NOT_EXACT = "not bit for bit"


def with_other_cards_blocked(
    offers: Sequence[Offer], state: RunState, want: Want
) -> tuple[Offer, ...]:
    """Return the offers; those with another card than the one trained on are blocked.

    They are not where any card will do, or both are named. Nor before anything was trained.
    """
    card = trained_card(state)
    named = _named(want)
    if not card or not named:
        return tuple(offers)
    return tuple(
        replace(one, blocked_by=_obstacle(card, one.gpu), clears=False)
        if one.gpu not in {"", card} and not {card, one.gpu} <= named and not one.blocked_by
        else one
        for one in offers
    )


def with_card(state: RunState, step: int) -> RunState:
    """Return the state with the card that came as far as a step."""
    card = state.offer.gpu if state.offer is not None else ""
    last = state.cards[-1] if state.cards else ""
    if not card or not step or card == last:
        return state
    return replace(state, cards=(*state.cards, card))


def trained_card(state: RunState) -> str:
    """Return the card that computed what is to be gone on with; empty if nothing is."""
    return state.cards[-1] if state.cards and max(state.home_step, state.disk_step) > 0 else ""


def move_note(state: RunState, offer: Offer) -> str:
    """Describe a move to another provider or card; empty if an offer is neither."""
    before, card = state.offer, trained_card(state)
    moved = before is not None and state.starts > 0 and before.provider != offer.provider
    where = f"from {before.provider} to {offer.provider}" if before is not None and moved else ""
    other = f"another card ({card} before): {NOT_EXACT}" if card not in {"", offer.gpu} else ""
    return "; ".join(part for part in (where, other) if part)


def _obstacle(card: str, other: str) -> str:
    return (
        f"the run was trained on {with_article(card)}, and {with_article(other)} is {NOT_EXACT};"
        " `vm.gpu: any` or"
        f" `vm.gpu: [{card}, {other}]` allows it"
    )


def _named(want: Want) -> set[str]:
    """Return the cards that are named, by the catalog's names; empty if any will do."""
    found = set()
    for name in want.gpus or ((want.gpu,) if want.gpu else ()):
        try:
            found.add(resolve_gpu(name).gpu.name)
        except UnknownGpu:  # such as one of the simulated cloud: it is called as it is
            found.add(name)
    return found
