"""`qft plan`: shows what would be rented, at what price, and the worst-case bill."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import typer

from commands.runs import factory, hub_base
from commands.runs.base_checks import require_trainable
from commands.runs.config import absent_files, check_data_and_model
from commands.runs.extras import missing_packages_text, needed_here
from commands.runs.find_config import find_config
from commands.runs.home import environment, qft_home, run_folder
from commands.runs.parent_adapter import resolve_parent
from commands.runs.planning.estimates import (
    cores,
    estimate_line,
    estimate_local_run,
    estimate_run,
    has_card,
    length_warning,
    local_estimate_line,
    require_embedded_tokens,
    why_unknown,
)
from commands.ui.errors import CloudError
from commands.ui.options import Json, Run, examples
from commands.ui.output import log, print_data, print_json
from infra.catalog.gpus import resolve_gpu
from infra.config import VmTable
from infra.errors import ProviderError
from infra.provider import Offer, Provider, Safeguard, Want
from infra.run.budget import Budget, budget_end_s, worst_case_usd
from infra.run.state import RunState
from infra.timestamps import parse_utc_s

CAP_MARGIN = 1.2
"""A cap less than a fifth above the market is passed by ordinary moves of the price."""

EXAMPLES = {
    "qft plan": "what the run.yaml here would rent and cost",
    "qft plan other.yaml --json": "the same of another file, for a script",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(run: Run = "", *, as_json: Json = False) -> None:
    """Show offers, prices and the worst-case bill; create nothing."""
    page = make_plan(run)
    if as_json:
        print_json(page.to_json())
    else:
        print_data("\n".join(page.lines()))


@dataclass(frozen=True, kw_only=True)
class PlanPage:
    """The offers in the order they would be tried, and what limits the bill."""

    run: str
    provider: str
    offers: tuple[Offer, ...]
    max_price_usd_per_h: float | None
    budget: Budget
    worst_case_usd: float | None
    simulated: bool
    estimate: dict[str, Any] | None = None
    """What `trainer.estimate` estimates; None if the sizes of the model are unknown."""
    unknown: str = ""
    """Why they are, and what to do; empty if they are known, or the card is not."""
    too_long: str = ""
    """What to warn of if rows may be longer than the base's texts."""
    local_estimate: dict[str, Any] | None = None
    """The same of this computer, where it trains itself; None if that is unknown."""
    here: str = ""
    """What will happen on this computer, in words; empty if a machine is rented."""
    note: str = ""
    """What the catalog says about the name of the GPU."""
    safeguards: tuple[Safeguard, ...] = ()
    """What can be expected to end the bill when everything of ours is dead."""
    lacks: tuple[str, ...] = ()
    """What `qft run` would refuse for: packages that this computer lacks, and what to type."""
    own: str = ""
    """The user's own machine, as `user@host:port`; empty if one is rented or played."""
    base: hub_base.HubAnswer | None = None
    """What the hub said of the base; None if it is a directory, or nobody answered."""
    offers_at_s: float = 0.0
    """When the offers were asked for, in seconds since 1970: prices are aged by it."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "run": self.run,
            "provider": self.provider,
            "max_price_usd_per_h": self.max_price_usd_per_h,
            "budget": asdict(self.budget),
            "worst_case_usd": self.worst_case_usd,
            "simulated": self.simulated,
            "note": self.note or None,
            "lacks": list(self.lacks),
            "base": self.base.to_json() if self.base else None,
            "forecast": self.estimate,
            "forecast_problem": self.unknown or None,
            "length_warning": self.too_long or None,
            "rehearsal": self.local_estimate,
            "switches": [
                {
                    "name": one.name,
                    "holds": one.is_set,
                    "detail": one.detail,
                    "hint": one.hint or None,
                }
                for one in self.safeguards
            ],
            "offers": [
                asdict(offer) | {"price_age_s": _age_s(offer, self.offers_at_s)}
                for offer in self.offers
            ],
        }

    def lines(self) -> list[str]:
        """Return the lines to print."""
        if self.own:
            return self._lines_of_own()
        cap = self.max_price_usd_per_h
        lines = [
            f"run `{self.run}` on {self.provider}"
            + (f", cap ${_price(cap)}/h" if cap is not None else ", no price cap"),
            "",
        ]
        lines += [
            f"{_mark(offer, self.offers)} {_offer_line(offer, self.offers_at_s)}"
            for offer in self.offers
        ]
        if not self.offers:
            lines.append("  no offer")
        lines += ["", *self._base_lines(), *self._estimate_lines()]
        if warning := _cap_warning(self.offers, cap):
            lines.append(f"warning: {warning}")
        if self.note:
            lines.append(f"note: {self.note}")
        worst = "unlimited: set `budget`" if self.worst_case_usd is None else ""
        lines += [
            "",
            f"budget: {_budget_line(self.budget)}",
            f"worst case: {worst or f'${self.worst_case_usd:.2f}'}"
            + (" (simulated, nobody is charged)" if self.simulated else "")
            + (" while `qft` watches; without it:" if self.safeguards else ""),
            *(_safeguard_line(safeguard) for safeguard in self.safeguards),
            *(f"warning: {lack}" for lack in self.lacks),
            "nothing was created; `qft run` goes ahead"
            if not self.lacks
            else "nothing was created; `qft run` goes ahead once that is there",
        ]
        return lines

    def _lines_of_own(self) -> list[str]:
        """Return the lines for the user's own machine: no offer, no price, no guessed card."""
        lines = [f"run `{self.run}` on your own machine {self.own}, which costs nothing here", ""]
        lines += [*self._base_lines(), *([estimate_line(self.estimate)] if self.estimate else [])]
        hours = self.budget.hours
        limit = "none: set `budget.hours`" if hours is None else _counted(hours, "machine hour")
        return [
            *lines,
            f"limit: {limit}",
            *(f"warning: {lack}" for lack in self.lacks),
            "nothing was looked at or changed there: `qft doctor` looks, `qft run` goes ahead",
        ]

    def _base_lines(self) -> list[str]:
        return [self.base.line] if self.base else []

    def _length_lines(self) -> list[str]:
        return [f"warning: {self.too_long}"] if self.too_long else []

    def _estimate_lines(self) -> list[str]:
        """Return memory and time of a rehearsal here, then on the card that it stands for."""
        if not self.here:
            return [estimate_line(self.estimate, self.unknown)]
        if self.estimate is None and self.local_estimate is not None:  # no card is named
            return [self.here]
        on_card = estimate_line(self.estimate, self.unknown).removeprefix("memory: ")
        return [self.here, f"on a real card: {on_card}"]


