"""What this account may do, read from Azure's own list instead of found out by failing."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from infra.azure.account import Account
from infra.provider import Gone

VERSION = "2022-04-01"
RENT = (
    "Microsoft.Resources/subscriptions/resourceGroups/write",
    "Microsoft.Resources/subscriptions/resourceGroups/delete",
    "Microsoft.Compute/virtualMachines/write",
    "Microsoft.Network/virtualNetworks/write",
    "Microsoft.Network/publicIPAddresses/write",
    "Microsoft.Network/networkSecurityGroups/write",
    "Microsoft.Network/networkInterfaces/write",
)
ASSIGN = "Microsoft.Authorization/roleAssignments/write"
DEFINE = "Microsoft.Authorization/roleDefinitions/write"
RELEASE_HINT = "ask for `User Access Administrator`"
"""`Role Based Access Control Administrator` may assign roles, but not define the one of ours."""
SCHEDULE = "Microsoft.DevTestLab/schedules/write"


def permissions(account: Account) -> list[dict[str, Any]]:
    """The account's permissions on the subscription."""
    return account.arm.listed(
        "read what this account may do",
        f"/subscriptions/{account.settings.subscription_id}"
        "/providers/Microsoft.Authorization/permissions",
        version=VERSION,
    )


def allowed(granted: Sequence[Mapping[str, Any]], action: str) -> bool:
    """Whether some role grants `action` without taking it away again; `*` stands for anything."""
    return any(
        _covers(role.get("actions") or [], action)
        and not _covers(role.get("notActions") or [], action)
        for role in granted
    )


def may_release(account: Account, granted: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the account may let a machine deallocate itself.

    It must be able to assign the role of ours, and to define it unless somebody has done so.
    """
    if not allowed(granted, ASSIGN):
        return False
    return allowed(granted, DEFINE) or role_is_defined(account)


def role_id(subscription_id: str) -> str:
    """The one role of ours in a subscription; the same for every machine and every computer."""
    name = uuid.uuid5(uuid.NAMESPACE_URL, f"qft/{subscription_id}/deallocate")
    home = f"/subscriptions/{subscription_id}"
    return f"{home}/providers/Microsoft.Authorization/roleDefinitions/{name}"


def role_is_defined(account: Account) -> bool:
    """Whether that role is there."""
    role = role_id(account.settings.subscription_id)
    try:
        account.arm.send("look for the role that may only deallocate", "GET", role, version=VERSION)
    except Gone:
        return False
    return True


def _covers(patterns: Sequence[str], action: str) -> bool:
    return any(
        re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), action, re.IGNORECASE)
        for pattern in patterns
    )
