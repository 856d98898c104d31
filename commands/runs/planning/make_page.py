"""Makes the page of `qft plan`: checks what is named, asks for offers, prices the job on each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from commands.runs import factory, hub_base
from commands.runs.base_checks import require_trainable
from commands.runs.base_description import table_base
from commands.runs.config import (
    LoadedConfig,
    absent_files,
    check_data_and_model,
    require_weights,
)
from commands.runs.extras import missing_packages_text, needed_here
from commands.runs.find_config import find_config
from commands.runs.home import environment, qft_home, run_folder
from commands.runs.parent_adapter import resolve_parent
from commands.runs.planning.answer import Answer, answer
from commands.runs.planning.estimates import (
    cores,
    estimate_local_run,
    estimate_run,
    has_card,
    length_warning,
    local_estimate_line,
    require_embedded_tokens,
    why_unknown,
)
from commands.runs.planning.job_inputs import JobInputs
from commands.runs.planning.make_advice import advice_on, advice_on_rehearsal
from commands.runs.planning.page import PlanPage
from commands.runs.planning.priced_change import Advice
from commands.runs.planning.pricing import (
    budget_of,
    in_order_tried,
    inputs_of,
    one_card,
    priced_offer,
    priced_offers,
    rehearsed_offer,
)
from commands.runs.planning.ranking import (
    JobOffer,
    cheapest_by_card,
    reference_offers,
)
from commands.runs.planning.services import service_costs
from commands.ui.errors import CloudError, Exit, UsageError
from commands.ui.output import log
from infra.config import VmTable
from infra.errors import ProviderError
from infra.offer import Offer, Want
from infra.provider import Provider, Safeguard
from infra.run.budget import Budget, budget_end_s, worst_case_usd
from infra.run.state import RunState


def make_plan(wanted: str) -> PlanPage:
    """Check a run's config and base, and plan it. Raises a class of `commands.ui.errors`."""
    home = qft_home(environment())
    loaded, _ = resolve_parent(find_config(wanted, home), home)
    warnings = check_data_and_model(loaded, absent=absent_files(loaded))
    begun = hub_base.base_begun_with(loaded, run_folder(home, loaded.config.name))
    base = hub_base.inspect_base(loaded, log, begun)
    require_trainable(loaded)
    require_embedded_tokens(loaded)
    return plan_of(loaded, home, base=base, warnings=warnings)


def plan_of(
    loaded: LoadedConfig,
    home: Path,
    *,
    base: hub_base.HubAnswer | None = None,
    warnings: Sequence[str] = (),
) -> PlanPage:
    """Plan a checked run: ask its provider for offers and price the job on each.

    `warnings` are what the check of its rows found. Raises CloudError where the provider refuses
    to answer; creates nothing.
    """
    vm = loaded.config.vm
    budget = budget_of(loaded)
    provider, want = factory.make_provider(vm, home), factory.want(vm)
    try:
        found = provider.offers(want)
        safeguards = _preview_safeguards(provider, want, budget)
    except ProviderError as error:
        raise CloudError(str(error), hint=error.hint) from error
    # Which card an own machine has is for set-up to find out, unless run.yaml names it.
    own = f"{vm.ssh.user}@{vm.ssh.host}:{vm.ssh.port}" if vm.ssh and vm.provider == "ssh" else ""
    knows_card = not own or ("gpu" in vm.model_fields_set and bool(vm.ssh and vm.ssh.gpu))
    inputs = inputs_of(loaded, base) if knows_card else None
    offers = _priced(loaded, found, inputs)
    cards = () if own or inputs is None else _cards(loaded, offers, inputs)
    estimate = estimate_run(loaded) if knows_card else None
    at_home, card = vm.provider == "local", has_card()
    here = estimate_local_run(loaded) if at_home and not card else None
    rehearsed = [rehearsed_offer(loaded, one.offer) for one in offers] if here else []
    lacks = (*missing_packages_text(needed_here(loaded.config)), *_missing_files(loaded))
    steps = loaded.config.train.steps or (estimate or {}).get("steps")
    size = None if inputs is None or inputs.shape is None else inputs.shape.parameters
    tokens = next((one.job.trained_tokens for one in offers if one.job is not None), None)
    return PlanPage(
        run=loaded.config.name,
        provider=provider.name,
        offers=offers,
        cards=cards,
        max_price_usd_per_h=vm.max_price,
        budget=budget,
        worst_case_usd=worst_case_usd(budget, vm.max_price),
        simulated=provider.traits.simulated_prices,
        answer=_once_complete(
            _answer(loaded, offers, cards, steps=steps, rehearsed=rehearsed),
            account=provider.account_problem(),
            lacks=lacks,
        ),
        advice=_advice(loaded, offers, cards, inputs, rehearsed),
        services=() if own else service_costs(size, tokens),
        estimate=estimate,
        unknown=why_unknown(loaded) if estimate is None else "",
        too_long=length_warning(loaded),
        row_warnings=tuple(warnings),
        own=own,
        local_estimate=here,
        here=local_estimate_line(here, threads=cores(loaded), card=card) if at_home else "",
        note="; ".join(_notes(vm, provider)) if knows_card else "",
        safeguards=safeguards,
        lacks=lacks,
        gpus=vm.gpus,
        nodes=vm.nodes,
        one_card=None if inputs is None or not offers else one_card(loaded, offers[0], inputs),
        base=base,
        table_base=table_base(loaded),
        offers_at_s=time.time(),
    )


