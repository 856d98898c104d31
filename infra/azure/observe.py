"""What one look at Azure tells: power, address, and why a machine stopped, if anyone knows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from infra.azure import vm as machine
from infra.azure.context import Account
from infra.azure.naming import GENERATION, Names, is_of_run, names_of, told_by
from infra.azure.operations import Orders
from infra.azure.run_record import RunRecord
from infra.provider import (
    PASSING,
    Gone,
    Observation,
    PowerState,
    ProviderError,
    StopReason,
    Transient,
    Vm,
)
from infra.timestamps import format_utc, parse_utc_s

LOG_DAYS = 14
SKEW_S = 120.0
"""How far this computer's clock and Azure's may differ."""
RELEASE_S = 600.0
"""How long a deallocation may take until the log says that it succeeded."""
_ASKED = {
    "deallocate": (StopReason.USER, "deallocated because qft asked for it"),
    "delete": (StopReason.USER, "deleted because qft asked for it"),
    "evict": (StopReason.EVICTED, "evicted: the rehearsal that qft asked for"),
}


@dataclass(frozen=True, kw_only=True)
class Looking:
    """Reads; changes nothing."""

    account: Account
    price_now: Callable[[str, str], float | None]
    """Size and region in, the spot price of now out; None if nobody tells."""
    price_lately: Callable[[str, str], float | None]
    """The same, some minutes old at most, for looks every few seconds."""

    def observe(self, vm: Vm) -> Observation:
        """One look at a machine: one request while it runs, one more to learn why it stopped."""
        names = names_of(vm, self.account.settings.subscription_id)
        record = self.account.record(vm.run_id)
        try:
            answer = self.get(names)
        except Gone:
            return self._gone(names, record)
        power, words = machine.power_of(answer)
        code, message = machine.failure_of(answer)
        pending = self.orders.follow(names, record)
        if pending and record.asked == "start" and power is PowerState.DEALLOCATED:
            power, words = PowerState.STARTING, "accepted, and not yet started"
        if power is PowerState.FAILED:
            return Observation(
                power=power,
                host=self.address(record, names),
                stop_reason=StopReason.FAILED,
                detail=f"{code}: {message}" if code else words,
                refusal=self.orders.refusal(names, record, answer),
            )
        host = self.address(record, names)
        port, url = self.account.settings.ssh_port, self.account.settings.metadata_url
        if power not in {PowerState.DEALLOCATED, PowerState.STOPPED}:
            return Observation(
                power=power,
                host=host,
                port=port,
                metadata_url=url,
                detail=words,
                price_usd_per_h=self._price_of(answer),
                bills_since=self.orders.bills_since(names, record, answer),
            )
        off = power is PowerState.STOPPED
        why = self._why_off(names, record, answer) if off else self._why(names, record, answer)
        return Observation(
            power=power,
            host=host,
            port=port,
            metadata_url=url,
            stop_reason=why.reason,
            certain=why.certain,
            since=why.since,
            detail=why.told or words,
            ran=why.ran or self.orders.has_run(record),
            refusal=why.refusal,
        )

    def stop_reason_from_log(
        self, vm: Vm, *, after_s: float, before_s: float
    ) -> Observation | None:
        """What the activity log tells by now of a stop between those times; None if nothing."""
        names = names_of(vm, self.account.settings.subscription_id)
        try:
            answer = self.get(names)
        except Gone:
            answer = {}
        except Transient:
            return None
        why = self._recorded(
            names,
            answer,
            after_s=after_s,
            before_s=before_s + SKEW_S,
            released_s=self.account.record(vm.run_id).released_at,
        )
        if isinstance(why, str):
            return None
        return Observation(
            power=PowerState.DEALLOCATED, stop_reason=why.reason, since=why.since, detail=why.told
        )

    @property
    def orders(self) -> Orders:
        """How the last orders ended."""
        return Orders(account=self.account)

    def get(self, names: Names) -> dict[str, Any]:
        """The machine with its instance view; raises `Gone` if there is none."""
        machines = self.account.arm.compute.virtual_machines
        return dict(
            self.account.arm.call(
                "look at the machine", machines.get, names.group, names.vm, expand="instanceView"
            )
        )

    def address(self, record: RunRecord, names: Names) -> str:
        """The machine's public address, asked for once: it is static. Empty if there is none."""
        if record.address and record.generation == names.generation:
            return record.address
        addresses = self.account.arm.network.public_ip_addresses
        try:
            found = self.account.arm.call(
                "look at the address", addresses.get, names.group, names.address
            )
        except Gone:
            return ""
        text = str((found.get("properties") or {}).get("ipAddress") or "")
        if text and record.generation == names.generation:
            record.address = text
            record.save()
        return text

    def _gone(self, names: Names, record: RunRecord) -> Observation:
        """No such machine: gone, or remnants if its group still stands."""
        groups = self.account.arm.resources.resource_groups
        try:
            group = self.account.arm.call("look at the group", groups.get, names.group)
        except Gone:
            power, told = PowerState.GONE, "nothing of it is left"
        else:
            tags = group.get("tags")
            tagged = is_of_run(tags, names.run_id)
            ours = tagged and told_by(tags).get(GENERATION) == str(names.generation)
            ours = ours or (not tagged and self._bills(names, record))
            power = PowerState.REMNANTS if ours else PowerState.GONE
            told = "the machine is gone; its resource group remains" if ours else "gone"
        if record.generation == names.generation and record.asked == "delete":
            return Observation(power=power, stop_reason=StopReason.USER, detail=told)
        self.orders.follow(names, record)
        seen = Observation(
            power=power,
            stop_reason=StopReason.UNKNOWN,
            certain=False,
            detail=told,
            ran=self.orders.has_run(record),
            refusal=self.orders.refusal(names, record, {}),
        )
        why = self._recorded(names, {}, after_s=self._life_s(names, record))
        if isinstance(why, str):
            return seen
        words = f"{told}: {why.told}"
        return replace(seen, stop_reason=why.reason, since=why.since, certain=True, detail=words)

    def _bills(self, names: Names, record: RunRecord) -> bool:
        """Whether a disk or an address of ours bills in a group that lost its tag."""
        known = record.generation == names.generation and bool(record.ids.get("group"))
        arm = self.account.arm
        for ask, name in (
            (arm.compute.disks.get, names.disk),
            (arm.network.public_ip_addresses.get, names.address),
        ):
            try:
                found = arm.call("look at what bills", ask, names.group, name)
            except Gone:
                continue
            if known or is_of_run(found.get("tags"), names.run_id):
                return True
        return False

    def _price_of(self, answer: dict[str, Any]) -> float | None:
        """What a running machine bills: the market price, and never more than its cap."""
        price, cap = self.price_lately(*_sold(answer)), machine.held_cap(answer)
        return price if price is None or cap == machine.NO_CAP else min(price, cap)

    # ---- why it stopped ----

    def _why(self, names: Names, record: RunRecord, answer: dict[str, Any]) -> Why:
        """Reason, since when, and words. Azure's model of an evicted machine does not say so.

        Proof comes from our own record of what we asked, then from the activity log, which may be
        minutes late or closed to this account. A spot machine that went down without anybody in
        sight who asked for it counts as evicted, and the words say that this is inferred.
        """
        if record.generation == names.generation and record.asked in _ASKED:
            reason, told = _ASKED[record.asked]
            # A rehearsal takes minutes to strike: until it was seen, the machine bills.
            evict = record.asked == "evict"
            since = "" if evict else self.orders.down_since(record, answer)
            return Why(reason=reason, since=since, told=told, ran=evict or None)
        refusal = self.orders.refusal(names, record, answer)
        if isinstance(refusal, PASSING):
            return Why(reason=StopReason.UNKNOWN, told=str(refusal), refusal=refusal)
        note = f" (the last start failed: {refusal})" if refusal else ""
        life_s = 0.0 if refusal else self._life_s(names, record)
        why = self._recorded(names, answer, after_s=life_s)
        if isinstance(why, Why):
            return replace(why, told=why.told + note, refusal=refusal)
        if refusal:  # such as one that somebody's later order overtook, of which the log may tell
            told = str(refusal)
            return Why(reason=StopReason.UNKNOWN, told=told, certain=False, refusal=refusal)
        if dear := self._above_cap(answer):
            return Why(reason=StopReason.PRICE, told=dear + note, certain=False)
        return _inferred(answer, why, note)

    def _why_off(self, names: Names, record: RunRecord, answer: dict[str, Any]) -> Why:
        """Why it is switched off and billed: a `stop` that the log knows of, or from inside."""
        bills = "still billed until it is deallocated"
        why = self._recorded(names, answer, after_s=self._life_s(names, record))
        if isinstance(why, Why):
            return replace(why, told=f"{why.told}: {bills}", since="")
        told = f"switched off from inside, it seems: {bills}"
        return Why(reason=StopReason.UNKNOWN, told=told, certain=False)

    @staticmethod
    def _life_s(names: Names, record: RunRecord) -> float:
        """When this life of the machine began, as far as this computer knows; 0 if it does not."""
        known = record.generation == names.generation and record.asked in {"create", "start"}
        return record.asked_at if known else 0.0

    def _recorded(
        self,
        names: Names,
        answer: dict[str, Any],
        *,
        after_s: float,
        before_s: float = math.inf,
        released_s: float = 0.0,
    ) -> Why | str:
        """Why the log says that the machine stopped between those times, or why it says nothing.

        What qft itself ordered at `released_s`, after it had seen the stop, explains no stop.

        The log of an earlier life of the machine says nothing about this one, and an hour that is
        dated back to it would be an hour that nobody counts.
        """
        try:
            events = self._log(names)
        except ProviderError as error:  # closed, absent or busy: it is a source, not the machine
            return f"the activity log cannot be read ({error})"
        own = str((answer.get("identity") or {}).get("principalId") or "")
        for event in events:
            at_s = parse_utc_s(str(event.get("eventTimestamp") or "")) or 0.0
            at_s -= self.account.arm.skew_s if at_s else 0.0
            if at_s < after_s or (before_s == math.inf and _is_start(event)):
                break
            ours = released_s and -SKEW_S <= at_s - released_s <= RELEASE_S
            found = _reason_of(event, own) if at_s <= before_s and not ours else None
            if found is not None:
                reason, told = found
                return Why(reason=reason, since=format_utc(at_s) if at_s else "", told=told)
        return "the activity log has nothing yet, it lags by minutes"

    def _above_cap(self, answer: dict[str, Any]) -> str:
        """Words for a market price above the machine's cap; empty if it is not known to be."""
        properties = answer.get("properties") or {}
        cap = float((properties.get("billingProfile") or {}).get("maxPrice") or machine.NO_CAP)
        size, region = _sold(answer)
        if cap == machine.NO_CAP or not size:
            return ""
        price = self.price_now(size, region)
        if price is None or price <= cap:
            return ""
        return f"evicted, it seems: the market price is {price} USD/h, above the cap of {cap}"

    def _log(self, names: Names) -> list[dict[str, Any]]:
        """What the activity log tells of the machine, newest first."""
        start = datetime.fromtimestamp(self.account.clock(), tz=UTC) - timedelta(days=LOG_DAYS)
        wanted = (
            f"eventTimestamp ge '{start:%Y-%m-%dT%H:%M:%SZ}' and resourceUri eq '{names.vm_id}'"
        )
        events = self.account.arm.listed(
            "read the activity log",
            f"/subscriptions/{names.subscription_id}/providers/Microsoft.Insights"
            f"/eventtypes/management/values?$filter={quote(wanted)}",
        )
        return sorted(events, key=lambda one: str(one.get("eventTimestamp")), reverse=True)


