"""Sets the safeguards that end the bill at Azure when everything of ours is dead.

    price cap       at the cloud, from the first second; always there
    auto-shutdown   a schedule of Azure's that deallocates at a time of day; any Contributor may
    self-release    the machine may deallocate itself, and nothing else; needs a role assignment

`shutdown` from inside is none of them: a machine that is switched off goes on billing.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from infra.azure.context import AzureContext
from infra.azure.naming import DISK_GB, NODE, SCHEDULE, Names, idle_usd_per_h, names_of
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
from infra.errors import BadRequest, ProviderError
from infra.offer import Want
from infra.provider import Safeguard, Vm
from infra.renting.safeguards import HourlyRates, try_set, with_worst_case
from infra.renting.tags import RUN
from infra.timestamps import format_utc

LEAD_S = 30 * 60.0
"""A schedule set less than half an hour ahead may first take effect a day later."""
AHEAD_S_MAX = 23 * 3600.0
"""A schedule takes effect every day, so it cannot wait longer than one."""
ACTION = "Microsoft.Compute/virtualMachines/deallocate/action"


@dataclass(frozen=True, kw_only=True)
class AzureSafeguards:
    """Sets the safeguards of one machine; safe to repeat, and meant to be."""

    context: AzureContext
    observer: VmObserver
    permissions: Permissions

    def set_safeguards(self, vm: Vm, *, until_s: float) -> list[Safeguard]:
        """Set every safeguard that this account may set, so that compute ends soon after `until_s`.

        A limit more than 23 hours away is approached in steps: call again within that time. Never
        raises for one that cannot be set: that is a finding, to be shown to the user.
        `until_s` is by the clock of this computer; what is answered is by Azure's.
        """
        names = names_of(vm, self.context.settings.subscription_id)
        answer = self.observer.get(names)
        skew_s = self.context.arm.skew_s  # Azure's schedules follow its own clock
        now_s, until_s = self.context.clock() + skew_s, until_s + skew_s
        strike_s = next_strike_s(now_s, until_s)
        found = [
            _cap_of(answer),
            try_set("auto-shutdown", lambda: self._schedule(names, answer, strike_s)),
            try_set(
                "self-release",
                lambda: self._role(names, answer, until_s),
                permission_hint=RELEASE_HINT,
            ),
        ]
        size = str(((answer.get("properties") or {}).get("hardwareProfile") or {}).get("vmSize"))
        price_max = current_cap(answer)
        if price_max == NO_CAP:
            price_max = AZURE.on_demand_max(size=size)
        return _with_worst_case(found, now_s=now_s, price_max=price_max, disk_gb=_disk_gb(answer))

    def preview_safeguards(self, want: Want, *, until_s: float) -> list[Safeguard]:
        """Tell from permissions alone which safeguards can be set; changes nothing.

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
            return _with_worst_case(
                found, now_s=now_s, price_max=_price_max(want), disk_gb=want.disk_gb
            )
        found += [
            _expected_schedule(strike_s, is_set=settable.schedule),
            _expected_release(until_s, is_set=settable.release),
        ]
        return _with_worst_case(
            found, now_s=now_s, price_max=_price_max(want), disk_gb=want.disk_gb
        )

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
            detail=f"Azure deallocates the machine at {format_utc(strike_s)} unless this is"
            " renewed",
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
    """Choose when the schedule strikes: at the limit, on a full minute, within Azure's range."""
    wanted = min(max(until_s, now_s + LEAD_S), now_s + AHEAD_S_MAX)
    return math.ceil(wanted / 60) * 60.0


def schedule_body(names: Names, *, region: str, strike_s: float) -> dict[str, Any]:
    """Build the auto-shutdown schedule of one machine, in UTC, without mails."""
    at = datetime.fromtimestamp(strike_s, tz=UTC)
    return {
        "location": region,
        "tags": {RUN: names.run_id} | ({NODE: str(names.node)} if names.node else {}),
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
    """Build the role definition with a single permission."""
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
    """Name the role assignment that lets one machine's identity deallocate that machine."""
    name = uuid.uuid5(uuid.NAMESPACE_URL, f"qft{vm_id.lower()}/{principal}")
    return f"{vm_id}/providers/Microsoft.Authorization/roleAssignments/{name}"


def disk_stays(disk_days: float | None) -> list[Safeguard]:
    """What to know for those who set `budget.disk_days`: no schedule of Azure removes a disk."""
    if disk_days is None:
        return []
    detail = "nothing on Azure removes the disk by itself: `budget.disk_days` has no effect here"
    return [Safeguard(name="disk", is_set=False, detail=detail, hint="`qft down --delete`")]


def _disk_gb(answer: dict[str, Any]) -> int:
    """Read the size of its disk, which Azure leaves out of a deallocated machine."""
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


def _price_max(want: Want) -> float:
    """The highest price of a machine that would be rented: its cap, else on demand."""
    return want.max_price_usd_per_h or AZURE.on_demand_max(gpu=want.gpu, gpu_count=want.gpu_count)


def _with_worst_case(
    found: list[Safeguard], *, now_s: float, price_max: float, disk_gb: int
) -> list[Safeguard]:
    """The safeguards with the bill that they leave possible."""
    return with_worst_case(
        found,
        now_s=now_s,
        rates=HourlyRates(price_max=price_max, idle=idle_usd_per_h(disk_gb)),
        main="auto-shutdown",
    )
