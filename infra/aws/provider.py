"""Implements `Provider` with EC2's persistent spot requests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from infra.aws.context import AwsContext, nodes_on_record
from infra.aws.create import VmCreator
from infra.aws.delete import Deleter
from infra.aws.doctor import Doctor
from infra.aws.listing import Listing
from infra.aws.naming import record_name
from infra.aws.observe import VmObserver
from infra.aws.offers import Offers, quota_covers
from infra.aws.refused_requests import RefusedRequests
from infra.aws.safeguards import AwsSafeguards
from infra.aws.settings import AwsSettings
from infra.aws.start_stop import PowerControl
from infra.errors import NoCapacity, OverQuota, PriceAboveCap, ProviderError
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
from infra.renting.caller import public_address
from infra.renting.checks import Check
from infra.renting.refusal_cache import RefusalCache
from infra.renting.run_record import RunRecord

if TYPE_CHECKING:
    from infra.aws.sdk import AwsClients

REFUSALS_TTL_S: Mapping[type[ProviderError], float] = {
    NoCapacity: 180.0,  # a zone fills and empties within minutes; karpenter waits as long
    PriceAboveCap: 180.0,
    OverQuota: 3600.0,  # unless the quota can be read: then it decides
}


class AwsProvider(Provider):
    """Rents spot machines on EC2. Safe to call again after a crash at any point."""

    def __init__(
        self,
        settings: AwsSettings,
        state_dir: Path,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        clients: AwsClients | None = None,
    ) -> None:
        self._settings = settings
        self._state_dir = state_dir
        self._clock = clock
        self._sleep = sleep
        self._clients = clients

    name = "aws"
    traits = Traits(
        rents=True,
        evicts=True,
        has_safeguards=True,
        cap_changes=False,
        restarts_itself=True,
        several_machines=True,
        capacity_ttl_s=REFUSALS_TTL_S[NoCapacity],
    )

    def offers(self, want: Want) -> list[Offer]:
        """List what could be rented now, zone by zone, best first; creates nothing."""
        return self._offers.list(want)

    def create(self, spec: VmSpec) -> Vm:
        """Create the machine of `spec.run_id`: persistent spot, under the cap; or raise."""
        return self._creator.create(spec)

    def observe(self, vm: Vm) -> Observation:
        """Observe the machine once, and cancel what refused creates left open before it."""
        with contextlib.suppress(ProviderError):  # it stays on record, and `delete` raises it
            self._refused_requests.cancel(vm.run_id, node=vm.node)
        return self._observer.observe(vm)

    def start(self, vm: Vm) -> None:
        """Start a stopped machine under its old cap, and let the caller's address of now in."""
        self._power.start(vm)

    def deallocate(self, vm: Vm) -> None:
        """Stop the machine, which releases its compute and keeps its disk."""
        self._power.deallocate(vm)

    def delete(self, run_id: str, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Cancel the spot request, terminate the machine, and wait until nothing is left."""
        return self._deleter.remove(run_id, on_message)

    def remove(self, vm: Vm, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Cancel the spot request of one machine, terminate it, and wait until nothing is left.

        The security group stays as long as the run has, or had, other machines in it.
        """
        return self._deleter.remove_machine(vm, on_message)

    def cancel_refused(self, run_id: str) -> None:
        """Cancel what refused creates of the run left open, as soon as EC2 shows it.

        Needs nobody to be signed in where none was refused.
        """
        for node in (0, *nodes_on_record(self._state_dir, run_id)):
            if RunRecord.load(self._state_dir, record_name(run_id, node)).refused_at:
                self._refused_requests.wait(run_id, node)
                self._refused_requests.cancel(run_id, node=node)

    def billed_until_s(self, vm: Vm) -> float | None:
        """Read when a stopped machine ceased to bill compute, as EC2 reported."""
        return self._power.billed_until_s(vm)

    def list_all(self) -> list[Vm]:
        """List every machine with our tag in all regions of the account, newest first."""
        return Listing(context=self.context, observer=self._observer).list_all()

    def evict(self, vm: Vm) -> None:
        """Ask AWS to rehearse an interruption, two minutes of notice included."""
        self._power.evict(vm)

    def allow_caller_ip(self, vm: Vm) -> bool:
        """Let the caller's address of now in to SSH; whether the rule had to change."""
        return self._power.allow_caller_ip(vm)

    def set_safeguards(
        self, vm: Vm, *, until_s: float, disk_days: float | None = None
    ) -> list[Safeguard]:
        """Set what ends the bill when everything of ours is dead, and report which of it is set.

        `until_s` is the limit in seconds since 1970; `disk_days` after it the disk may go, too.
        Call again when the limit changes.
        """
        return self._safeguards.set_safeguards(vm, until_s=until_s, disk_days=disk_days)

    def preview_safeguards(
        self, want: Want, *, until_s: float, disk_days: float | None = None
    ) -> list[Safeguard]:
        """Preview which safeguards this account will be able to set; changes nothing."""
        return self._safeguards.preview_safeguards(want, until_s=until_s, disk_days=disk_days)

    def account_problem(self) -> ProviderError | None:
        """Return that nobody is signed in, or that the configuration cannot be used."""
        return self._offers.account_problem()

    def update_max_price(self, vm: Vm, max_price_usd_per_h: float | None) -> float | None:
        """Return the cap in force: no API changes that of a spot request."""
        del max_price_usd_per_h
        return self._power.cap_in_force(vm)

    def checks(self, want: Want) -> list[Check]:
        """Make the checks of `qft doctor`, in the order of mending; changes nothing."""
        return Doctor(context=self.context).checks(want)

    def close(self) -> None:
        """Let go of open connections; the provider can be used again afterwards."""
        if "context" in self.__dict__:
            self.context.clients.close()

    # ---- the parts, made when first needed: importing the SDK takes half a second ----

    @cached_property
    def context(self) -> AwsContext:
        """The account with everything that its parts share."""
        return AwsContext(
            settings=self._settings,
            clients=self._clients or self._open(),
            state_dir=self._state_dir,
            clock=self._clock,
            sleep=self._sleep,
            find_address=lambda: public_address(self._settings.address_endpoint),
        )

    def _open(self) -> AwsClients:
        from infra.aws.sdk import AwsClients

        return AwsClients(self._settings)

    @cached_property
    def _observer(self) -> VmObserver:
        return VmObserver(
            context=self.context,
            price_now=self._offers.price_now,
            safeguard_names=self._safeguards.leftovers,
        )

    @cached_property
    def _refusal_cache(self) -> RefusalCache:
        return RefusalCache(
            path=self._state_dir / "refusals.json",
            clock=self._clock,
            ttl_s=REFUSALS_TTL_S,
            quota_covers=quota_covers,
        )

    @cached_property
    def _offers(self) -> Offers:
        return Offers(context=self.context, refusal_cache=self._refusal_cache)

    @cached_property
    def _deleter(self) -> Deleter:
        return Deleter(
            context=self.context,
            safeguards=self._safeguards,
            refused_requests=self._refused_requests,
        )

    @cached_property
    def _refused_requests(self) -> RefusedRequests:
        return RefusedRequests(context=self.context)

    @cached_property
    def _safeguards(self) -> AwsSafeguards:
        return AwsSafeguards(context=self.context)

    @cached_property
    def _power(self) -> PowerControl:
        return PowerControl(
            context=self.context, observer=self._observer, safeguards=self._safeguards
        )

    @cached_property
    def _creator(self) -> VmCreator:
        return VmCreator(
            context=self.context,
            observer=self._observer,
            deleter=self._deleter,
            safeguards=self._safeguards,
            refused_requests=self._refused_requests,
            refusal_cache=self._refusal_cache,
        )
