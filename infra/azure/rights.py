"""What this account may do, read from Azure's own list instead of found out by failing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from infra.azure.account import Account

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


def _covers(patterns: Sequence[str], action: str) -> bool:
    return any(
        re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), action, re.IGNORECASE)
        for pattern in patterns
    )
