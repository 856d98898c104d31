"""What ends the bill when everything of ours is dead: switches that Azure itself pulls.

    price cap       at the cloud, from the first second; always there
    auto-shutdown   a schedule of Azure's that deallocates at a time of day; any Contributor may
    self-release    the machine may deallocate itself, and nothing else; needs a role assignment

`shutdown` from inside is none of them: a machine that is switched off goes on billing.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from infra.azure.context import AzureContext
from infra.azure.naming import DISK_GB, RUN, SCHEDULE, Names, idle_usd_per_h, names_of
from infra.azure.observe import VmObserver
from infra.azure.permissions import (
    RELEASE_HINT,
    Permissions,
    ensure_registered,
    role_id,
    role_is_defined,
)
from infra.azure.vm import NO_CAP, current_cap
from infra.catalog.azure import AZURE
from infra.provider import BadRequest, NotAllowed, ProviderError, Safeguard, Vm, Want
from infra.timestamps import format_utc

LEAD_S = 30 * 60.0
"""A schedule set less than half an hour ahead may first strike a day later."""
AHEAD_S_MAX = 23 * 3600.0
"""A schedule strikes every day, so it cannot wait longer than one."""
ACTION = "Microsoft.Compute/virtualMachines/deallocate/action"


@dataclass(frozen=True, kw_only=True)
class AzureSafeguards:
    """Sets the switches of one machine; safe to repeat, and meant to be."""

    context: AzureContext
    observer: VmObserver
    permissions: Permissions

    def set_safeguards(self, vm: Vm, *, until_s: float) -> list[Safeguard]:
        """Set every switch that this account may set, so that compute ends soon after `until_s`.

        A limit more than 23 hours away is approached in steps: call again within that time. Never
        raises for a switch that cannot be set: that is a finding, to be shown to the user.
        `until_s` is by the clock of this computer; what is answered is by Azure's.
        """
        names = names_of(vm, self.context.settings.subscription_id)
        answer = self.observer.get(names)
        skew_s = self.context.arm.skew_s  # Azure pulls its switch by its own clock
        now_s, until_s = self.context.clock() + skew_s, until_s + skew_s
        strike_s = next_strike_s(now_s, until_s)
        found = [
            _cap_of(answer),
            self._try_set("auto-shutdown", lambda: self._schedule(names, answer, strike_s)),
            self._try_set(
                "self-release", lambda: self._role(names, answer, until_s), right=RELEASE_HINT
            ),
        ]
        size = str(((answer.get("properties") or {}).get("hardwareProfile") or {}).get("vmSize"))
        most = current_cap(answer)
        if most == NO_CAP:
            most = AZURE.on_demand_max(size=size)
        return _with_worst_case(found, now_s=now_s, most=most, disk_gb=_disk_gb(answer))

    def preview_safeguards(self, want: Want, *, until_s: float) -> list[Safeguard]:
        """Which switches this account will be able to set, from its rights alone; changes nothing.

        Rights that cannot be read count as missing, with the reason; never raises.
        """
        now_s = self.context.clock()
        strike_s = next_strike_s(now_s, until_s)
        cap = want.max_price_usd_per_h
        found = [_cap_of({"properties": {"billingProfile": {"maxPrice": cap}}})]
        try:
            self.context.names("-", 1)  # a subscription must be chosen
            settable = self.permissions.result()
        except ProviderError as error:
            detail = f"not known: {error}"
            found += [
                Safeguard(name=name, is_set=False, detail=detail, hint=error.hint)
                for name in ("auto-shutdown", "self-release")
            ]
            return _with_worst_case(found, now_s=now_s, most=_most(want), disk_gb=want.disk_gb)
        found += [
            _expected_schedule(strike_s, is_set=settable.schedule),
            _expected_release(until_s, is_set=settable.release),
        ]
        return _with_worst_case(found, now_s=now_s, most=_most(want), disk_gb=want.disk_gb)

    @staticmethod
    def _try_set(name: str, switch: Any, *, right: str = "") -> Safeguard:
        try:
            return switch()  # type: ignore[no-any-return]  # a closure that returns a Safeguard
        except ProviderError as error:
            hint = right if right and isinstance(error, NotAllowed) else error.hint
            return Safeguard(name=name, is_set=False, detail=str(error), hint=hint)

    def _schedule(self, names: Names, answer: dict[str, Any], strike_s: float) -> Safeguard:
        ensure_registered(self.context, ("Microsoft.DevTestLab",))
        self.context.arm.send(
            "set the auto-shutdown",
            "PUT",
            names.id_of(SCHEDULE, names.schedule),
            body=schedule_body(names, region=str(answer["location"]), strike_s=strike_s),
        )
        return Safeguard(
            name="auto-shutdown",
            is_set=True,
            detail=f"Azure deallocates the machine at {format_utc(strike_s)} unless this is "
            "renewed",
            stops_at_s=strike_s,
        )

    def _role(self, names: Names, answer: dict[str, Any], until_s: float) -> Safeguard:
        principal = str((answer.get("identity") or {}).get("principalId") or "")
        if not principal:
            return Safeguard(
                name="self-release", is_set=False, detail="the machine has no identity of its own"
            )
        role = role_id(names.subscription_id)
        if not role_is_defined(self.context):
            self.context.arm.send(
                "define the role that may only deallocate",
                "PUT",
                role,
                body=role_body(names.subscription_id),
            )
        assignment = assignment_id(names.vm_id, principal)
        try:
            self.context.arm.send(
                "let the machine deallocate itself",
                "PUT",
                assignment,
                body={
                    "properties": {
                        "roleDefinitionId": role,
                        "principalId": principal,
                        "principalType": "ServicePrincipal",
                    }
                },
            )
        except BadRequest as error:
            if "RoleAssignmentExists" not in str(error):
                raise
        return Safeguard(
            name="self-release",
            is_set=True,
            detail="the machine may deallocate itself, and nothing else",
            stops_at_s=until_s,
        )


def next_strike_s(now_s: float, until_s: float) -> float:
    """When the schedule should strike: at the limit, on a full minute, within what Azure can do."""
    wanted = min(max(until_s, now_s + LEAD_S), now_s + AHEAD_S_MAX)
    return math.ceil(wanted / 60) * 60.0


def schedule_body(names: Names, *, region: str, strike_s: float) -> dict[str, Any]:
    """The auto-shutdown schedule of one machine, in UTC, without mails."""
    at = datetime.fromtimestamp(strike_s, tz=UTC)
    return {
        "location": region,
        "tags": {RUN: names.run_id},
        "properties": {
            "status": "Enabled",
            "taskType": "ComputeVmShutdownTask",
            "dailyRecurrence": {"time": f"{at:%H%M}"},
            "timeZoneId": "UTC",
            "notificationSettings": {"status": "Disabled", "timeInMinutes": 30},
            "targetResourceId": names.vm_id,
        },
    }


def role_body(subscription_id: str) -> dict[str, Any]:
    """A role with a single right."""
    return {
        "properties": {
            "roleName": f"qft deallocate ({subscription_id})",
            "description": "Lets a machine rented by qft deallocate itself, and nothing else",
            "type": "CustomRole",
            "permissions": [{"actions": [ACTION], "notActions": []}],
            "assignableScopes": [f"/subscriptions/{subscription_id}"],
        }
    }


def assignment_id(vm_id: str, principal: str) -> str:
    """The assignment that lets one machine's identity deallocate that machine."""
    name = uuid.uuid5(uuid.NAMESPACE_URL, f"qft{vm_id.lower()}/{principal}")
    return f"{vm_id}/providers/Microsoft.Authorization/roleAssignments/{name}"


