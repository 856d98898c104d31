"""Keeps the plan of a run that begins, to be held against what happens; it never stops a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from commands.runs import factory
from commands.runs.config import LoadedConfig
from commands.runs.planning.actual import COMPUTE, DISK
from commands.runs.planning.estimates import has_card
from commands.runs.planning.job_inputs import job_inputs
from commands.runs.planning.planned import Planned, write_planned
from commands.runs.planning.pricing import order_for, priced_offer, rehearsed_offer
from commands.runs.planning.ranking import JobOffer
from commands.runs.request import RunRequest
from commands.ui.errors import QftError
from infra.errors import ProviderError
from infra.provider import Provider

UNPLANNED = (ProviderError, QftError, OSError, ValueError, LookupError, ArithmeticError)
"""What may go wrong with a plan: prices that nobody gives, files that changed meanwhile."""


def keep_plan(request: RunRequest, *, clock: Callable[[], float]) -> None:
    """Write the plan of a run that begins, in place of one that no longer holds.

    It is of the page that was just shown; without one the provider is asked. What keeps a plan from
    being made is reported, and the run goes on without.
    """
    loaded, folder = request.loaded, request.folder
    try:
        folder.plan.unlink(missing_ok=True)
        first = request.page_offer
        if first is None:
            first = first_offer(loaded, factory.make_provider(loaded.config.vm, request.home))
        planned = None if first is None else planned_of(first, at_s=clock())
        if planned is not None:
            write_planned(folder, planned)
    except UNPLANNED as error:
        request.console.log(f"note: no plan is kept to compare the run with: {error}")


def planned_of(first: JobOffer, *, at_s: float) -> Planned | None:
    """Return what a job needs and costs on an offer, as it is kept; None if nothing is known."""
    offer, job, cost = first.offer, first.job, first.cost
    if job is None or (job.memory_bytes is None and not job.parts):
        return None
    is_rented = offer.spot_usd_per_h > 0
    return Planned(
        at_s=at_s,
        card=job.card,
        place=f"{offer.size} in {offer.place}" if is_rented else "",
        usd_per_h=offer.spot_usd_per_h if is_rented else None,
        memory_bytes=job.memory_bytes,
        hours={part.name: part.hours for part in job.parts},
        usd={} if cost is None else {COMPUTE: cost.compute, DISK: cost.disk},
    )


def first_offer(loaded: LoadedConfig, provider: Provider) -> JobOffer | None:
    """Return the offer that a run would try first, with what the job needs and costs there.

    A rehearsal is planned for this computer, whose processor trains, not for the card that it
    stands for. None where there is no offer, or where nobody knows the card that will train: that
    of this computer, or that of an own machine if run.yaml does not name it.
    """
    vm = loaded.config.vm
    is_named = "gpu" in vm.model_fields_set and vm.ssh is not None and vm.ssh.gpu
    if (loaded.own_machine and not is_named) or (loaded.simulated and has_card()):
        return None
    offers = provider.offers(factory.want(vm))
    if len(vm.providers) > 1:
        offers = order_for(loaded)(offers)
    offer = next((one for one in offers if not one.blocked_by), None)
    if offer is None:
        return None
    inputs = replace(job_inputs(loaded), may_count=False)  # a run is not to wait for a count
    return (rehearsed_offer if loaded.simulated else priced_offer)(loaded, offer, inputs=inputs)
