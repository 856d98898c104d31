"""Gives the one true answer of a plan: what `qft run` would do now, and the exit code for it; pure.

The code is that of the obstacle: 2 where the config cannot work, 3 where the cloud or its price
refuses, 6 where the budget would end the run before its adapter is made; 0 where it goes ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from commands.runs.planning.figures import a_card, dollars, hourly
from commands.runs.planning.ranking import JobOffer
from commands.ui.errors import Exit
from infra.run.budget import Budget
from trainer.estimate.span import Span

CAP_MARGIN = 1.2
"""A cap less than a fifth above the market is passed by ordinary moves of the price."""
CLEARLY_LESS = 0.8
"""A saving of less is within what nobody knows."""
NOTHING_CREATED = "nothing was created: "


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The last line of a plan, and its exit code."""

    text: str
    exit_code: Exit = Exit.DONE

    @property
    def obstacle(self) -> str:
        """What stands in the way, without the words on what a plan has not done."""
        return self.text.removeprefix(NOTHING_CREATED)

    @property
    def goes_ahead(self) -> bool:
        """Whether nothing that is known stands in the way."""
        return self.exit_code is Exit.DONE


def answer(
    offers: Sequence[JobOffer],
    cards: Sequence[JobOffer],
    *,
    cap: float | None,
    budget: Budget,
    steps: int | None,
) -> Answer:
    """Return what stands in the way of a run, the first of them; or that it goes ahead.

    `offers` are those that a run would try, in that order; `cards` the best of each card, which
    may need another `vm.gpu`.
    """
    first = next((one for one in offers if one.is_free), None)
    if first is None:
        return _refused(offers, cards, cap)
    if first.cost is not None and not first.cost.budget_suffices:
        return _too_little(first, budget, steps)
    if first.job is not None and first.job.fits is None:
        more = "; whether it fits is not known"
    elif first.job is not None and first.cost is None and first.offer.spot_usd_per_h:
        more = "; how long it takes is not known"
    else:
        more = ""
    return Answer(text=f"nothing was created; `qft run` goes ahead{more}")


def _refused(offers: Sequence[JobOffer], cards: Sequence[JobOffer], cap: float | None) -> Answer:
    """Say why none of the offers can be taken, and what would change that."""
    if not offers:
        return Answer(text="nothing is offered: name other `vm.regions`", exit_code=Exit.CLOUD)
    fitting = [one for one in offers if not one.too_small]
    others = [one for one in cards if one.offer.gpu not in {each.offer.gpu for each in offers}]
    if not fitting:
        remedy = f"; take {larger}" if (larger := _card_that_fits(others)) else ""
        return Answer(
            text=f"{NOTHING_CREATED}{offers[0].too_small}{remedy}",
            exit_code=Exit.USAGE,
        )
    dear = [one for one in fitting if one.too_dear]
    if cap is not None and len(dear) == len(fitting):
        least = min(one.offer.spot_usd_per_h for one in dear)
        other = _card_that_fits([one for one in others if one.is_free])
        return Answer(
            text=f"nothing fits under {hourly(cap)}/h; the cheapest is {hourly(least)}: "
            "raise `vm.max_price`" + (f" or take {other}" if other else ""),
            exit_code=Exit.CLOUD,
        )
    blocked = next(one for one in fitting if one not in dear)
    waits = any(one.offer.clears for one in fitting)
    then = "; `qft run` waits until one is free" if waits else ""
    where = f"{blocked.offer.size} in {blocked.offer.place}: {blocked.offer.blocked_by}"
    return Answer(text=f"no machine can be rented now{then} ({where})", exit_code=Exit.CLOUD)


def _card_that_fits(cards: Sequence[JobOffer]) -> str:
    """Name the card on which the job fits and costs least, and the cap that it takes; or none."""
    fitting = [
        one
        for one in cards
        if one.job is not None
        and one.job.fits
        and not one.too_small
        and (one.cost is None or one.cost.budget_suffices)
    ]
    for one in [*(each for each in fitting if each.is_free), *fitting]:
        cost = f" (about {dollars(one.likely_usd)} in all)" if one.cost is not None else ""
        cap = CAP_MARGIN * one.offer.spot_usd_per_h
        raised = f", with `vm.max_price: {_upwards(cap)}`" if one.too_dear else ""
        return f"{a_card(one.offer.gpu)}{cost}{raised}"
    return ""


def cheaper_card(cards: Sequence[JobOffer], named: set[str]) -> str:
    """Say what to write in run.yaml where another card costs clearly less in all; else empty.

    `cards` are ordered by cost, `named` those of which something is offered.
    """
    first = cards[0]
    own = [one.likely_usd for one in cards if one.offer.gpu in named and not one.too_small]
    if first.offer.gpu in named or not own or first.likely_usd > CLEARLY_LESS * min(own):
        return ""
    cap = f" and `vm.max_price: {_upwards(CAP_MARGIN * first.offer.spot_usd_per_h)}`"
    return (
        f"least in all: `vm.gpu: {first.offer.gpu}`{cap if first.too_dear else ''}, "
        f"about {dollars(first.likely_usd)}"
    )


def _too_little(first: JobOffer, budget: Budget, steps: int | None) -> Answer:
    """Say where the budget ends the run, and how much it would take."""
    cost, job = first.cost, first.job
    if cost is None or job is None or job.billed_hours is None:
        raise ValueError("a budget is judged by a cost")
    where = budget_end(cost.trained_share, steps)
    by_hours = budget.hours is not None and budget.hours < job.billed_hours.likely
    by_usd = budget.usd is not None and budget.usd < cost.total.likely
    limits, remedies = [], []
    if by_usd and budget.usd is not None:
        limits.append(f"of {dollars(budget.usd)}")
        remedies.append(f"`budget.usd` to {_range_upwards(cost.total)}")
    if by_hours and budget.hours is not None:
        limits.append(f"of {budget.hours:g} machine hours")
        remedies.append(f"`budget.hours` to {_range_upwards(job.billed_hours)}")
    return Answer(
        text=f"{NOTHING_CREATED}the budget {' and '.join(limits)} ends the run {where}; "
        f"raise {' and '.join(remedies)}",
        exit_code=Exit.BUDGET,
    )


def budget_end(trained_share: float, steps: int | None) -> str:
    """Return how far a training gets, such as `at about step 480 of 1000`."""
    if trained_share >= 1.0:
        return "after its last step, before the adapter is home"
    if trained_share <= 0.0:
        return "before its first step"
    if steps is None:
        return f"after about {trained_share:.0%} of its steps"
    return f"at about step {int(trained_share * steps)} of {steps}"


def _range_upwards(span: Span) -> str:
    """Return the limit that likely covers a figure, and the one that surely does."""
    likely, high = _upwards(span.likely), _upwards(span.high)
    return likely if likely == high else f"{likely} ({high} to be sure)"


def _upwards(value: float) -> str:
    """Return a limit that surely covers a figure, as it can be typed into run.yaml."""
    cents = int(value * 100) + 1
    return f"{cents / 100:.2f}"