def _priced(
    loaded: LoadedConfig, found: Sequence[Offer], inputs: JobInputs | None
) -> tuple[JobOffer, ...]:
    """Return the offers with what the job costs there, as a run tries them; without inputs bare."""
    if inputs is None:
        return tuple(JobOffer(offer=one) for one in found)
    priced = priced_offers(loaded, found, inputs=inputs)
    return tuple(in_order_tried(loaded, priced))


def _cards(
    loaded: LoadedConfig, offers: Sequence[JobOffer], inputs: JobInputs
) -> tuple[JobOffer, ...]:
    """Return the best offer of each card; of those that are not offered, at reference prices."""
    vm = loaded.config.vm
    idle = max((one.offer.idle_usd_per_h for one in offers), default=0.0)
    listed = {one.offer.gpu for one in offers}
    found = [
        one
        for provider in vm.providers
        for one in reference_offers(provider, cap=vm.max_price, idle_usd_per_h=idle, cards=vm.gpus)
        if one.gpu not in listed
    ]
    if len(vm.providers) > 1:  # the last of a card counts
        found.sort(key=lambda one: -one.spot_usd_per_h)
    others = {one.gpu: priced_offer(loaded, one, inputs=inputs) for one in found}
    return cheapest_by_card(offers, others)


def _answer(
    loaded: LoadedConfig,
    offers: Sequence[JobOffer],
    cards: Sequence[JobOffer],
    *,
    steps: int | None,
    rehearsed: Sequence[JobOffer],
) -> Answer:
    """Return what a run would do now.

    `rehearsed` has the hours of this computer where it trains, for which the budget pays then.
    """
    cap, budget = loaded.config.vm.max_price, budget_of(loaded)
    found = answer(_unpaid(offers, rehearsed), cards, cap=cap, budget=budget, steps=steps)
    if not found.goes_ahead:
        return found
    if any(one.job is not None and one.job.fits is False for one in rehearsed):
        text = "nothing was created: this computer has too little free memory to rehearse it"
        return Answer(text=text, exit_code=Exit.USAGE)
    if rehearsed:
        found = answer(rehearsed, (), cap=cap, budget=budget, steps=steps)
    if not found.goes_ahead:
        return found
    if loaded.own_machine:
        text = "nothing was looked at or changed there: `qft doctor` looks, `qft run` goes ahead"
        return Answer(text=text)
    return found


def _unpaid(offers: Sequence[JobOffer], rehearsed: Sequence[JobOffer]) -> list[JobOffer]:
    """Return the offers; those of a rehearsal without costs, for which no budget pays."""
    return [replace(one, cost=None) for one in offers] if rehearsed else [*offers]


def _advice(
    loaded: LoadedConfig,
    offers: Sequence[JobOffer],
    cards: Sequence[JobOffer],
    inputs: JobInputs | None,
    rehearsed: Sequence[JobOffer],
) -> tuple[Advice, ...]:
    """Return what would make a run go ahead: on its card, then on this computer if it trains."""
    found = advice_on(loaded, _unpaid(offers, rehearsed), cards, inputs)
    return found or advice_on_rehearsal(loaded, rehearsed, inputs)


def _once_complete(found: Answer, *, account: ProviderError | None, lacks: Sequence[str]) -> Answer:
    """Take into account what the account at the cloud lacks, and what is not here yet."""
    if not found.goes_ahead:
        return found
    if account is not None:
        remedy = f": {account.hint}" if account.hint else ""
        why = str(account).rstrip(".")
        return Answer(text=f"nothing was created: {why}{remedy}", exit_code=Exit.CLOUD)
    if not lacks:
        return found
    return Answer(text="nothing was created; `qft run` goes ahead once that is there")


def _missing_files(loaded: LoadedConfig) -> list[str]:
    """Return what a run would refuse for: rows that are not here, a base that is only described."""
    names = ", ".join(f"`{path.name}`" for path in absent_files(loaded))
    absent = [f"rows are not here yet: {names}"] if names else []
    try:
        require_weights(loaded)
    except UsageError as error:
        absent.append(f"{error.message.removesuffix('; nothing was rented')}: {error.hint}")
    return absent


def _preview_safeguards(provider: Provider, want: Want, budget: Budget) -> tuple[Safeguard, ...]:
    """Return the safeguards of a machine rented now and kept until the budget's end."""
    now_s = time.time()
    until_s = budget_end_s(budget, RunState(), now_s, want.max_price_usd_per_h or 0.0)
    return tuple(provider.preview_safeguards(want, until_s=until_s, disk_days=budget.disk_days))


def _notes(vm: VmTable, provider: Provider) -> list[str]:
    """Return what to know of names in the table, and which provider could not be asked."""
    silent = [f"{name} could not be asked: {why}" for name, why in provider.unanswered().items()]
    return [*filter(None, notes_on_names(vm)), *silent]


def notes_on_names(vm: VmTable) -> list[str]:
    """Return notes on names under `vm` that mean something else than they seem to."""
    gpu = "; ".join(vm.card_notes)
    is_rented = vm.rents
    return [gpu, vm.image.note(vm.card) if is_rented and vm.image else ""]
