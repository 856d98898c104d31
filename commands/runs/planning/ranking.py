"""Orders cards and offers by what this job costs on them in all, not by the hour; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from commands.runs.planning.costs import Cost, cost_of_job
from commands.runs.planning.figures import GB, a_card, gigabytes
from commands.runs.planning.job_estimate import JobEstimate
from infra.catalog.vendor import GpuSize, VendorCatalog
from infra.catalog.vendors import CATALOGS, find_size
from infra.offer import Offer
from infra.renting.prices import catalog_quote, price_obstacle
from infra.run.budget import Budget

GIB = 2**30
GUESSED = "guessed from on demand"


@dataclass(frozen=True, kw_only=True)
class JobOffer:
    """One offer with what the job needs and costs there."""

    offer: Offer
    job: JobEstimate | None = None
    """None for an own machine whose card nobody has looked at."""
    cost: Cost | None = None
    """None if the hours are not known, or nothing is rented."""
    cap: float | None = None
    """The price per hour above which nothing is rented."""
    too_small: str = ""
    """Why the job cannot work there, however free the machine is; empty if it can."""

    @property
    def is_free(self) -> bool:
        """Whether it can be rented now, and the job can work there as far as known."""
        return not self.offer.blocked_by and not self.too_small

    @property
    def too_dear(self) -> bool:
        """Whether it costs more per hour than the cap."""
        return self.cap is not None and self.offer.spot_usd_per_h > self.cap

    @property
    def likely_usd(self) -> float:
        """What the job likely costs there; infinite if that is not known."""
        return math.inf if self.cost is None else self.cost.total.likely

    def to_json(self) -> dict[str, Any]:
        """Return plain values: what the job costs there, and where."""
        offer = self.offer
        return {
            "card": offer.gpu,
            "size": offer.size,
            "place": offer.place,
            "usd_per_h": offer.spot_usd_per_h,
            "price_source": offer.price_source,
            "priced_at": offer.priced_at,
            "blocked_by": offer.blocked_by or self.too_small or None,
            "fits": None if self.job is None else self.job.fits,
            "hours": _span(None if self.job is None else self.job.hours),
            "usd": _span(None if self.cost is None else self.cost.total),
        }


def _span(span: Any) -> dict[str, float] | None:
    return None if span is None else asdict(span)


def job_offer(
    offer: Offer,
    job: JobEstimate | None,
    *,
    cap: float | None,
    budget: Budget,
    host_bytes: float | None = None,
) -> JobOffer:
    """Put what a job needs and costs beside an offer.

    `host_bytes` is the memory that the machine itself needs, beside that of its card.
    """
    rented = job is not None and offer.spot_usd_per_h > 0
    cost = cost_of_job(offer, job, cap=cap, budget=budget) if job is not None and rented else None
    too_small = card_obstacle(job) or _host_obstacle(offer, host_bytes)
    return JobOffer(offer=offer, job=job, cost=cost, cap=cap, too_small=too_small)


def card_obstacle(job: JobEstimate | None) -> str:
    """Explain why a job cannot work on a card; empty if it can, or nobody knows."""
    if job is None or job.fits is not False:
        return ""
    if job.memory_bytes is None:
        return f"{a_card(job.card)} is too small"
    need, there = gigabytes(job.memory_bytes), job.card_bytes / GB
    return f"{a_card(job.card)} is too small: {need} needed, {there:.1f} there"


def _host_obstacle(offer: Offer, host_bytes: float | None) -> str:
    size = find_size(offer.size, provider=offer.provider)
    if size is None or host_bytes is None or host_bytes <= size.memory_gb * GIB:
        return ""
    return (
        f"the machine has {size.memory_gb:.0f} GiB of memory, and loading the base takes "
        f"{host_bytes / GIB:.0f} GiB; take a larger size, or save the base as safetensors"
    )


def in_order_of_cost(offers: Iterable[JobOffer]) -> list[JobOffer]:
    """Order offers of several cards: what can be had first, cards by what the job costs there.

    A card stands where its cheapest free offer does; within a card the order stays. Single zones
    come behind all regions, since each costs a refusal of its own to find out.
    """
    listed = list(offers)
    least: dict[str, float] = {}
    for one in listed:
        if one.is_free:
            least[one.offer.gpu] = min(least.get(one.offer.gpu, math.inf), one.likely_usd)
    rank = {gpu: index for index, gpu in enumerate(sorted(least, key=lambda gpu: least[gpu]))}
    last = len(rank)
    return sorted(
        listed,
        key=lambda one: (not one.is_free, bool(one.offer.zone), rank.get(one.offer.gpu, last)),
    )


def cheapest_first(offers: Iterable[JobOffer]) -> list[JobOffer]:
    """Order offers of several providers by what the job costs on each; what can be had comes first.

    A single zone of a region that is offered as a whole comes behind, since it costs a refusal of
    its own to find out. Offers that cost the same keep their order.
    """
    listed = list(offers)
    whole = {_region_key(one) for one in listed if not one.offer.zone}
    return sorted(
        listed,
        key=lambda one: (
            not one.is_free,
            bool(one.offer.zone) and _region_key(one) in whole,
            one.likely_usd,
        ),
    )


def _region_key(one: JobOffer) -> tuple[str, str, str]:
    return one.offer.provider, one.offer.region, one.offer.size


def working_first(offers: Iterable[JobOffer]) -> list[JobOffer]:
    """Order offers of the card that was named: as they are, but those that can work first."""
    return sorted(offers, key=lambda one: not one.is_free)


def as_tried(ordered: Sequence[JobOffer]) -> list[Offer]:
    """Return offers as a run tries them; those on which the job cannot work are blocked."""
    return [
        replace(one.offer, blocked_by=one.too_small, clears=False)
        if one.too_small and not one.offer.blocked_by
        else one.offer
        for one in ordered
    ]


def reference_offers(
    provider: str, *, cap: float | None, idle_usd_per_h: float, cards: int = 1
) -> list[Offer]:
    """Return the cheapest size with so many of each card in a catalog, at its dated prices.

    For cards that nobody asked the provider about. A provider without a catalog, such as the
    simulated one, gets the sizes of all catalogs.
    """
    catalogs = [CATALOGS[provider]] if provider in CATALOGS else [*CATALOGS.values()]
    cheapest: dict[str, tuple[float, VendorCatalog, GpuSize]] = {}
    for catalog in catalogs:
        for size in catalog.matching():
            price = catalog.reference_spot(size)
            enough = size.gpu_count == cards or size.gpu_count > cards > 1
            if enough and price < cheapest.get(size.gpu, (math.inf,))[0]:
                cheapest[size.gpu] = (price, catalog, size)
    return [
        _reference_offer(catalog, size, cap=cap, idle_usd_per_h=idle_usd_per_h)
        for _, catalog, size in cheapest.values()
    ]


def _reference_offer(
    catalog: VendorCatalog, size: GpuSize, *, cap: float | None, idle_usd_per_h: float
) -> Offer:
    quote = catalog_quote(catalog, size.size, catalog.spot_region)
    price = catalog.reference_spot(size)
    guessed = "" if size.spot_usd_per_h is not None else f", spot {GUESSED}"
    return Offer(
        provider=catalog.provider,
        region=catalog.spot_region,
        size=size.size,
        gpu=size.gpu,
        gpu_count=max(1, int(size.gpu_count)),
        gpu_memory_gb=size.gpu_memory_gb,
        spot_usd_per_h=price,
        on_demand_usd_per_h=min(size.on_demand_usd_per_h.values(), default=None),
        idle_usd_per_h=idle_usd_per_h,
        price_source=f"{quote.source}{guessed}",
        priced_at=quote.priced_at,
        blocked_by=price_obstacle(price, cap),
        clears=True,
    )


def cheapest_by_card(
    priced: Iterable[JobOffer], others: Mapping[str, JobOffer]
) -> tuple[JobOffer, ...]:
    """Return the best offer of each card, by what the job costs there; what is too small last.

    `others` are reference offers by card, for cards of which nothing is offered.
    """
    best: dict[str, JobOffer] = {}
    for one in priced:
        before = best.get(one.offer.gpu)
        if before is None or (not one.is_free, one.likely_usd) < (
            not before.is_free,
            before.likely_usd,
        ):
            best[one.offer.gpu] = one
    found = [*best.values(), *(one for gpu, one in others.items() if gpu not in best)]
    return tuple(sorted(found, key=lambda one: (bool(one.too_small), one.likely_usd)))
