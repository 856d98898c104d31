"""Rents from whichever of several providers is best, and treats them as one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from infra.catalog.vendors import CATALOGS
from infra.errors import NotAllowed, ProviderError, Transient
from infra.offer import Offer, Want
from infra.provider import (
    Observation,
    OnMessage,
    Provider,
    Removed,
    Safeguard,
    Traits,
    Vm,
    VmSpec,
    ignore_message,
)

OFFERS_WAIT_S = 15.0
"""Each provider answers within seconds by its own promise; one that does not is left out."""
OFFERS_THREAD = "offers"


class SeveralProviders(Provider):
    """Some providers behind the seam of one.

    Every machine and every offer names its own provider, which alone is asked about it. What is
    about no machine is asked of all of them, and one that does not answer hides nothing of the
    others.
    """

    def __init__(
        self,
        members: Sequence[Provider],
        *,
        used_by: Callable[[str], Collection[str] | None] = lambda _run_id: None,
        offers_wait_s: float = OFFERS_WAIT_S,
    ) -> None:
        """Take the members in their order of preference at the same cost.

        `used_by` gives the names of the providers that may have something of a run, None if nobody
        knows: then all of them are asked.
        """
        self._members = {one.name: one for one in members}
        self._used_by = used_by
        self._offers_wait_s = offers_wait_s
        self._requests: dict[str, _OffersRequest] = {}
        self._unanswered: dict[str, ProviderError] = {}
        self.name = " and ".join(self._members)
        self.traits = _shared_traits([one.traits for one in members])

    def offers(self, want: Want) -> list[Offer]:
        """List what could be rented of any provider, provider by provider, each best first.

        All are asked at once. Of one that fails, or does not answer in time, or whose account can
        rent nothing, `unanswered` has the reason, and its offers are blocked by that. Raises the
        error of the first if all fail.
        """
        began_s = time.monotonic()
        for name, member in self._members.items():
            if name not in self._requests or self._requests[name].is_over:
                self._requests[name] = _OffersRequest(member, _want_of(want, name))
        self._unanswered = {}
        listed: list[Offer] = []
        failed = 0
        for name, member in self._members.items():
            left_s = max(began_s + self._offers_wait_s - time.monotonic(), 0.0)
            found = self._requests[name].result(left_s, waited_s=self._offers_wait_s)
            if isinstance(found, ProviderError):
                failed += 1
                self._unanswered[name] = found
                listed += _blocked(name, want, found)
                continue
            problem = member.account_problem()
            if problem is not None:
                self._unanswered[name] = problem
            some = [one for one in found if _is_wanted(one, want)]
            listed += [_blocked_by(one, problem) for one in some] if problem else some
        if failed == len(self._members):
            errors = list(self._unanswered.values())
            raise next((one for one in errors if isinstance(one, Transient)), errors[0])
        return listed

    def unanswered(self) -> Mapping[str, ProviderError]:
        """Return which providers could not be asked at the last `offers`, and why; asks nothing."""
        return dict(self._unanswered)

    def create(self, spec: VmSpec) -> Vm:
        """Create the machine at the provider of its offer.

        What the others left open when they refused goes first: nobody may look there for hours.
        """
        chosen = self._member(spec.offer.provider)
        for member in self._members.values():
            if member is not chosen:
                with contextlib.suppress(ProviderError):  # the end of the run repeats it
                    member.cancel_refused(spec.run_id)
        return chosen.create(spec)

    def observe(self, vm: Vm) -> Observation:
        """Observe the machine once."""
        return self._of(vm).observe(vm)

    def start(self, vm: Vm) -> None:
        """Start a deallocated machine where it is."""
        self._of(vm).start(vm)

    def deallocate(self, vm: Vm) -> None:
        """Release the compute of a machine, keeping its disk."""
        self._of(vm).deallocate(vm)

    def delete(self, run_id: str, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Remove all that the run has, at each provider that may have something of it.

        One provider that fails keeps the others from nothing; its error is raised at the end.
        """
        removed: list[Removed] = []
        errors: list[ProviderError] = []
        used = self._of_run(run_id)
        for member in self._members.values():
            try:
                if member in used:
                    removed += member.delete(run_id, on_message)
                else:
                    member.cancel_refused(run_id)
            except ProviderError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return removed

    def remove(self, vm: Vm, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Remove one machine at its own provider, and leave the others of its run alone."""
        return self._of(vm).remove(vm, on_message)

    def list_all(self) -> list[Vm]:
        """List every machine with our tag, of all providers. Raises the error of one that fails."""
        return [vm for member in self._members.values() for vm in member.list_all()]

    def list_run(self, run_id: str) -> list[Vm]:
        """List what there is of one run, at each provider that may have something of it."""
        return [vm for member in self._of_run(run_id) for vm in member.list_run(run_id)]

    def evict(self, vm: Vm) -> None:
        """Ask the machine's provider to rehearse an eviction."""
        self._of(vm).evict(vm)

    # ---- optional ----

    def traits_of(self, vm: Vm) -> Traits:
        """Return the traits of the machine's own provider."""
        return self._of(vm).traits

    def capacity_ttls_s(self) -> Mapping[str, float]:
        """Return for how long a place without capacity is passed over, by provider that says so."""
        ttls_s: dict[str, float] = {}
        for member in self._members.values():
            ttls_s |= member.capacity_ttls_s()
        return ttls_s

    def set_safeguards(
        self, vm: Vm, *, until_s: float, disk_days: float | None = None
    ) -> list[Safeguard]:
        """Set every safeguard that the machine's provider has."""
        return self._of(vm).set_safeguards(vm, until_s=until_s, disk_days=disk_days)

    def preview_safeguards(
        self, want: Want, *, until_s: float, disk_days: float | None = None
    ) -> list[Safeguard]:
        """Predict the safeguards at each provider that could be asked, named with it."""
        return [
            replace(one, name=f"{one.name} ({name})")
            for name, member in self._members.items()
            if name not in self._unanswered
            for one in member.preview_safeguards(
                _want_of(want, name), until_s=until_s, disk_days=disk_days
            )
        ]

    def account_problem(self) -> ProviderError | None:
        """Return why nothing can be rented at all; None as long as one account can rent."""
        problems = [one.account_problem() for one in self._members.values()]
        return problems[0] if all(problems) else None

    def cancel_refused(self, run_id: str) -> None:
        """Cancel what refused creates of the run left open, at each provider.

        One provider that fails keeps the others from nothing; its error is raised at the end.
        """
        errors: list[ProviderError] = []
        for member in self._members.values():
            try:
                member.cancel_refused(run_id)
            except ProviderError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def allow_caller_ip(self, vm: Vm) -> bool:
        """Let this computer's present address in to the machine."""
        return self._of(vm).allow_caller_ip(vm)

    def update_max_price(self, vm: Vm, max_price_usd_per_h: float | None) -> float | None:
        """Change the machine's price cap where its provider allows that."""
        return self._of(vm).update_max_price(vm, max_price_usd_per_h)

    def stop_reason_from_log(
        self, vm: Vm, *, after_s: float, before_s: float
    ) -> Observation | None:
        """Read why the machine stopped from its provider's log."""
        return self._of(vm).stop_reason_from_log(vm, after_s=after_s, before_s=before_s)

    def billed_until_s(self, vm: Vm) -> float | None:
        """Return when a released machine ceased to bill compute, as its provider reported."""
        return self._of(vm).billed_until_s(vm)

    # ---- members ----

    def _of(self, vm: Vm) -> Provider:
        return self._member(vm.provider)

    def _member(self, name: str) -> Provider:
        if name not in self._members:
            listed = ", ".join(self._members)
            raise NotAllowed(
                f"the machine is at `{name}`, and `vm.provider` lists only {listed}",
                hint=f"add `{name}` to `vm.provider` in run.yaml",
            )
        return self._members[name]

    def _of_run(self, run_id: str) -> list[Provider]:
        """Return the providers that may have something of a run."""
        used = self._used_by(run_id)
        return [one for name, one in self._members.items() if used is None or name in used]


class _OffersRequest:
    """One provider that is asked for offers beside the others."""

    def __init__(self, provider: Provider, want: Want) -> None:
        self._name = provider.name
        self._found: list[Offer] | Exception | None = None
        self._thread = threading.Thread(
            target=self._ask, args=(provider, want), name=OFFERS_THREAD, daemon=True
        )
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether it has answered or failed, so that it may be asked again."""
        return not self._thread.is_alive()

    def _ask(self, provider: Provider, want: Want) -> None:
        try:
            self._found = provider.offers(want)
        except Exception as error:  # noqa: BLE001  (raised again by whoever waits)
            self._found = error

    def result(self, wait_s: float, *, waited_s: float) -> list[Offer] | ProviderError:
        """Wait for the answer; return it, or why there is none. Raises what is no such error."""
        self._thread.join(wait_s)
        found = self._found
        if found is None:
            return Transient(f"{self._name} did not answer within {waited_s:.0f} s")
        if isinstance(found, Exception) and not isinstance(found, ProviderError):
            raise found
        return found


def _want_of(want: Want, provider: str) -> Want:
    """Return the question as one provider gets it: with the regions that it has."""
    catalog = CATALOGS.get(provider)
    if catalog is None:
        return want
    there = [one for one in want.regions if not catalog.region_list.name_problem(one)]
    return replace(want, regions=tuple(there))


def _is_wanted(offer: Offer, want: Want) -> bool:
    """Whether an offer has one of the named cards; without a catalog its own word counts."""
    if not want.gpus:
        return True
    catalog = CATALOGS.get(offer.provider)
    if catalog is None:
        return offer.gpu in want.gpus
    return any(offer.gpu == size.gpu for card in want.gpus for size in catalog.matching(card))


def _blocked(provider: str, want: Want, error: ProviderError) -> list[Offer]:
    """Return one offer at reference prices for a provider that gave none, blocked by why."""
    catalog = CATALOGS.get(provider)
    cards = [want.gpu] if want.gpu else [*want.gpus] or [""]
    count = want.gpu_count
    sizes = (
        [size for card in cards for size in catalog.with_cards(card, count)[:1]] if catalog else []
    )
    if catalog is None or not sizes:
        return []
    size = sizes[0]
    offer = Offer(
        provider=provider,
        region=catalog.spot_region,
        size=size.size,
        gpu=size.gpu,
        gpu_count=int(size.gpu_count),
        gpu_memory_gb=size.gpu_memory_gb,
        spot_usd_per_h=catalog.reference_spot(size),
        price_source=f"catalog of {catalog.spot_date}",
        priced_at=catalog.spot_date,
    )
    return [_blocked_by(offer, error)]


def _blocked_by(offer: Offer, error: ProviderError) -> Offer:
    """Return an offer that cannot be taken because its provider cannot be asked."""
    hint = f"; {error.hint}" if error.hint else ""
    return replace(
        offer,
        blocked_by=f"{offer.provider} could not be asked: {error}{hint}",
        clears=isinstance(error, Transient),
    )


def _shared_traits(traits: Sequence[Traits]) -> Traits:
    """Return what can be said of any machine before it is known who rents it out."""
    return Traits(
        rents=all(one.rents for one in traits),
        evicts=any(one.evicts for one in traits),
        simulated_prices=any(one.simulated_prices for one in traits),
        has_safeguards=any(one.has_safeguards for one in traits),
        keeps_disk=all(one.keeps_disk for one in traits),
        cap_changes=all(one.cap_changes for one in traits),
        several_machines=all(one.several_machines for one in traits),
    )
