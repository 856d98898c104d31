"""Implements `Provider` with Azure Resource Manager."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from infra.azure.auto_shutdown import AzureSafeguards, disk_stays
from infra.azure.availability import Availability
from infra.azure.context import AzureContext
from infra.azure.create import VmCreator
from infra.azure.delete import Deleter
from infra.azure.doctor import Doctor
from infra.azure.errors import SubscriptionError
from infra.azure.listing import Listing
from infra.azure.observe import VmObserver
from infra.azure.offers import (
    REFUSALS_TTL_S,
    Offers,
    places_of,
    quota_covers,
)
from infra.azure.permissions import Permissions
from infra.azure.remove import MachineRemover
from infra.azure.run_group import RunGroup
from infra.azure.settings import PUBLIC_ADDRESS, PUBLIC_ARM, AzureSettings
from infra.azure.start_stop import PowerControl
from infra.catalog.azure import AZURE
from infra.errors import NotAllowed, ProviderError, SignedOut
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
from infra.renting.caller import own_address, public_address
from infra.renting.checks import Check
from infra.renting.prices import PriceMonitor
from infra.renting.refusal_cache import RefusalCache

if TYPE_CHECKING:
    from infra.azure.sdk import Arm


class AzureProvider(Provider):
    """Rents spot machines on Azure. Safe to call again after a crash at any point."""

    def __init__(
        self,
        settings: AzureSettings,
        state_dir: Path,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        arm: Arm | None = None,
    ) -> None:
        self._settings = settings
        self._state_dir = state_dir
        self._clock = clock
        self._sleep = sleep
        self._arm = arm

    name = "azure"
    traits = Traits(rents=True, evicts=True, has_safeguards=True, several_machines=True)

    def offers(self, want: Want) -> list[Offer]:
        """List what could be rented now, best first, and what is blocked; creates nothing."""
        self._permissions.prefetch()  # `preview_safeguards` asks next
        return self._offers.list(want)

    def create(self, spec: VmSpec) -> Vm:
        """Create one machine of `spec.run_id`: accepted by ARM, spot, under the cap; or raise."""
        return self._creator.create(spec)

    def observe(self, vm: Vm) -> Observation:
        """Observe the machine once."""
        return self._observer.observe(vm)

    def start(self, vm: Vm) -> None:
        """Start a deallocated machine under its old cap, admitting the caller's address of now."""
        self._power.start(vm)

    def deallocate(self, vm: Vm) -> None:
        """Release the compute and keep the disk; returns when Azure says that it is released."""
        self._power.deallocate(vm)

    def delete(self, run_id: str, on_message: OnMessage = ignore_message) -> list[Removed]:
        """End the run's compute, then remove its resource group and wait until it is gone."""
        return self._deleter.remove(run_id, on_message)

    def remove(self, vm: Vm, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Remove one machine with its disk, card and address; the group and the network stay."""
        return self._remover.remove(vm, on_message)

    def billed_until_s(self, vm: Vm) -> float | None:
        """Read when a released machine ceased to bill compute, as Azure reported."""
        return self._power.billed_until_s(vm)

    def list_all(self) -> list[Vm]:
        """List every machine with our tag, newest first; this computer's also without it."""
        return Listing(context=self.context, observer=self._observer).list_all()

    def evict(self, vm: Vm) -> None:
        """Ask Azure to rehearse an eviction; the machine is deallocated within minutes."""
        self._power.evict(vm)

    def allow_caller_ip(self, vm: Vm) -> bool:
        """Admit the caller's address of now to SSH; whether the rule had to change."""
        return self._power.allow_caller_ip(vm)

    def set_safeguards(
        self, vm: Vm, *, until_s: float, disk_days: float | None = None
    ) -> list[Safeguard]:
        """Set what ends the bill when everything of ours is dead, and report which of it is set.

        `until_s` is the limit in seconds since 1970. Call again within 23 hours.
        """
        found = self._safeguards.set_safeguards(vm, until_s=until_s)
        return [*found, *disk_stays(disk_days)]

    def preview_safeguards(
        self, want: Want, *, until_s: float, disk_days: float | None = None
    ) -> list[Safeguard]:
        """Preview which safeguards this account will be able to set; changes nothing."""
        found = self._safeguards.preview_safeguards(want, until_s=until_s)
        return [*found, *disk_stays(disk_days)]

    def account_problem(self) -> ProviderError | None:
        """Return that no subscription is chosen or open to us, or that nobody is signed in."""
        try:
            self.context.names("-", 1)
        except NotAllowed as error:
            return error
        met = self._permissions.error
        return met if isinstance(met, (SignedOut, SubscriptionError)) else None

    def update_max_price(self, vm: Vm, max_price_usd_per_h: float | None) -> float | None:
        """Change the cap of a deallocated machine; returns the cap then in force, USD per hour."""
        return self._power.update_max_price(vm, max_price_usd_per_h)

    def stop_reason_from_log(
        self, vm: Vm, *, after_s: float, before_s: float
    ) -> Observation | None:
        """Read a stop between those times from the activity log; None if it is not there (yet)."""
        return self._observer.stop_reason_from_log(vm, after_s=after_s, before_s=before_s)

    def checks(self, want: Want) -> list[Check]:
        """Make the checks of `qft doctor`, in the order of mending; changes nothing."""
        count = want.gpu_count
        wanted = AZURE.with_cards(want.gpu, count) or AZURE.with_cards("", count)
        (size, *_) = wanted or AZURE.with_cards()  # of what Azure does not have
        regions = places_of(want.regions) or AZURE.regions[:3]
        return Doctor(context=self.context).checks(regions, size, want.nodes)

    def close(self) -> None:
        """Let go of open connections; the provider can be used again afterwards."""
        if "account" in self.__dict__:
            self.context.arm.close()

    # ---- the parts, made when first needed: importing the SDKs takes half a second ----

    @cached_property
    def context(self) -> AzureContext:
        """The account with everything that its parts share."""
        return AzureContext(
            settings=self._settings,
            arm=self._arm or self._open(),
            state_dir=self._state_dir,
            clock=self._clock,
            sleep=self._sleep,
            find_address=self._find_address,
        )

    def _find_address(self) -> str:
        """Find the caller's address: as the user's page sees it, else as the cloud itself does."""
        page, cloud = self._settings.address_endpoint, self._settings.arm_endpoint
        near = page == PUBLIC_ADDRESS and cloud != PUBLIC_ARM
        return (own_address(cloud) if near else "") or public_address(page)

    def _open(self) -> Arm:
        from infra.azure.sdk import Arm

        return Arm(self._settings, sleep=self._sleep, clock=self._clock)

    @cached_property
    def _observer(self) -> VmObserver:
        return VmObserver(
            context=self.context,
            price_now=self._offers.price_now,
            price_lately=PriceMonitor(ask=self._offers.price_now, clock=self._clock),
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
        availability = Availability(context=self.context)
        return Offers(
            context=self.context, availability=availability, refusal_cache=self._refusal_cache
        )

    @cached_property
    def _deleter(self) -> Deleter:
        return Deleter(context=self.context)

    @cached_property
    def _remover(self) -> MachineRemover:
        group = RunGroup(context=self.context, deleter=self._deleter)
        return MachineRemover(deleter=self._deleter, group=group)

    @cached_property
    def _safeguards(self) -> AzureSafeguards:
        return AzureSafeguards(
            context=self.context, observer=self._observer, permissions=self._permissions
        )

    @cached_property
    def _permissions(self) -> Permissions:
        return Permissions(context=self.context)

    @cached_property
    def _power(self) -> PowerControl:
        return PowerControl(context=self.context, observer=self._observer)

    @cached_property
    def _creator(self) -> VmCreator:
        return VmCreator(
            context=self.context,
            observer=self._observer,
            deleter=self._deleter,
            remover=self._remover,
            safeguards=self._safeguards,
            refusal_cache=self._refusal_cache,
        )
