"""Finds what makes a run go ahead: fit its card, stay in its budget, be rented at its cap; pure.

Every change is applied to the config and estimated and priced again as the plan itself is. What
does not help then is not advised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import ValidationError

from commands.runs.config import LoadedConfig, RunConfig
from commands.runs.planning.answer import CAP_MARGIN
from commands.runs.planning.figures import GB, dollars, hourly
from commands.runs.planning.ranking import JobOffer
from infra.provider import Offer
from infra.renting.prices import price_obstacle
from infra.run.budget import Budget
from trainer.config import TrainerConfig
from trainer.device.shapes import Shape
from trainer.estimate.advice import LENGTH_STEP, Estimate, Override, Value, advise_memory

MEMORY_ADVICE_MAX = 4
"""More ways than anybody compares."""
CENTS = 100
ABOVE_CAP = "above the cap"
"""What providers say of an offer that only its price blocks."""
EPOCH_PARTS = 20
"""Into how many parts the epochs are divided to look for those that the budget pays for."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One change that makes a run go ahead, and what it brings."""

    change: str
    """Lines of run.yaml, each a key and its value, with `and` between them."""
    effect: str
    keeps_result: bool
    """Whether the adapter is the same but for rounding."""

    @property
    def text(self) -> str:
        """The advice as a line to print."""
        same = "; the result stays the same" if self.keeps_result else ""
        return f"{self.change}: {self.effect}{same}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Pricing:
    """How a changed config is estimated and priced: as the plan itself was."""

    price: Callable[[LoadedConfig, Offer], JobOffer]
    need: Callable[[str], Estimate | None]
    """The estimate of memory on a card of that name; None if there is none."""
    shape: Shape | None
    """The sizes of the base; None if they are unknown."""
    longest: int | None = None
    """The tokens of the longest row, before it is cut; None if that is unknown."""
    longer_share: Callable[[int], float] | None = None
    """Which share of the rows is longer than so many tokens; None if that is unknown."""
    other_bases: Sequence[str] = ()
    """Ids of smaller bases of the same family, the largest first."""


def advise(
    loaded: LoadedConfig,
    offers: Sequence[JobOffer],
    cards: Sequence[JobOffer],
    *,
    budget: Budget,
    pricing: Pricing,
) -> tuple[Advice, ...]:
    """Return what would make a run go ahead, the least change first; empty if it does.

    `offers` are those that a run would try, in their order; `cards` is the best offer of each card.
    """
    free = next((one for one in offers if one.is_free), None)
    if free is not None:
        if free.cost is None or free.cost.budget_suffices:
            return ()
        return tuple(_for_budget(loaded, free, [*cards, *offers], budget, pricing))
    fitting = [one for one in offers if not one.too_small]
    if offers and not fitting:
        return tuple(_for_memory(loaded, offers, cards, pricing))
    if fitting and all(one.too_dear for one in fitting):
        return tuple(_for_cap(loaded, fitting, cards, pricing))
    return ()


def with_overrides(loaded: LoadedConfig, overrides: Sequence[Override]) -> LoadedConfig | None:
    """Return a config with other values for some keys; None if that is no config."""
    tables: dict[str, Any] = loaded.config.model_dump(mode="json", exclude_none=True)
    for one in overrides:
        table, _, key = one.key.partition(".")
        if key:
            tables.setdefault(table, {})[key] = one.value
        else:
            tables[table] = one.value
    try:
        config = RunConfig.model_validate(tables)
        TrainerConfig.model_validate(config.trainer_tables)
    except ValidationError:
        return None
    return replace(loaded, config=config)


def _for_memory(
    loaded: LoadedConfig, offers: Sequence[JobOffer], cards: Sequence[JobOffer], pricing: Pricing
) -> Iterator[Advice]:
    """Yield what makes it fit the card that is asked for, then other cards and bases."""
    largest = max(offers, key=lambda one: one.job.card_bytes if one.job else 0.0)
    job = largest.job
    estimate = None if job is None else pricing.need(job.card)
    if job is not None and estimate is not None and pricing.shape is not None:
        tables = TrainerConfig.model_validate(loaded.config.trainer_tables)
        found = advise_memory(tables, pricing.shape, estimate, longest=pricing.longest)
        for one in found[:MEMORY_ADVICE_MAX]:
            yield Advice(
                change=_lines(one.overrides),
                effect=f"fits the {job.card}, {_of(one.need_bytes, job.card_bytes)}"
                + _rows_cut(loaded, one.overrides, pricing),
                keeps_result=one.keeps_result,
            )
    yield from _other_card(loaded, cards, {one.offer.gpu for one in offers}, pricing)
    yield from _other_base(loaded, largest.offer, pricing)


