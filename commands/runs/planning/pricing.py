"""Prices the job of a run.yaml on what a provider offers, by the estimate for the offered card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from commands.runs.config import LoadedConfig
from commands.runs.hub_base import HubAnswer
from commands.runs.planning.estimates import HERE, estimate_job
from commands.runs.planning.job_estimate import JobEstimate
from commands.runs.planning.job_inputs import JobInputs, job_inputs, with_hub
from commands.runs.planning.job_parts import Machine, machine_of
from commands.runs.planning.ranking import (
    JobOffer,
    as_tried,
    cheapest_first,
    in_order_of_cost,
    job_offer,
    reference_offers,
    working_first,
)
from commands.ui.errors import QftError
from infra.offer import Offer
from infra.run.budget import Budget
from trainer.estimate.host import PROCESS_BYTES


def budget_of(loaded: LoadedConfig) -> Budget:
    """Return the limits that run.yaml sets."""
    table = loaded.config.budget
    return Budget(
        usd=table.usd,
        hours=table.hours,
        evictions=table.evictions,
        disk_days=table.disk_days,
    )


def inputs_of(loaded: LoadedConfig, hub: HubAnswer | None = None) -> JobInputs:
    """Return what decides the hours beside the card, with what the hub said of the base."""
    inputs = job_inputs(loaded)
    return inputs if hub is None else with_hub(inputs, hub)


def priced_offer(
    loaded: LoadedConfig,
    offer: Offer,
    *,
    inputs: JobInputs | None = None,
    cards: int | None = None,
) -> JobOffer:
    """Put what the job needs and costs beside an offer; `inputs` are given where they are known.

    `cards` are those of `vm.gpus` on each of `vm.nodes` machines; if given, those of one machine.
    """
    card, inputs = offer.gpu or loaded.config.vm.card, inputs or job_inputs(loaded)
    job = estimate_job(loaded, card, offer=offer, inputs=inputs, cards=cards)
    return job_offer(
        offer,
        job,
        cap=loaded.config.vm.max_price,
        budget=budget_of(loaded),
        host_bytes=_host_bytes(inputs, job),
    )


def _host_bytes(inputs: JobInputs, job: JobEstimate | None) -> float | None:
    """Return what a machine needs of its own memory: a process for each card, one that loads.

    A sharded base is loaded there whole, by one process after the other.
    """
    if inputs.host_bytes is None or job is None or job.sharing is None:
        return inputs.host_bytes
    base = job.sharing["whole_base_bytes"] if job.sharing["sharded"] else 0.0
    return float(inputs.host_bytes + (job.cards // job.nodes - 1) * PROCESS_BYTES + base)


def one_card(loaded: LoadedConfig, several: JobOffer, inputs: JobInputs) -> JobOffer | None:
    """Return the same job on one of the cards that do it together, at dated prices.

    None if one does it, or no catalog has a machine with one.
    """
    if several.job is None or several.job.cards < 2:
        return None
    offers = reference_offers(
        several.offer.provider, cap=None, idle_usd_per_h=several.offer.idle_usd_per_h
    )
    for offer in offers:
        if offer.gpu == several.offer.gpu:
            return priced_offer(loaded, offer, inputs=replace(inputs, may_count=False), cards=1)
    return None


def priced_offers(
    loaded: LoadedConfig, offers: Sequence[Offer], *, inputs: JobInputs | None = None
) -> list[JobOffer]:
    """Do the same for many offers, in their order.

    What the job needs is found once for a card and a kind of machine: a vendor with zones has
    hundreds of offers, which differ in little but the price.
    """
    inputs = inputs or job_inputs(loaded)
    jobs: dict[tuple[str, Machine], JobOffer] = {}
    priced = []
    for offer in offers:
        key = (offer.gpu, machine_of(loaded, offer, here=False))
        if key not in jobs:
            jobs[key] = priced_offer(loaded, offer, inputs=inputs)
        priced.append(
            job_offer(
                offer,
                jobs[key].job,
                cap=loaded.config.vm.max_price,
                budget=budget_of(loaded),
                host_bytes=_host_bytes(inputs, jobs[key].job),
            )
        )
    return priced


def rehearsed_offer(
    loaded: LoadedConfig, offer: Offer, *, inputs: JobInputs | None = None
) -> JobOffer:
    """Put beside a simulated offer what the job needs of this computer, at the offer's price.

    All of its hours count as if they were rented, as the budget of a rehearsal counts them.
    """
    found = estimate_job(loaded, HERE, offer=offer, inputs=inputs)
    job = replace(found, parts=tuple(replace(part, billed=True) for part in found.parts))
    return job_offer(offer, job, cap=loaded.config.vm.max_price, budget=budget_of(loaded))


def order_for(loaded: LoadedConfig) -> Callable[[Sequence[Offer]], list[Offer]]:
    """Return how a run orders what its provider offers, and which of it cannot work.

    If run.yaml names the card, the order stays, and machines that cannot load the base are blocked
    as long as others can. Where any card will do, by what the job costs on it; too small ones are
    blocked. Of several providers, by what the job costs at each place. An estimate that cannot be
    made changes nothing.
    """
    if loaded.own_machine or loaded.simulated:  # a rehearsal trains on this computer
        return list

    def order(offers: Sequence[Offer]) -> list[Offer]:
        try:
            priced = priced_offers(loaded, offers)
        except (QftError, OSError, ValueError, LookupError, ArithmeticError):
            return list(offers)  # such as rows that are gone since: the machine has them already
        if loaded.config.vm.card and all(one.too_small for one in priced):
            return list(offers)  # whoever names such a card may try it
        return as_tried(in_order_tried(loaded, priced))

    return order


def in_order_tried(loaded: LoadedConfig, priced: Sequence[JobOffer]) -> list[JobOffer]:
    """Return priced offers in the order in which a run tries them."""
    vm = loaded.config.vm
    if len(vm.providers) > 1:
        return cheapest_first(priced)
    return working_first(priced) if vm.card else in_order_of_cost(priced)