def _disk_gb(answer: dict[str, Any]) -> int:
    """The size of its disk; Azure leaves it out of a machine that is deallocated."""
    storage = (answer.get("properties") or {}).get("storageProfile") or {}
    return int((storage.get("osDisk") or {}).get("diskSizeGB") or DISK_GB)


def _expected_schedule(strike_s: float, *, is_set: bool) -> Safeguard:
    if not is_set:
        return Safeguard(
            name="auto-shutdown",
            is_set=False,
            detail="the account may not make schedules",
            hint="ask for `Contributor` on the subscription",
        )
    detail = f"Azure will deallocate the machine at {format_utc(strike_s)} unless that is renewed"
    return Safeguard(name="auto-shutdown", is_set=True, detail=detail, stops_at_s=strike_s)


def _expected_release(until_s: float, *, is_set: bool) -> Safeguard:
    if is_set:
        detail = "the machine will be allowed to deallocate itself, and nothing else"
        return Safeguard(name="self-release", is_set=True, detail=detail, stops_at_s=until_s)
    return Safeguard(
        name="self-release",
        is_set=False,
        detail="the account may not let machines deallocate themselves",
        hint=RELEASE_HINT,
    )


def _cap_of(answer: dict[str, Any]) -> Safeguard:
    cap = current_cap(answer)
    if cap > 0:
        detail = f"Azure evicts the machine before it costs more than {cap} USD/h"
        return Safeguard(name="price cap", is_set=True, detail=detail)
    return Safeguard(
        name="price cap",
        is_set=False,
        detail="no cap: the price is at most the on-demand price",
        hint="set `vm.max_price`",
    )


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """The most that a machine can cost if nobody ever looks at it again."""

    compute_usd: float
    """Until the surest switch that names a time has been pulled; infinite if none holds."""
    idle_usd_per_day: float
    """Disk and address, from then on, until `qft down --delete`."""
    why: str
    usd_per_day: float
    """Of compute and all else, while it runs."""

    @property
    def detail(self) -> str:
        """The sum in words."""
        if math.isinf(self.compute_usd):
            return f"if this computer dies, {self.why}: ${self.usd_per_day:.2f} a day, no end"
        return (
            f"at most ${self.compute_usd:.2f} of compute ({self.why}), then "
            f"${self.idle_usd_per_day:.2f} a day for disk and address until `qft down --delete`"
        )