@dataclass(frozen=True, kw_only=True)
class Why:
    """Why a machine went down."""

    reason: StopReason
    told: str
    since: str = ""
    certain: bool = True
    ran: bool | None = None
    """Whether it is known to have run, or not, before that."""
    refusal: ProviderError | None = None


def _sold(answer: dict[str, Any]) -> tuple[str, str]:
    """Size and region of a machine."""
    hardware = (answer.get("properties") or {}).get("hardwareProfile") or {}
    return str(hardware.get("vmSize") or ""), str(answer.get("location") or "").lower()


def _inferred(answer: dict[str, Any], silence: str, note: str) -> Why:
    """Who did it when nobody says: of a spot machine, Azure, as far as anyone can tell."""
    spot = str((answer.get("properties") or {}).get("priority") or "").lower() == "spot"
    if not spot:
        told = f"deallocated, not by us; {silence}{note}"
        return Why(reason=StopReason.UNKNOWN, told=told, certain=False)
    told = "evicted, it seems: a spot machine went down and qft did not ask for it"
    return Why(reason=StopReason.EVICTED, told=f"{told}; {silence}{note}", certain=False)


def _is_start(event: dict[str, Any]) -> bool:
    """Whether an event says that the machine was started: older ones speak of earlier stops."""
    operation = str((event.get("operationName") or {}).get("value") or "").lower()
    status = str((event.get("status") or {}).get("value") or "").lower()
    return operation.endswith("/virtualmachines/start/action") and status == "succeeded"


