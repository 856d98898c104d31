"""Finds what a budget pays for that is too small: elsewhere, without scores, less work; pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from commands.runs.config import LoadedConfig
from commands.runs.planning.figures import dollars, hours
from commands.runs.planning.priced_change import (
    Advice,
    Pricing,
    costs_text,
    lines_of,
    priced_change,
    rounded_up,
    rows_cut,
    with_card,
)
from commands.runs.planning.ranking import JobOffer
from infra.config import BudgetTable
from infra.offer import Offer
from trainer.config import TrainerConfig
from trainer.estimate.advice import LENGTH_STEP, Override, Value
from trainer.eval_tables.any_kind import NONE

EPOCH_PARTS = 20
"""Into how many parts the epochs are divided to look for those that the budget pays for."""


def advise_on_budget(
    loaded: LoadedConfig,
    first: JobOffer,
    others: Sequence[JobOffer],
    pricing: Pricing,
) -> Iterator[Advice]:
    """Yield what the budget pays for; what keeps the adapter as it is comes first."""
    yield from _cheaper_place(loaded, first, others, pricing)
    yield from _without_scores(loaded, first, pricing)
    yield from _larger_budget(first, loaded.config.budget)
    tables = TrainerConfig.model_validate(loaded.config.trainer_tables)
    for key, values, what in _less_work(loaded):
        overrides = _most_paid(loaded, first.offer, key, values, pricing)
        if overrides is None:
            continue
        tried = priced_change(loaded, overrides, first.offer, pricing)
        yield Advice(
            change=lines_of(overrides),
            effect=f"{what} the budget pays for{rows_cut(tables, overrides, pricing)}; "
            f"{costs_text(tried)}",
            keeps_result=False,
        )


def _cheaper_place(
    loaded: LoadedConfig, first: JobOffer, others: Sequence[JobOffer], pricing: Pricing
) -> Iterator[Advice]:
    """Yield the card or region where the whole job costs least, if the budget pays for it there."""
    cheaper = [one for one in others if one.is_free and one.likely_usd < first.likely_usd]
    for one in sorted(cheaper, key=lambda one: one.likely_usd):
        overrides = [Override(key="vm.regions", value=[one.offer.region])]
        if one.offer.gpu != first.offer.gpu:
            overrides = with_card(loaded, one.offer)
        tried = priced_change(loaded, overrides, one.offer, pricing)
        if tried is not None and tried.is_free and _suffices(tried):
            effect = f"{costs_text(tried)}, which the budget pays for"
            yield Advice(change=lines_of(overrides), effect=effect, keeps_result=True)
            return


def _without_scores(loaded: LoadedConfig, first: JobOffer, pricing: Pricing) -> Iterator[Advice]:
    """Yield to leave out the score with examples, or all scores, if that is enough."""
    table = loaded.config.scored
    if table is None:
        return
    shots = [(Override(key="eval.shots", value=0), "no score with examples")] * bool(table.shots)
    for override, what in [*shots, (Override(key="eval", value=NONE), "no scores")]:
        tried = priced_change(loaded, [override], first.offer, pricing)
        if _suffices(tried):
            yield Advice(
                change=lines_of([override]),
                effect=f"{what}; {costs_text(tried)}, which the budget pays for",
                keeps_result=True,
            )
            return


def _larger_budget(first: JobOffer, budget: BudgetTable) -> Iterator[Advice]:
    """Yield the budget that pays for the job, also where it takes as long as it may."""
    overrides = larger_budget(first, budget)
    if not overrides or first.cost is None or first.job is None or first.job.billed_hours is None:
        return
    keys = {one.key for one in overrides}
    all_of = " of machine time" * (first.job.nodes > 1)
    likely = [
        *[dollars(first.cost.total.likely)] * ("budget.usd" in keys),
        *[hours(first.job.billed_hours.likely) + all_of] * ("budget.hours" in keys),
    ]
    effect = f"pays for it also where it is slow; likely it takes {' and '.join(likely)}"
    yield Advice(change=lines_of(overrides), effect=effect, keeps_result=True)


def larger_budget(one: JobOffer, budget: BudgetTable) -> list[Override]:
    """Return the limits that pay for a job where it takes as long as it may; none if they do."""
    cost, billed = one.cost, None if one.job is None else one.job.billed_hours
    overrides = []
    if cost is not None and budget.usd is not None and budget.usd < cost.total.likely:
        overrides.append(Override(key="budget.usd", value=rounded_up(cost.total.high)))
    if billed is not None and budget.hours is not None and budget.hours < billed.likely:
        overrides.append(Override(key="budget.hours", value=rounded_up(billed.high, 10)))
    return overrides


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
    without_scores = [[Override(key="eval", value=NONE)]] if loaded.config.scored else []
    for others in [[], *without_scores]:
        low, high = -1, len(values)
        while high - low > 1:
            middle = (low + high) // 2
            overrides = [Override(key=key, value=values[middle]), *others]
            enough = _suffices(priced_change(loaded, overrides, offer, pricing))
            low, high = (middle, high) if enough else (low, middle)
        if low >= 0:
            return [Override(key=key, value=values[low]), *others]
    return None


def _suffices(one: JobOffer | None) -> bool:
    return one is not None and one.cost is not None and one.cost.budget_suffices