def make_plan(wanted: str) -> PlanPage:
    """Ask the provider for offers and add up the worst case."""
    home = qft_home(environment())
    loaded, _ = resolve_parent(find_config(wanted, home), home)
    check_data_and_model(loaded, absent=absent_files(loaded))
    begun = hub_base.base_begun_with(loaded, run_folder(home, loaded.config.name))
    base = hub_base.inspect_base(loaded, log, begun)
    require_trainable(loaded)
    require_embedded_tokens(loaded)
    vm, table = loaded.config.vm, loaded.config.budget
    budget = Budget(usd=table.usd, hours=table.hours, evictions=table.evictions)
    provider, want = factory.make_provider(vm, home), factory.want(vm)
    try:
        offers = tuple(provider.offers(want))
        safeguards = _preview_safeguards(provider, want, budget)
    except ProviderError as error:
        raise CloudError(str(error), hint=error.hint) from error
    # Which card an own machine has is for set-up to find out, unless run.yaml names it.
    own = f"{vm.ssh.user}@{vm.ssh.host}:{vm.ssh.port}" if vm.ssh and vm.provider == "ssh" else ""
    knows_card = not own or ("gpu" in vm.model_fields_set and bool(vm.ssh and vm.ssh.gpu))
    at_home, card = vm.provider == "local", has_card()
    here = estimate_local_run(loaded) if at_home and not card else None
    estimate = estimate_run(loaded) if knows_card else None
    return PlanPage(
        run=loaded.config.name,
        provider=provider.name,
        offers=offers,
        max_price_usd_per_h=vm.max_price,
        budget=budget,
        worst_case_usd=worst_case_usd(budget, vm.max_price),
        simulated=provider.traits.simulated_prices,
        estimate=estimate,
        unknown=why_unknown(loaded) if estimate is None else "",
        too_long=length_warning(loaded),
        own=own,
        local_estimate=here,
        here=local_estimate_line(here, threads=cores(loaded), card=card) if at_home else "",
        note="; ".join(filter(None, _notes(vm))) if knows_card else "",
        safeguards=safeguards,
        lacks=tuple(missing_packages_text(needed_here(loaded.config))),
        base=base,
        offers_at_s=time.time(),
    )