def _rows_cut(loaded: LoadedConfig, overrides: Sequence[Override], pricing: Pricing) -> str:
    """Say how many rows a shorter limit touches, if that is known."""
    limit = next((one.value for one in overrides if one.key == "train.max_length"), None)
    if not isinstance(limit, int) or pricing.longer_share is None:
        return ""
    share = pricing.longer_share(limit)
    if share == 0:
        return "; no row is that long"
    what = {"cut": "cuts", "drop": "leaves out"}.get(str(loaded.config.data.too_long), "refuses")
    return f"; {what} {max(share, 0.01):.0%} of the rows"


def _other_card(
    loaded: LoadedConfig, cards: Sequence[JobOffer], named: set[str], pricing: Pricing
) -> Iterator[Advice]:
    """Yield the card of another kind on which the job fits and costs least, with its cap."""
    for one in cards:
        if one.offer.gpu in named or one.job is None or not one.job.fits:
            continue
        overrides = [Override(key="vm.gpu", value=one.offer.gpu)]
        if one.too_dear:
            overrides.append(Override(key="vm.max_price", value=_cap_for(one.offer)))
        tried = _priced(loaded, overrides, one.offer, pricing)
        if tried is None or not tried.is_free or tried.job is None:
            continue
        need = tried.job.memory_bytes
        fits = f"fits, {_of(need.likely, tried.job.card_bytes)}" if need else "fits"
        yield Advice(
            change=_lines(overrides),
            effect=f"{fits}; {_costs(tried)}",
            keeps_result=True,
        )
        return


def _other_base(loaded: LoadedConfig, offer: Offer, pricing: Pricing) -> Iterator[Advice]:
    """Yield the largest base of the same family that fits."""
    for base in pricing.other_bases:
        overrides = [Override(key="model.id", value=base)]
        changed = with_overrides(loaded, overrides)
        tried = None if changed is None else pricing.price(changed, offer)
        if tried is None or tried.job is None or not tried.job.fits:
            continue
        need = tried.job.memory_bytes
        of = f", {_of(need.likely, tried.job.card_bytes)}" if need else ""
        yield Advice(
            change=_lines(overrides),
            effect=f"a smaller base of its family, which fits the {tried.job.card}{of}",
            keeps_result=False,
        )
        return


def _for_budget(
    loaded: LoadedConfig,
    first: JobOffer,
    others: Sequence[JobOffer],
    budget: Budget,
    pricing: Pricing,
) -> Iterator[Advice]:
    """Yield what the budget pays for; what keeps the adapter as it is comes first."""
    yield from _cheaper_place(loaded, first, others, pricing)
    yield from _without_scores(loaded, first, pricing)
    yield from _larger_budget(first, budget)
    for key, values, what in _less_work(loaded):
        overrides = _most_paid(loaded, first.offer, key, values, pricing)
        if overrides is None:
            continue
        tried = _priced(loaded, overrides, first.offer, pricing)
        yield Advice(
            change=_lines(overrides),
            effect=f"{what} the budget pays for{_rows_cut(loaded, overrides, pricing)}; "
            f"{_costs(tried)}",
            keeps_result=False,
        )


def _cheaper_place(
    loaded: LoadedConfig, first: JobOffer, others: Sequence[JobOffer], pricing: Pricing
) -> Iterator[Advice]:
    """Yield the card or region where the whole job costs least, if the budget pays for it there."""
    cheaper = [one for one in others if one.is_free and one.likely_usd < first.likely_usd]
    for one in sorted(cheaper, key=lambda one: one.likely_usd):
        override = Override(key="vm.regions", value=[one.offer.region])
        if one.offer.gpu != first.offer.gpu:
            override = Override(key="vm.gpu", value=one.offer.gpu)
        tried = _priced(loaded, [override], one.offer, pricing)
        if tried is not None and tried.is_free and _suffices(tried):
            effect = f"{_costs(tried)}, which the budget pays for"
            yield Advice(change=_lines([override]), effect=effect, keeps_result=True)
            return


def _without_scores(loaded: LoadedConfig, first: JobOffer, pricing: Pricing) -> Iterator[Advice]:
    """Yield to leave out the score with examples, or all scores, if that is enough."""
    table = loaded.config.eval
    if table is None:
        return
    shots = [(Override(key="eval.shots", value=0), "no score with examples")] * bool(table.shots)
    for override, what in [*shots, (Override(key="eval", value=None), "no scores")]:
        tried = _priced(loaded, [override], first.offer, pricing)
        if _suffices(tried):
            yield Advice(
                change=_lines([override]),
                effect=f"{what}; {_costs(tried)}, which the budget pays for",
                keeps_result=True,
            )
            return


