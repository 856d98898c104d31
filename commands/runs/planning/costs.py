"""Adds up what a job costs at the price of an offer, and how far a budget pays for it; pure."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from commands.runs.planning.job_estimate import JobEstimate
from infra.offer import Offer
from infra.run.budget import Budget
from trainer.estimate.span import Span

TRAIN = "train"
"""The part of a job in which the steps are done."""
EVICTIONS = "evictions"
"""The part that evictions are expected to add."""
MILLION = 1e6


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Dollars of a whole job on one offer."""

    compute: Span
    disk: Span
    """Of disk and address, which bill as long as they exist, also while the machine is down."""
    on_demand_usd: float | None
    """The likely cost of the same on a machine that is never evicted; None without its price."""
    usd_per_million_tokens: float | None
    """The likely cost over the trained tokens."""
    worst_usd: float
    """The high hours at the price cap, or all that the budget allows if that is less."""
    budget_limits: bool
    """Whether the budget ends the worst case."""
    budget_suffices: bool
    """Whether the budget pays for the whole job at the likely speed."""
    trained_share: float
    """Of the steps, how many the budget pays for at the likely speed, from 0 to 1."""

    @property
    def total(self) -> Span:
        """Everything that bills."""
        return self.compute + self.disk

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with the total."""
        return {**asdict(self), "total": self.total.to_json()}


def cost_of_job(
    offer: Offer, job: JobEstimate, *, cap: float | None, budget: Budget
) -> Cost | None:
    """Return what a job costs on an offer at its price of now; None if its hours are not known.

    `cap` is the highest price per hour at which the machine may go on. Without one the on-demand
    price bounds the worst case, since no spot price is above it.
    """
    billed, hours = job.billed_hours, job.hours
    if billed is None or hours is None:
        return None
    compute = billed * offer.spot_usd_per_h
    disk = hours * (job.nodes * offer.idle_usd_per_h) + billed * offer.address_usd_per_h
    total = compute + disk
    on_demand = offer.on_demand_usd_per_h
    highest = max(offer.spot_usd_per_h, cap if cap is not None else on_demand or 0.0)
    worst = min(billed.high, _or_inf(budget.hours)) * highest + disk.high
    paid_h = _paid_hours(offer, budget)
    return Cost(
        compute=compute,
        disk=disk,
        on_demand_usd=None if on_demand is None else billed.likely * on_demand + disk.likely,
        usd_per_million_tokens=(
            total.likely / (job.trained_tokens / MILLION) if job.trained_tokens else None
        ),
        worst_usd=min(worst, _or_inf(budget.usd)),
        budget_limits=_or_inf(budget.usd) < worst or _or_inf(budget.hours) < billed.high,
        budget_suffices=paid_h >= billed.likely,
        trained_share=_trained_share(job, paid_h),
    )


def _paid_hours(offer: Offer, budget: Budget) -> float:
    """Return for how many machine hours the budget pays at the price of now."""
    usd_per_h = offer.running_usd_per_h
    by_usd = _or_inf(budget.usd) / usd_per_h if usd_per_h > 0 else math.inf
    return min(by_usd, _or_inf(budget.hours))


def _trained_share(job: JobEstimate, paid_h: float) -> float:
    """Return which share of the steps is done after so many billed machine hours.

    Evictions fall into the training and make it that much longer.
    """
    billed = {part.name: job.nodes * part.hours.likely for part in job.parts if part.billed}
    if TRAIN not in billed:
        return 1.0
    names = list(billed)
    before_h = sum(billed[name] for name in names[: names.index(TRAIN)])
    training_h = billed[TRAIN] + billed.get(EVICTIONS, 0.0)
    left_h = max(paid_h - before_h, 0.0)
    return 1.0 if left_h >= training_h else left_h / training_h


def _or_inf(limit: float | None) -> float:
    return math.inf if limit is None else limit
