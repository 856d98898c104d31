"""Writes the three lines that answer first: memory, hours and dollars of a job; pure."""

from __future__ import annotations

from commands.runs.planning.cards import cards_fact
from commands.runs.planning.costs import TRAIN, Cost
from commands.runs.planning.figures import (
    dollars,
    dollars_span,
    hourly,
    hours,
    hours_span,
    memory,
)
from commands.runs.planning.job_estimate import JobEstimate
from commands.runs.planning.ranking import JobOffer
from commands.ui.wrap import NO_BREAK, wrapped
from infra.catalog.gpus import with_article

INDENT = " " * 9
"""As wide as the longest of the three words and its space."""
SHOWN_PARTS = 3


def three_lines(priced: JobOffer | None, width: int, *, simulated: bool = False) -> list[str]:
    """Return the lines on memory, hours and dollars, wrapped; each says it if nothing is known."""
    job = None if priced is None else priced.job
    cost = None if priced is None else priced.cost
    fact = dollars_fact(cost, simulated=simulated)
    return [*job_lines(job, width), *_line("dollars", fact, width)]


def job_lines(job: JobEstimate | None, width: int) -> list[str]:
    """Return the lines on memory and hours alone, for a machine that costs nothing."""
    memory_line = _line("memory", memory_fact(job), width)
    cards = cards_fact(job)
    return [
        *memory_line,
        *(_line("cards", cards, width) if cards else []),
        *_line("hours", hours_fact(job), width),
    ]


def _line(word: str, fact: str, width: int) -> list[str]:
    return wrapped(f"{word:<{len(INDENT)}}{fact}", width, indent=INDENT)


def memory_fact(job: JobEstimate | None) -> str:
    """Return what the card must hold at the worst moment, and whether it can."""
    if job is None or job.memory_bytes is None:
        return (job.problem if job is not None else "") or "not known for this card"
    figures = memory(job.memory_bytes, job.card, job.card_bytes)
    if job.fits is False:
        return f"{figures}: does NOT fit {with_article(job.card)}"
    rows = f"{job.micro_batch} row{'s' * (job.micro_batch != 1)} at once" if job.micro_batch else ""
    likely = "likely " if job.memory_bytes.high > job.card_bytes else ""
    return f"{figures}: {likely}fits{', ' * bool(rows)}{rows}" if job.fits else figures


def hours_fact(job: JobEstimate | None) -> str:
    """Return how long the job takes from start to end, and its longest parts."""
    if job is None or job.hours is None:
        return (job.problem if job is not None else "") or "not known"
    longest = sorted(job.parts, key=lambda part: (part.name != TRAIN, -part.hours.likely))
    shown = [part for part in job.parts if part in longest[:SHOWN_PARTS] and part.hours.likely > 0]
    parts = [f"{part.name} {hours(part.hours.likely)}".replace(" ", NO_BREAK) for part in shown]
    return f"{hours_span(job.hours)}: {', '.join(parts)}"


def dollars_fact(cost: Cost | None, *, simulated: bool = False) -> str:
    """Return what the job costs in all, the worst case, and what ends it."""
    if cost is None:
        return "not known"
    worst = f"worst case {dollars(cost.worst_usd)}"
    ends = ": the budget ends it" if cost.budget_limits else ""
    played = " (simulated, nobody is charged)" if simulated else ""
    return f"{dollars_span(cost.total)}, {worst}{ends}{played}"


def price_fact(priced: JobOffer) -> str:
    """Return of what the dollars are made: price, disk, on demand, per million tokens."""
    offer, cost = priced.offer, priced.cost
    if cost is None:
        return ""
    disk = f", disk and address {dollars(cost.disk.likely)}" if cost.disk.likely else ""
    several = f"{priced.job.nodes} × " if priced.job is not None and priced.job.nodes > 1 else ""
    parts = [f"at {several}{hourly(offer.spot_usd_per_h)}/h{disk}"]
    if cost.on_demand_usd is not None:
        parts.append(f"{dollars(cost.on_demand_usd)} on demand")
    if cost.usd_per_million_tokens is not None:
        parts.append(f"{dollars(cost.usd_per_million_tokens)} per million trained tokens")
    return "; ".join(parts)
