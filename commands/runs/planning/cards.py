"""Says what several cards or machines do in a job, and what they save against one; pure."""

from __future__ import annotations

from commands.runs.planning.costs import TRAIN
from commands.runs.planning.figures import GB, a_card, dollars, hourly, hours, hours_span
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
    whose = machines_text(job) + ", each card" if job.nodes > 1 else f"{cards}, each"
    text = f"{whose} with {'up to ' * (portions % cards > 0)}{each} of "
    text += f"{portions} micro-batch{'es' * (portions != 1)} of a step"
    if job.step_s and found["exchange_s"] is not None:
        sent_s = found["exchange_s"] + found["gather_s"]
        share = PERCENT * sent_s / job.step_s
        amount = f"{share:.0f}" if share >= 1 else "under 1"
        text += f"; what they send each other takes {amount} % of it"
    sharded = sharing_text(found)
    return f"{text}; {sharded}" if sharded else text


def machines_text(job: JobEstimate) -> str:
    """Return which machines do a job, where there are several: `3 machines of 1 × T4`."""
    return f"{job.nodes} machines of {job.cards // job.nodes} × {job.card}"


def machines_note(priced: JobOffer | None) -> str:
    """Say what several machines cost an hour, and what the figures leave out; empty for one."""
    job = None if priced is None else priced.job
    if priced is None or job is None or job.nodes < 2:
        return ""
    offer, found = priced.offer, job.sharing
    price = hourly(job.nodes * offer.running_usd_per_h)
    what = f"{job.nodes} machines" if found is None else machines_text(job)
    text = f"{what} bill {price}/h together, and dollars and budget are those of all"
    if job.billed_hours is not None:
        text += f": {hours_span(job.billed_hours)} of machine time"
    if found is not None and found["exchange_s"] is None:
        text += (
            f"; each card sends the others {found['sent_bytes'] / GB:.1f} GB a step, whose time is "
            "not counted, since no catalog says how fast their private network is: see "
            "docs/scale.md"
        )
    return text


def quota_warning(priced: JobOffer | None, nodes: int) -> str:
    """Return what to warn of where the quota admits fewer machines than a run is to have."""
    left = None if priced is None else priced.offer.quota_left
    if priced is None or left is None or nodes < 2 or left >= nodes or priced.offer.blocked_by:
        return ""
    return (
        f"the quota in {priced.offer.place} admits {left} of {nodes} machines: the others wait "
        "until it is raised"
    )


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