def _reason_of(event: dict[str, Any], own: str) -> tuple[StopReason, str] | None:
    """What one event of the activity log says about why a machine stopped; None if nothing.

    `own` is the principal of the machine's own identity.
    """
    operation = str((event.get("operationName") or {}).get("value") or "").lower()
    status = str((event.get("status") or {}).get("value") or "").lower()
    if status and status not in {"succeeded", "started", "accepted"}:
        return None
    who = str(event.get("caller") or "somebody")
    if operation.endswith("/evictspotvm/action"):
        words = " ".join(str(value) for value in (event.get("properties") or {}).values())
        if "price" in words.lower():
            return StopReason.PRICE, "evicted: the market price rose above the cap"
        return StopReason.EVICTED, "evicted: Azure took the capacity back"
    if operation.endswith("/simulateeviction/action"):
        return StopReason.EVICTED, f"evicted: a rehearsal asked for by {who}"
    if operation.endswith("/deallocate/action") and own and who.lower() == own.lower():
        told = "it gave itself back: its limit was reached, or nobody needed it"
        return StopReason.RETURNED, told
    verbs = {
        "/virtualmachines/delete": "deleted",
        "/deallocate/action": "deallocated",
        "/poweroff/action": "switched off",
    }
    for ending, verb in verbs.items():
        if operation.endswith(ending):
            # People sign in with an address. Everything else is a program's: the auto-shutdown, a
            # policy, Azure itself; none of them says that the owner wants no more of this run.
            reason = StopReason.USER if "@" in who else StopReason.UNKNOWN
            return reason, f"{verb} by {who}"
    return None
