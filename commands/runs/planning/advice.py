"""Finds what makes a run go ahead: fit its card, stay in its budget, be rented at its cap; pure.

Every change is applied to the config and estimated and priced again as the plan itself is. What
does not help then is not advised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from commands.runs.config import LoadedConfig
from commands.runs.planning.answer import CAP_MARGIN
from commands.runs.planning.budget_advice import advise_on_budget, larger_budget
from commands.runs.planning.estimates import HERE
from commands.runs.planning.figures import GB, hourly
from commands.runs.planning.job_estimate import JobEstimate
from commands.runs.planning.priced_change import (
    Advice,
    Pricing,
    costs_text,
    lines_of,
    priced_change,
    rounded_up,
    rows_cut,
    with_card,
    with_overrides,
)
from commands.runs.planning.ranking import JobOffer
from infra.offer import Offer
from infra.renting.prices import price_obstacle
from trainer.config import TrainerConfig
from trainer.estimate.advice import Override, advise_memory

MEMORY_ADVICE_MAX = 4
"""More ways than anybody compares."""


def advise(
    loaded: LoadedConfig,
    offers: Sequence[JobOffer],
    cards: Sequence[JobOffer],
    *,
    pricing: Pricing,
) -> tuple[Advice, ...]:
    """Return what would make a run go ahead, the least change first; empty if it does.

    `offers` are those that a run would try, in their order; `cards` is the best offer of each card.
    """
    free = next((one for one in offers if one.is_free), None)
    if free is not None:
        if free.cost is None or free.cost.budget_suffices:
            return ()
        return tuple(advise_on_budget(loaded, free, [*cards, *offers], pricing))
    fitting = [one for one in offers if not one.too_small]
    if offers and not fitting:
        return tuple(_for_memory(loaded, offers, cards, pricing))
    if fitting and all(one.too_dear for one in fitting):
        return tuple(_for_cap(loaded, fitting, cards, pricing))
    return ()


def _for_memory(
    loaded: LoadedConfig, offers: Sequence[JobOffer], cards: Sequence[JobOffer], pricing: Pricing
) -> Iterator[Advice]:
    """Yield what makes it fit the card that is asked for, then other cards and bases."""
    largest = max(offers, key=lambda one: one.job.card_bytes if one.job else 0.0)
    if largest.job is not None:
        tables = TrainerConfig.model_validate(loaded.config.trainer_tables)
        yield from memory_advice(tables, largest.job, pricing)
    yield from _other_card(loaded, cards, {one.offer.gpu for one in offers}, pricing)
    yield from _other_base(loaded, largest.offer, pricing)


def memory_advice(tables: TrainerConfig, job: JobEstimate, pricing: Pricing) -> Iterator[Advice]:
    """Yield the settings with which a job fits the card that it was estimated for."""
    estimate = pricing.need(job)
    if estimate is None or pricing.shape is None:
        return
    found = advise_memory(tables, pricing.shape, estimate, longest=pricing.longest)
    for one in found[:MEMORY_ADVICE_MAX]:
        yield Advice(
            change=lines_of(one.overrides),
            effect=f"fits {_the(job.card)}, {_of(one.need_bytes, job.card_bytes)}"
            + rows_cut(tables, one.overrides, pricing),
            keeps_result=one.keeps_result,
        )


def _other_card(
    loaded: LoadedConfig, cards: Sequence[JobOffer], named: set[str], pricing: Pricing
) -> Iterator[Advice]:
    """Yield the card of another kind on which the job fits and costs least, with its cap.

    One that the budget pays for comes before one that needs a larger budget, which is then said.
    """
    others = [one for one in cards if one.offer.gpu not in named and one.job and one.job.fits]
    found = [_on_card(loaded, one.offer, pricing) for one in others]
    priced = [one for one in found if one is not None]
    for overrides, tried in sorted(priced, key=lambda one: len(one[0])):
        yield Advice(
            change=lines_of(overrides),
            effect=f"fits{_of_job(tried)}; {costs_text(tried)}",
            keeps_result=True,
        )
        return


def _on_card(
    loaded: LoadedConfig, offer: Offer, pricing: Pricing
) -> tuple[list[Override], JobOffer] | None:
    """Return what a run needs to go ahead on a card, with its price; None if it cannot.

    The cap and the budget are raised where they are in the way.
    """
    overrides = with_card(loaded, offer)
    if price_obstacle(offer.spot_usd_per_h, loaded.config.vm.max_price):
        overrides.append(Override(key="vm.max_price", value=_cap_for(offer)))
    tried = priced_change(loaded, overrides, offer, pricing)
    if tried is None or not tried.is_free or tried.job is None:
        return None
    if tried.cost is not None and not tried.cost.budget_suffices:
        overrides += larger_budget(tried, loaded.config.budget)
        tried = priced_change(loaded, overrides, offer, pricing)
    return None if tried is None else (overrides, tried)


def _other_base(loaded: LoadedConfig, offer: Offer, pricing: Pricing) -> Iterator[Advice]:
    """Yield the largest base of the same family that fits."""
    for base in pricing.other_bases:
        overrides = [Override(key="model.id", value=base)]
        changed = with_overrides(loaded, overrides)
        tried = None if changed is None else pricing.price(changed, offer)
        if tried is None or tried.job is None or not tried.job.fits:
            continue
        yield Advice(
            change=lines_of(overrides),
            effect=f"a smaller base of its family fits {_the(tried.job.card)}{_of_job(tried)}",
            keeps_result=False,
        )
        return


def _for_cap(
    loaded: LoadedConfig, fitting: Sequence[JobOffer], cards: Sequence[JobOffer], pricing: Pricing
) -> Iterator[Advice]:
    """Yield the cap at which the cheapest offer is free, then a card that is free at this one."""
    for one in sorted(fitting, key=lambda one: one.offer.spot_usd_per_h):
        overrides = [Override(key="vm.max_price", value=_cap_for(one.offer))]
        tried = priced_change(loaded, overrides, one.offer, pricing)
        if tried is not None and tried.is_free:
            price = hourly(one.offer.spot_usd_per_h)
            where = f"{one.offer.size} in {one.offer.place} costs {price}/h now"
            yield Advice(
                change=lines_of(overrides),
                effect=f"{where}, and a rise of a fifth does not evict it; {costs_text(tried)}",
                keeps_result=True,
            )
            break
    named = {one.offer.gpu for one in fitting}
    cheap = [one for one in cards if not one.too_dear]
    yield from _other_card(loaded, cheap, named, pricing)
    least = min((one.likely_usd for one in fitting), default=0.0)
    cheaper = [one for one in cards if one.too_dear and one.likely_usd < least]
    yield from _other_card(loaded, cheaper, named, pricing)


def _cap_for(offer: Offer) -> float:
    """Return a cap that ordinary moves of a price do not reach, in whole cents."""
    return rounded_up(offer.spot_usd_per_h * CAP_MARGIN)


def _of_job(one: JobOffer) -> str:
    need = None if one.job is None else one.job.memory_bytes
    return "" if one.job is None or need is None else f", {_of(need.likely, one.job.card_bytes)}"


def _of(need_bytes: float, card_bytes: float) -> str:
    return f"{need_bytes / GB:.1f} of {card_bytes / GB:.1f} GB"


def _the(card: str) -> str:
    return card if card == HERE else f"the {card}"
