"""Starts, deallocates and evicts a machine, changes its price cap and the admitted address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.azure import network
from infra.azure.context import AzureContext
from infra.azure.naming import Names, names_of
from infra.azure.observe import VmObserver
from infra.azure.vm import CAP_STEP_USD, NO_CAP, cap_for, current_cap, power_of
from infra.errors import PASSING, BadRequest, Gone, ProviderError, Transient
from infra.provider import PowerState, Vm
from infra.renting.caller import source_prefix
from infra.renting.run_record import RunRecord

if TYPE_CHECKING:
    from infra.azure.sdk import Operation


@dataclass(frozen=True, kw_only=True)
class PowerControl:
    """Changes the power of an existing machine."""

    context: AzureContext
    observer: VmObserver

    def start(self, vm: Vm) -> None:
        """Start the machine; silent if it runs or is starting.

        Waits `accept_wait_s` at most, to hear of an early refusal. Raises `NoCapacity`,
        `OverQuota`, `PriceAboveCap`, `Gone`.
        """
        names = names_of(vm, self.context.settings.subscription_id)
        power, _ = power_of(self.observer.get(names))
        if power in {PowerState.RUNNING, PowerState.STARTING, PowerState.CREATING}:
            return
        self.allow_caller_ip(vm)
        record = self._record(vm)
        self._change_power(record, names, "start", wait_s=self.context.settings.accept_wait_s)

    def update_max_price(self, vm: Vm, max_price_usd_per_h: float | None) -> float | None:
        """Give a deallocated machine that cap; the one then in force, USD per hour, None for none.

        Azure changes it while the machine is deallocated only; one that is up keeps what it has.
        """
        names = names_of(vm, self.context.settings.subscription_id)
        wanted = cap_for(max_price_usd_per_h)
        answer = self.observer.get(names)
        held = current_cap(answer)
        if abs(held - wanted) > CAP_STEP_USD and _is_down(answer):
            held = self._change_cap(names, wanted)
        if abs(held - wanted) <= CAP_STEP_USD:
            return max_price_usd_per_h
        return None if held == NO_CAP else held

    def _change_cap(self, names: Names, wanted: float) -> float:
        """Request another cap; returns the one that the machine then has."""
        machines = self.context.arm.compute.virtual_machines
        try:
            operation = self.context.arm.begin(
                "change the price cap",
                machines.begin_update,
                names.group,
                names.vm,
                {"properties": {"billingProfile": {"maxPrice": wanted}}},
            )
            if not operation.wait(wait_s=self.context.settings.accept_wait_s):
                raise Transient("Azure is still changing the price cap")
        except BadRequest as error:
            if "MaxPriceChangeNotAllowed" not in str(error):  # somebody started it meanwhile
                raise
        return current_cap(self.observer.get(names))

    def deallocate(self, vm: Vm) -> None:
        """Release the compute; silent if it is released, returns when Azure says so.

        A start that is still under way may yet be granted, and bill: it is overtaken.
        """
        names = names_of(vm, self.context.settings.subscription_id)
        power, _ = power_of(self.observer.get(names))
        record = self._record(vm)
        starting = record.requested == "start" and self.observer.operations.follow(names, record)
        if power is PowerState.DEALLOCATED and not starting:
            return
        record.released_at = self.context.clock()
        wait_s = self.context.settings.operation_wait_s
        if not self._change_power(record, names, "deallocate", wait_s=wait_s):
            raise Transient(
                f"Azure has been deallocating `{names.vm}` for {wait_s:.0f} s: it still bills",
                hint="`qft ls --all` shows when it stops; the portal can stop it too",
            )

    def evict(self, vm: Vm) -> None:
        """Request a rehearsed eviction, and record that it was requested.

        A refused one is forgotten: it must not explain what stops the machine later.
        """
        names = names_of(vm, self.context.settings.subscription_id)
        record = self._record(vm)
        before = record.requested, record.requested_at
        record.note("evict", self.context.clock())
        machines = self.context.arm.compute.virtual_machines
        try:
            self.context.arm.call(
                "rehearse an eviction", machines.simulate_eviction, names.group, names.vm
            )
        except Transient:  # it may have arrived
            raise
        except ProviderError:
            record.note(*before)
            raise

    def allow_caller_ip(self, vm: Vm) -> bool:
        """Make the firewall admit the caller's address of now; whether it had to change.

        The firewall is asked, not our memory: another computer may have changed it.
        """
        names = names_of(vm, self.context.settings.subscription_id)
        source = source_prefix(self.context.caller())
        record = self._record(vm)
        firewall = self._firewall(vm, names, record)
        rules = self.context.arm.network.security_rules
        try:
            found = self.context.arm.call(
                "look at the firewall", rules.get, names.group, firewall, network.RULE
            )
        except Gone:
            found = {}
        admitted = (found.get("properties") or {}).get("sourceAddressPrefix")
        record.caller, record.caller_at = source, self.context.clock()
        record.save()
        if admitted == source:
            return False
        network.open_for(self.context, names.group, firewall, source)
        return True

    def _firewall(self, vm: Vm, names: Names, record: RunRecord) -> str:
        """Name the firewall of the machine, which several machines share."""
        if not self.observer.is_one_of_several(vm, record):
            return names.nsg
        recorded = record.ids.get("firewall", "")
        if not recorded:
            properties = self.observer.card(names).get("properties") or {}
            recorded = str((properties.get("networkSecurityGroup") or {}).get("id") or "")
        return recorded.rpartition("/")[2] or names.nsg

    def billed_until_s(self, vm: Vm) -> float | None:
        """When what `deallocate` released ceased to bill, as Azure says; None if not known."""
        record = self._record(vm)
        return record.ended_at or None if record.requested == "deallocate" else None

    def _record(self, vm: Vm) -> RunRecord:
        record = self.context.record(vm.run_id, vm.node)
        if record.generation != vm.generation:
            record = RunRecord(path=record.path, generation=vm.generation)
        return record

    def _change_power(self, record: RunRecord, names: Names, verb: str, *, wait_s: float) -> bool:
        """Start or deallocate; whether it was done within `wait_s`."""
        if record.requested != verb:
            record.tokens.pop(verb, None)  # an older order of the same kind has long ended
        record.note(verb, self.context.clock())
        try:
            operation = self.context.begin_or_resume(
                record, verb, lambda token: self._begin(names, verb, token)
            )
            done = self.context.wait(record, verb, operation, wait_s=wait_s)
            self.observer.operations.learn(record, operation, done=done)
        except Transient:
            # A broken connection does not say whether the order arrived: the machine does.
            self.context.clear_tokens(record, verb)
            if not self._under_way(names, verb):
                raise
            done = self._poll(names, verb, wait_s=wait_s)
        except PASSING as error:
            if verb == "start":
                raise
            message = f"Azure failed to release `{names.vm}`, which still bills"
            raise Transient(
                f"{message}: {error}", hint="the same call is safe to repeat"
            ) from error
        except Gone:
            self.context.clear_tokens(record, verb)
            self.observer.get(names)  # raises Gone if it is the machine that is gone
            done = self._poll(names, verb, wait_s=wait_s)
        if done:
            self.context.clear_tokens(record, verb)
            if not self._under_way(names, verb):  # an answer may come from a proxy, not from Azure
                raise Transient(f"Azure says that `{names.vm}` obeyed ({verb}); it did not")
        return done

    def _begin(self, names: Names, verb: str, token: str) -> Operation:
        machines = self.context.arm.compute.virtual_machines
        begin: Any = {"start": machines.begin_start, "deallocate": machines.begin_deallocate}[verb]
        more = {"continuation_token": token} if token else {}
        return self.context.arm.begin(f"{verb} `{names.vm}`", begin, names.group, names.vm, **more)

    def _under_way(self, names: Names, verb: str) -> bool:
        power, _ = power_of(self.observer.get(names))
        return power in _TOWARDS[verb]

    def _poll(self, names: Names, verb: str, *, wait_s: float) -> bool:
        """Poll the machine itself until it is where `verb` leads, for at most `wait_s`."""
        deadline = self.context.clock() + wait_s
        while True:
            power, _ = power_of(self.observer.get(names))
            if power is _GOALS[verb]:
                return True
            if power not in _TOWARDS[verb]:
                raise Transient(f"`{names.vm}` is {power}: the order to {verb} it got lost")
            if self.context.clock() >= deadline:
                return False
            self.context.sleep(self.context.settings.polling_s)


def _is_down(answer: dict[str, Any]) -> bool:
    power, _ = power_of(answer)
    return power is PowerState.DEALLOCATED


_GOALS = {"start": PowerState.RUNNING, "deallocate": PowerState.DEALLOCATED}
_TOWARDS = {
    "start": {PowerState.STARTING, PowerState.RUNNING},
    "deallocate": {PowerState.STOPPING, PowerState.DEALLOCATED},
}
