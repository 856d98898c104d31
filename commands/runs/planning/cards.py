"""Says what several cards of one machine do in a job, and what they save against one; pure."""

from __future__ import annotations

from commands.runs.planning.costs import TRAIN
from commands.runs.planning.figures import a_card, dollars, hours
from commands.runs.planning.job_estimate import JobEstimate
from commands.runs.planning.ranking import JobOffer
from trainer.estimate.cards import rounds, sharing_text

PERCENT = 100


def cards_fact(job: JobEstimate | None) -> str:
    """Return how the cards share a step, and the base if it is sharded; empty for one card."""
    found = None if job is None else job.sharing
    if job is None or found is None:
        return ""
    portions, cards = found["portions"], found["cards"]
    each = rounds(portions, cards)
    text = f"{cards}, each with {'up to ' * (portions % cards > 0)}{each} of "
    text += f"{portions} micro-batch{'es' * (portions != 1)} of a step"
    if job.step_s:
        sent_s = found["exchange_s"] + found["gather_s"]
        share = PERCENT * sent_s / job.step_s
        amount = f"{share:.0f}" if share >= 1 else "under 1"
        text += f"; what they send each other takes {amount} % of it"
    sharded = sharing_text(found)
    return f"{text}; {sharded}" if sharded else text


def unused_warning(priced: JobOffer | None, wanted: int) -> str:
    """Return what to warn of where a machine has more cards than the run uses; else nothing."""
    count = 0 if priced is None else priced.offer.gpu_count
    if priced is None or count <= wanted:
        return ""
    offer = priced.offer
    return (
        f"{offer.machine} is paid for whole, and the run uses {wanted} of its cards: "
        f"`vm.gpus: {count}` costs the same an hour"
    )


def against_one(several: JobOffer | None, one: JobOffer | None) -> str:
    """Return what the same job takes on one such card, to be held against several; or nothing."""
    if several is None or several.job is None or several.job.sharing is None or one is None:
        return ""
    card = several.job.card
    if one.job is None or one.job.fits is False:
        return f"one {card} alone does not hold it" if one.job is not None else ""
    train = {
        job.cards: part.hours.likely
        for job in (several.job, one.job)
        for part in job.parts
        if part.name == TRAIN
    }
    if several.cost is None or one.cost is None or len(train) < 2:
        return ""
    alone, together = hours(train[1]), hours(train[several.job.cards])
    longer = "no longer" if alone == together else f"{alone} instead of {together}"
    return (
        f"{a_card(card)} alone would train {longer}, and cost {dollars(one.likely_usd)} in all "
        f"instead of {dollars(several.likely_usd)} ({one.offer.size}, {one.offer.price_source})"
    )