def _larger_budget(first: JobOffer, budget: Budget) -> Iterator[Advice]:
    """Yield the budget that pays for the job, also where it takes as long as it may."""
    cost, billed = first.cost, first.job.billed_hours if first.job else None
    if cost is None or billed is None:
        return
    overrides, likely = [], []
    if budget.usd is not None and budget.usd < cost.total.likely:
        overrides.append(Override(key="budget.usd", value=_up(cost.total.high)))
        likely.append(dollars(cost.total.likely))
    if budget.hours is not None and budget.hours < billed.likely:
        overrides.append(Override(key="budget.hours", value=_up(billed.high, 10)))
        likely.append(f"{billed.likely:.1f} h")
    if overrides:
        effect = f"pays for it also where it is slow; likely it takes {' and '.join(likely)}"
        yield Advice(change=_lines(overrides), effect=effect, keeps_result=True)


def _less_work(loaded: LoadedConfig) -> Iterator[tuple[str, Sequence[Value], str]]:
    """Yield keys with values below the present one, ascending, and what they are."""
    train = loaded.config.train
    if train.steps is not None:
        yield "train.steps", range(1, train.steps), "the most steps that"
    else:
        epochs = train.epochs or 1.0
        parts = [round(epochs * part / EPOCH_PARTS, 3) for part in range(1, EPOCH_PARTS)]
        yield "train.epochs", parts, "about the most epochs that"
    lengths = range(LENGTH_STEP, train.max_length, LENGTH_STEP)
    yield "train.max_length", lengths, "the longest rows that"


def _most_paid(
    loaded: LoadedConfig, offer: Offer, key: str, values: Sequence[Value], pricing: Pricing
) -> list[Override] | None:
    """Return the last of ascending values for which the budget suffices; None if for none.

    Where the scores alone take more than there is, they go, too.
    """
    without_scores = [[Override(key="eval", value=None)]] if loaded.config.eval else []
    for others in [[], *without_scores]:
        low, high = -1, len(values)
        while high - low > 1:
            middle = (low + high) // 2
            overrides = [Override(key=key, value=values[middle]), *others]
            enough = _suffices(_priced(loaded, overrides, offer, pricing))
            low, high = (middle, high) if enough else (low, middle)
        if low >= 0:
            return [Override(key=key, value=values[low]), *others]
    return None


def _for_cap(
    loaded: LoadedConfig, fitting: Sequence[JobOffer], cards: Sequence[JobOffer], pricing: Pricing
) -> Iterator[Advice]:
    """Yield the cap at which the cheapest offer is free, then a card that is free at this one."""
    for one in sorted(fitting, key=lambda one: one.offer.spot_usd_per_h):
        overrides = [Override(key="vm.max_price", value=_cap_for(one.offer))]
        tried = _priced(loaded, overrides, one.offer, pricing)
        if tried is not None and tried.is_free:
            price = hourly(one.offer.spot_usd_per_h)
            where = f"{one.offer.size} in {one.offer.place} costs {price}/h now"
            yield Advice(
                change=_lines(overrides),
                effect=f"{where}, and a rise of a fifth does not evict it; {_costs(tried)}",
                keeps_result=True,
            )
            break
    cheap = [one for one in cards if not one.too_dear]
    yield from _other_card(loaded, cheap, {one.offer.gpu for one in fitting}, pricing)


def _priced(
    loaded: LoadedConfig, overrides: Sequence[Override], offer: Offer, pricing: Pricing
) -> JobOffer | None:
    """Return what a changed job needs and costs on an offer; None if that is no config.

    An offer whose price alone is in the way is free under a higher cap.
    """
    changed = with_overrides(loaded, overrides)
    if changed is None:
        return None
    price, cap = offer.spot_usd_per_h, changed.config.vm.max_price
    # What never clears, such as a quota, is told before a price; the simulated cloud has no such.
    passes = offer.clears or ABOVE_CAP in offer.blocked_by
    if passes and price_obstacle(price, loaded.config.vm.max_price):
        offer = replace(offer, blocked_by=price_obstacle(price, cap))
    return pricing.price(changed, offer)


def _suffices(one: JobOffer | None) -> bool:
    return one is not None and one.cost is not None and one.cost.budget_suffices


def _cap_for(offer: Offer) -> float:
    """Return a cap that ordinary moves of a price do not reach, in whole cents."""
    return _up(offer.spot_usd_per_h * CAP_MARGIN)


def _up(value: float, parts: int = CENTS) -> float:
    """Return a figure rounded up to a whole number of parts, cents by default."""
    return math.ceil(value * parts - 1e-9) / parts


def _lines(overrides: Sequence[Override]) -> str:
    return " and ".join(f"`{one}`" for one in overrides)


def _of(need_bytes: float, card_bytes: float) -> str:
    return f"{need_bytes / GB:.1f} of {card_bytes / GB:.1f} GB"


def _costs(one: JobOffer | None) -> str:
    if one is None or one.cost is None:
        return "what it costs is not known"
    return f"about {dollars(one.cost.total.likely)} in all at {hourly(one.offer.spot_usd_per_h)}/h"
