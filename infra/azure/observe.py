"""Observes a machine: power, address, and why it stopped, if Azure says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from infra.azure.activity_log import SKEW_S, ActivityLog, StopCause
from infra.azure.context import AzureContext
from infra.azure.group_tags import nodes_of
from infra.azure.naming import Names, names_of
from infra.azure.operations import OperationTracker
from infra.azure.vm import NO_CAP, current_cap, failure_of, power_of
from infra.errors import PASSING, Gone, Transient
from infra.provider import Observation, PowerState, StopReason, Vm
from infra.renting.run_record import RunRecord
from infra.renting.tags import GENERATION, is_of_run, lower_case_names

_OUR_REQUESTS = {
    "deallocate": (StopReason.USER, "deallocated because qft asked for it"),
    "delete": (StopReason.USER, "deleted because qft asked for it"),
    "evict": (StopReason.EVICTED, "evicted: the rehearsal that qft asked for"),
}


@dataclass(frozen=True, kw_only=True)
class VmObserver:
    """Observes machines; changes nothing."""

    context: AzureContext
    price_now: Callable[[str, str], float | None]
    """Size and region in, the spot price of now out; None if unavailable."""
    price_lately: Callable[[str, str], float | None]
    """The same, some minutes old at most, for looks every few seconds."""

    def observe(self, vm: Vm, *, several: bool = False) -> Observation:
        """Observe a machine: one request while it runs, one more to learn why it stopped.

        `several` says that it is known to be one of several of its run.
        """
        names = names_of(vm, self.context.settings.subscription_id)
        record = self.context.record(vm.run_id, vm.node)
        try:
            answer = self.get(names)
        except Gone:
            return self._gone(names, record)
        seen = self._seen(names, record, answer)
        several = several or self.is_one_of_several(vm, record)
        private = vm.private_host or (self.private_address(record, names) if several else "")
        return replace(seen, private_host=private) if private else seen

    def _seen(self, names: Names, record: RunRecord, answer: dict[str, Any]) -> Observation:
        """Observe a machine that is there, as Azure describes it."""
        power, status_text = power_of(answer)
        code, message = failure_of(answer)
        pending = self.operations.follow(names, record)
        if pending and record.requested == "start" and power is PowerState.DEALLOCATED:
            power, status_text = PowerState.STARTING, "accepted, and not yet started"
        if power is PowerState.FAILED:
            return Observation(
                power=power,
                host=self.address(record, names),
                stop_reason=StopReason.FAILED,
                detail=f"{code}: {message}" if code else status_text,
                refusal=self.operations.refusal(names, record, answer),
            )
        host = self.address(record, names)
        port, url = self.context.settings.ssh_port, self.context.settings.metadata_url
        if power not in {PowerState.DEALLOCATED, PowerState.STOPPED}:
            return Observation(
                power=power,
                host=host,
                port=port,
                metadata_url=url,
                detail=status_text,
                price_usd_per_h=self._price_of(answer),
                bills_since=self.operations.bills_since(names, record, answer),
            )
        off = power is PowerState.STOPPED
        cause = (
            self._power_off_cause(names, record, answer)
            if off
            else self._stop_cause(names, record, answer)
        )
        return Observation(
            power=power,
            host=host,
            port=port,
            metadata_url=url,
            stop_reason=cause.reason,
            certain=cause.certain,
            since=cause.since,
            detail=cause.detail or status_text,
            ran=cause.ran or self.operations.has_run(record),
            refusal=cause.refusal,
        )

    def stop_reason_from_log(
        self, vm: Vm, *, after_s: float, before_s: float
    ) -> Observation | None:
        """Read from the activity log why it stopped between those times; None if not there."""
        names = names_of(vm, self.context.settings.subscription_id)
        try:
            answer = self.get(names)
        except Gone:
            answer = {}
        except Transient:
            return None
        cause = ActivityLog(context=self.context).stop_cause(
            names,
            answer,
            after_s=after_s,
            before_s=before_s + SKEW_S,
            released_s=self.context.record(vm.run_id, vm.node).released_at,
        )
        if isinstance(cause, str):
            return None
        return Observation(
            power=PowerState.DEALLOCATED,
            stop_reason=cause.reason,
            since=cause.since,
            detail=cause.detail,
        )

    @property
    def operations(self) -> OperationTracker:
        """The tracker of the last operations."""
        return OperationTracker(context=self.context)

    def get(self, names: Names) -> dict[str, Any]:
        """Get the machine with its instance view; raises `Gone` if there is none."""
        machines = self.context.arm.compute.virtual_machines
        return dict(
            self.context.arm.call(
                "look at the machine", machines.get, names.group, names.vm, expand="instanceView"
            )
        )

    def address(self, record: RunRecord, names: Names) -> str:
        """Get the public address, requested once: it is static. Empty if there is none."""
        if record.address and record.generation == names.generation:
            return record.address
        addresses = self.context.arm.network.public_ip_addresses
        try:
            found = self.context.arm.call(
                "look at the address", addresses.get, names.group, names.public_ip
            )
        except Gone:
            return ""
        text = str((found.get("properties") or {}).get("ipAddress") or "")
        if text and record.generation == names.generation:
            record.address = text
            record.save()
        return text

    def is_one_of_several(self, vm: Vm, record: RunRecord) -> bool:
        """Whether its run is known to have several machines; asks nobody."""
        several = vm.node > 0 or vm.private_host or record.private_address
        return bool(several or self.context.records_of_nodes(vm.run_id))

    def private_address(self, record: RunRecord, names: Names) -> str:
        """Get its address in the run's network, requested once: it is the network card's for good.

        Empty if there is none.
        """
        if record.private_address and record.generation == names.generation:
            return record.private_address
        configurations = (self.card(names).get("properties") or {}).get("ipConfigurations")
        found = [one.get("properties") or {} for one in configurations or []]
        text = str(found[0].get("privateIPAddress") or "") if found else ""
        if text and record.generation == names.generation:
            record.private_address = text
            record.save()
        return text

    def card(self, names: Names) -> dict[str, Any]:
        """Get its network card; empty if there is none."""
        cards = self.context.arm.network.network_interfaces
        with contextlib.suppress(Gone):  # it has no network card, or not yet
            return dict(
                self.context.arm.call("look at the network card", cards.get, names.group, names.nic)
            )
        return {}

    def _gone(self, names: Names, record: RunRecord) -> Observation:
        """Observe what is left of a machine: nothing, or remnants if its group exists."""
        groups = self.context.arm.resources.resource_groups
        try:
            group = self.context.arm.call("look at the group", groups.get, names.group)
        except Gone:
            power, detail = PowerState.GONE, "nothing of it is left"
        else:
            tags = group.get("tags")
            tagged = is_of_run(tags, names.run_id)
            generation = (
                nodes_of(tags).get(names.node)
                if names.node
                else lower_case_names(tags).get(GENERATION)
            )
            ours = tagged and str(generation) == str(names.generation)
            ours = ours or (not tagged and self._billing_remains(names, record))
            power = PowerState.REMNANTS if ours else PowerState.GONE
            detail = "the machine is gone; its resource group remains" if ours else "gone"
        if record.generation == names.generation and record.requested == "delete":
            return Observation(power=power, stop_reason=StopReason.USER, detail=detail)
        self.operations.follow(names, record)
        seen = Observation(
            power=power,
            stop_reason=StopReason.UNKNOWN,
            certain=False,
            detail=detail,
            ran=self.operations.has_run(record),
            refusal=self.operations.refusal(names, record, {}),
        )
        cause = ActivityLog(context=self.context).stop_cause(
            names, {}, after_s=self._started_at(names, record)
        )
        if isinstance(cause, str):
            return seen
        status_text = f"{detail}: {cause.detail}"
        return replace(
            seen, stop_reason=cause.reason, since=cause.since, certain=True, detail=status_text
        )

    def _billing_remains(self, names: Names, record: RunRecord) -> bool:
        """Whether a disk or an address of ours bills in a group that lost its tag."""
        ours = record.generation == names.generation and bool(record.ids.get("group"))
        arm = self.context.arm
        for ask, name in (
            (arm.compute.disks.get, names.disk),
            (arm.network.public_ip_addresses.get, names.public_ip),
        ):
            try:
                found = arm.call("look at what bills", ask, names.group, name)
            except Gone:
                continue
            if ours or is_of_run(found.get("tags"), names.run_id):
                return True
        return False

    def _price_of(self, answer: dict[str, Any]) -> float | None:
        """What a running machine bills: the market price, and never more than its cap."""
        price, cap = self.price_lately(*_size_and_region(answer)), current_cap(answer)
        return price if price is None or cap == NO_CAP else min(price, cap)

    # ---- why it stopped ----

    def _stop_cause(self, names: Names, record: RunRecord, answer: dict[str, Any]) -> StopCause:
        """Find why a machine went down. Azure's model of an evicted machine does not say so.

        Proof comes from our own record of what we asked, then from the activity log, which may be
        minutes late or closed to this account. A spot machine that went down without anybody in
        sight who asked for it counts as evicted, and the words say that this is inferred.
        """
        if record.generation == names.generation and record.requested in _OUR_REQUESTS:
            reason, detail = _OUR_REQUESTS[record.requested]
            # A rehearsal takes minutes to take effect: until it was seen, the machine bills.
            evict = record.requested == "evict"
            since = "" if evict else self.operations.down_since(record, answer)
            return StopCause(reason=reason, since=since, detail=detail, ran=evict or None)
        refusal = self.operations.refusal(names, record, answer)
        if isinstance(refusal, PASSING):
            return StopCause(reason=StopReason.UNKNOWN, detail=str(refusal), refusal=refusal)
        note = f" (the last start failed: {refusal})" if refusal else ""
        started_at = 0.0 if refusal else self._started_at(names, record)
        cause = ActivityLog(context=self.context).stop_cause(names, answer, after_s=started_at)
        if isinstance(cause, StopCause):
            return replace(cause, detail=cause.detail + note, refusal=refusal)
        if refusal:  # such as one that somebody's later request overtook
            detail = str(refusal)
            return StopCause(
                reason=StopReason.UNKNOWN, detail=detail, certain=False, refusal=refusal
            )
        if dear := self._price_above_cap(answer):
            return StopCause(reason=StopReason.PRICE, detail=dear + note, certain=False)
        return _inferred_cause(answer, cause, note)

    def _power_off_cause(
        self, names: Names, record: RunRecord, answer: dict[str, Any]
    ) -> StopCause:
        """Find why it is switched off and billed: a `stop` in the log, or from inside."""
        bills = "still billed until it is deallocated"
        cause = ActivityLog(context=self.context).stop_cause(
            names, answer, after_s=self._started_at(names, record)
        )
        if isinstance(cause, StopCause):
            return replace(cause, detail=f"{cause.detail}: {bills}", since="")
        detail = f"switched off from inside, it seems: {bills}"
        return StopCause(reason=StopReason.UNKNOWN, detail=detail, certain=False)

    @staticmethod
    def _started_at(names: Names, record: RunRecord) -> float:
        """When the machine was last created or started, as recorded here; 0 if it is not."""
        ours = record.generation == names.generation and record.requested in {"create", "start"}
        return record.requested_at if ours else 0.0

    def _price_above_cap(self, answer: dict[str, Any]) -> str:
        """Words for a market price above the machine's cap; empty if it is not known to be."""
        properties = answer.get("properties") or {}
        cap = float((properties.get("billingProfile") or {}).get("maxPrice") or NO_CAP)
        size, region = _size_and_region(answer)
        if cap == NO_CAP or not size:
            return ""
        price = self.price_now(size, region)
        if price is None or price <= cap:
            return ""
        return f"evicted, it seems: the market price is {price} USD/h, above the cap of {cap}"


def _size_and_region(answer: dict[str, Any]) -> tuple[str, str]:
    """Size and region of a machine."""
    hardware = (answer.get("properties") or {}).get("hardwareProfile") or {}
    return str(hardware.get("vmSize") or ""), str(answer.get("location") or "").lower()


def _inferred_cause(answer: dict[str, Any], silence: str, note: str) -> StopCause:
    """Infer a cause that nobody reports: a spot machine counts as evicted by Azure."""
    spot = str((answer.get("properties") or {}).get("priority") or "").lower() == "spot"
    if not spot:
        detail = f"deallocated, not by us; {silence}{note}"
        return StopCause(reason=StopReason.UNKNOWN, detail=detail, certain=False)
    detail = "evicted, it seems: a spot machine went down and qft did not ask for it"
    return StopCause(reason=StopReason.EVICTED, detail=f"{detail}; {silence}{note}", certain=False)