def _with_worst_case(
    found: list[Safeguard], *, now_s: float, most: float, disk_gb: int
) -> list[Safeguard]:
    """The switches, those that could name a time with the bill that they leave possible.

    `most` is the highest price that the machine can come to, USD per hour; 0 if nobody knows.
    """
    if most <= 0:
        return found
    worst = worst_case(
        found, now_s=now_s, cap_usd_per_h=most, idle_usd_per_h=idle_usd_per_h(disk_gb)
    )
    timed = [one.name for one in found if one.is_set and one.stops_at_s is not None]
    first = timed[0] if timed else "auto-shutdown"  # with nothing set, say what its lack costs
    return [
        replace(one, detail=f"{one.detail}: {worst.detail}") if one.name == first else one
        for one in found
    ]


def _most(want: Want) -> float:
    """The highest price of a machine that would be rented: its cap, else on demand."""
    return want.max_price_usd_per_h or AZURE.on_demand_max(gpu=want.gpu)


def worst_case(
    protections: list[Safeguard], *, now_s: float, cap_usd_per_h: float, idle_usd_per_h: float
) -> WorstCase:
    """The bill of a machine at its cap until the first of the switches that names a time.

    They come in the order of trust: what Azure pulls itself stands before our own watchdog.
    """
    times = [p.stops_at_s for p in protections if p.is_set and p.stops_at_s is not None]
    per_day = idle_usd_per_h * 24
    if not times:
        return WorstCase(
            compute_usd=math.inf,
            idle_usd_per_day=per_day,
            why="nothing stops it by itself",
            usd_per_day=cap_usd_per_h * 24 + per_day,
        )
    hours = max(times[0] - now_s, 0.0) / 3600
    return WorstCase(
        compute_usd=hours * cap_usd_per_h,
        idle_usd_per_day=per_day,
        usd_per_day=cap_usd_per_h * 24 + per_day,
        why=f"{hours:.1f} h at {cap_usd_per_h} USD/h until {format_utc(times[0])}",
    )