def _preview_safeguards(provider: Provider, want: Want, budget: Budget) -> tuple[Safeguard, ...]:
    """Return the safeguards of a machine rented now and kept until the budget's end."""
    now_s = time.time()
    until_s = budget_end_s(budget, RunState(), now_s, want.max_price_usd_per_h or 0.0)
    return tuple(provider.preview_safeguards(want, until_s=until_s))


def _safeguard_line(safeguard: Safeguard) -> str:
    """Describe a safeguard; whether it will end the bill comes first."""
    if safeguard.is_set:
        return f"will end the bill: {safeguard.name}: {safeguard.detail}"
    how = f"; to get it: {safeguard.hint}" if safeguard.hint else ""
    return f"will NOT end the bill: {safeguard.name}: {safeguard.detail}{how}"


def _cap_warning(offers: tuple[Offer, ...], cap: float | None) -> str:
    """Warn of a cap so close to the market that the machine will soon be evicted; else empty."""
    first = next((candidate for candidate in offers if not candidate.blocked_by), None)
    if first is None or cap is None or cap >= first.spot_usd_per_h * CAP_MARGIN:
        return ""
    return (
        f"the cap of ${_price(cap)}/h is close to the price of now, ${first.spot_usd_per_h:.4f}/h: "
        "a small rise evicts the machine; a higher cap costs nothing extra while the price stays"
    )


def _mark(offer: Offer, offers: tuple[Offer, ...]) -> str:
    """Mark the offer that would be tried first."""
    first = next((candidate for candidate in offers if not candidate.blocked_by), None)
    return "→" if offer is first else " "


def _age_s(offer: Offer, now_s: float) -> float | None:
    """Return the age of an offer's price in seconds; None if it has no date."""
    priced_s = parse_utc_s(offer.priced_at)
    return None if priced_s is None else max(now_s - priced_s, 0.0)


def _price_line(offer: Offer, now_s: float) -> str:
    """Describe the source, the date and the age of a price."""
    age_s = _age_s(offer, now_s)
    if not offer.price_source or age_s is None:
        return f"price from {offer.price_source}" if offer.price_source else ""
    days, hours, minutes = (int(age_s // unit) for unit in (86400, 3600, 60))
    age = f"{days} days" if days > 1 else f"{hours} h" if hours > 1 else f"{minutes} min"
    return f"price of {offer.priced_at}, {age} old, from {offer.price_source}"


def _offer_line(offer: Offer, now_s: float) -> str:
    parts = [
        f"{offer.size} in {offer.place}",
        f"{offer.gpu} {offer.gpu_memory_gb:g} GB" if offer.gpu else "",
        f"${offer.spot_usd_per_h:.4f}/h",
        f"on demand ${offer.on_demand_usd_per_h:.3f}/h" if offer.on_demand_usd_per_h else "",
        f"evicted {offer.eviction_band} %/h" if offer.eviction_band else "",
        f"placement score {offer.placement_score}" if offer.placement_score else "",
        f"quota for {offer.quota_left}" if offer.quota_left is not None else "",
        _price_line(offer, now_s),
        f"blocked: {offer.blocked_by}" if offer.blocked_by else "",
    ]
    return ", ".join(part for part in parts if part)


def _price(usd_per_h: float) -> str:
    """Format a price with two decimals, or as many as it has."""
    text = f"{usd_per_h:.2f}"
    return text if float(text) == usd_per_h else f"{usd_per_h:g}"


def _counted(number: float, thing: str) -> str:
    return f"{number:g} {thing}{'' if number == 1 else 's'}"


def _budget_line(budget: Budget) -> str:
    parts = [
        f"${budget.usd:.2f}" if budget.usd is not None else "",
        _counted(budget.hours, "machine hour") if budget.hours is not None else "",
        _counted(budget.evictions, "eviction") if budget.evictions is not None else "",
    ]
    return ", ".join(part for part in parts if part) or "none"


def _notes(vm: VmTable) -> list[str]:
    """Return notes on names under `vm` that mean something else than they seem to."""
    gpu = resolve_gpu(vm.gpu).note if vm.gpu else ""
    is_rented = vm.provider not in {"local", "ssh"}
    return [gpu, vm.image.note(vm.gpu) if is_rented and vm.image else ""]
