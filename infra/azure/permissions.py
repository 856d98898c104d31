"""Reads what this account may do, registers resource providers, and revokes machines' roles."""

from __future__ import annotations

import contextlib
import re
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from infra.azure.context import AzureContext
from infra.azure.naming import Names
from infra.errors import Gone, NotAllowed, ProviderError, Rejected, Transient

THREAD = "rights"
GRACE_S = 0.2
"""How long an answer is waited for at least: it may be on its way when the time is up."""
RENT = (
    "Microsoft.Resources/subscriptions/resourceGroups/write",
    "Microsoft.Resources/subscriptions/resourceGroups/delete",
    "Microsoft.Compute/virtualMachines/write",
    "Microsoft.Network/virtualNetworks/write",
    "Microsoft.Network/publicIPAddresses/write",
    "Microsoft.Network/networkSecurityGroups/write",
    "Microsoft.Network/networkInterfaces/write",
)
REMOVE = (
    "Microsoft.Compute/virtualMachines/delete",
    "Microsoft.Compute/disks/delete",
    "Microsoft.Network/networkInterfaces/delete",
    "Microsoft.Network/publicIPAddresses/delete",
)
"""What it takes beside `RENT` to remove one of several machines without their group."""
ASSIGN = "Microsoft.Authorization/roleAssignments/write"
DEFINE = "Microsoft.Authorization/roleDefinitions/write"
RELEASE_HINT = "ask for `User Access Administrator`"
"""`Role Based Access Control Administrator` may assign roles, but not define the one of ours."""
SCHEDULE = "Microsoft.DevTestLab/schedules/write"


def granted_permissions(context: AzureContext) -> list[dict[str, Any]]:
    """Read the account's permissions on the subscription."""
    return context.arm.listed(
        "read what this account may do",
        f"/subscriptions/{context.settings.subscription_id}"
        "/providers/Microsoft.Authorization/permissions",
    )


@dataclass(frozen=True, kw_only=True)
class Settable:
    """Which of the safeguards that end a bill the account may set."""

    schedule: bool
    release: bool


@dataclass
class Permissions:
    """Permissions of the account, requested in the background and not waited for long."""

    context: AzureContext
    settable: Settable | None = None
    error: ProviderError | None = None
    _thread: threading.Thread | None = None
    _until_s: float = 0.0

    def prefetch(self) -> None:
        """Begin the request; returns at once. One that is still open is not repeated."""
        if self._thread is not None and self._thread.is_alive():
            return
        self.context.arm.warm()  # the SDK's clients are made here, not by two threads at once
        self.settable = self.error = None
        self._until_s = time.monotonic() + self.context.settings.offers_wait_s
        self._thread = threading.Thread(target=self._learn, daemon=True, name=THREAD)
        self._thread.start()

    def result(self) -> Settable:
        """Wait for which safeguards may be set, until `offers_wait_s` after the request.

        Raises `Transient` if they did not come by then, and what asking for them raised.
        """
        if self._thread is None:
            self.prefetch()
        thread, self._thread = self._thread, None  # answers are for one plan: rights change
        if thread is not None:
            thread.join(max(self._until_s - time.monotonic(), GRACE_S))
        if self.error is not None:
            raise self.error
        if self.settable is None:
            waited_s = self.context.settings.offers_wait_s
            raise Transient(
                f"Azure did not say within {waited_s:.1f} s what this account may do",
                hint="ask again in a moment",
            )
        return self.settable

    def _learn(self) -> None:
        try:
            granted = granted_permissions(self.context)
            release = self.context.settings.self_release and may_release(self.context, granted)
            self.settable = Settable(schedule=allowed(granted, SCHEDULE), release=release)
        except ProviderError as error:
            self.error = error


def allowed(granted: Sequence[Mapping[str, Any]], action: str) -> bool:
    """Whether some role grants `action` without taking it away again; `*` stands for anything."""
    return any(
        _covers(role.get("actions") or [], action)
        and not _covers(role.get("notActions") or [], action)
        for role in granted
    )


def may_release(context: AzureContext, granted: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the account may let a machine deallocate itself.

    It must be able to assign the role of ours, and to define it unless somebody has done so.
    """
    if not allowed(granted, ASSIGN):
        return False
    return allowed(granted, DEFINE) or role_is_defined(context)


def role_id(subscription_id: str) -> str:
    """Name the one role of ours in a subscription; the same for every machine and computer."""
    name = uuid.uuid5(uuid.NAMESPACE_URL, f"qft/{subscription_id}/deallocate")
    home = f"/subscriptions/{subscription_id}"
    return f"{home}/providers/Microsoft.Authorization/roleDefinitions/{name}"


def role_is_defined(context: AzureContext) -> bool:
    """Whether that role is there."""
    role = role_id(context.settings.subscription_id)
    try:
        context.arm.send("look for the role that may only deallocate", "GET", role)
    except Gone:
        return False
    return True


def _covers(patterns: Sequence[str], action: str) -> bool:
    return any(
        re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), action, re.IGNORECASE)
        for pattern in patterns
    )


REGISTER_WAIT_S = 600.0


def ensure_registered(context: AzureContext, namespaces: Sequence[str]) -> None:
    """Make sure that the subscription may use `namespaces`; free of charge, once per subscription.

    Raises `NotAllowed` without the right to register, `Transient` if Azure takes longer than
    `REGISTER_WAIT_S`.
    """
    providers = context.arm.resources.providers
    waiting = [one for one in namespaces if not registered(context, one)]
    for namespace in waiting:
        context.arm.call(f"register {namespace}", providers.register, namespace)
    deadline = context.clock() + REGISTER_WAIT_S
    while waiting := [one for one in waiting if not registered(context, one)]:
        if context.clock() >= deadline:
            raise Transient(
                f"Azure is still registering {', '.join(waiting)} for this subscription",
                hint="it happens once per subscription; try again in a few minutes",
            )
        context.sleep(context.settings.polling_s)


def registered(context: AzureContext, namespace: str) -> bool:
    """Whether the subscription may use `namespace` now."""
    providers = context.arm.resources.providers
    found = context.arm.call(f"look whether {namespace} is registered", providers.get, namespace)
    return str(found.get("registrationState") or "").lower() == "registered"


LIST = "providers/Microsoft.Authorization/roleAssignments"


def revoke_role_assignments(context: AzureContext, machines: Sequence[Names], scope: str) -> None:
    """Delete what identities of machines were granted, and what our role was granted in `scope`.

    `scope` is the id of their group, or of the one machine. An identity dies with its machine:
    whatever it still holds afterwards belongs to nobody, and is shown as "Identity not found" for
    ever. Our role itself stays: it is one for the subscription, other machines may need it, and not
    everybody who may assign it may define it again.

    Safe to repeat, and silent for an account that may not read or write assignments: they cost
    nothing. Raises `Transient` and `SignedOut`.
    """
    for id_ in _found(context, machines, scope):
        # Gone, or not ours to take back: listed next time.
        with contextlib.suppress(Gone, NotAllowed, Rejected):
            context.arm.send("take back a right of the machine", "DELETE", id_)


def _found(context: AzureContext, machines: Sequence[Names], scope: str) -> list[str]:
    """Find the ids of the role assignments that go with the machines."""
    names = machines[0]
    home = f"/subscriptions/{names.subscription_id}"
    found: list[dict[str, Any]] = []
    for one in machines:
        if principal := _principal(context, one):
            wanted = quote(f"principalId eq '{principal}'")
            found += _listed(context, f"{home}/{LIST}?$filter={wanted}") or []
    in_group = _listed(context, f"{names.group_id}/{LIST}")
    if in_group is None:  # the group is gone: what hung on it is known to the subscription alone
        in_group = _listed(context, f"{home}/{LIST}") or []
    found += [one for one in in_group if _is_ours(one, names.subscription_id, scope)]
    ids = {str(one.get("id") or "").lower(): str(one.get("id") or "") for one in found}
    return [id_ for id_ in ids.values() if id_]


def _listed(context: AzureContext, path: str) -> list[dict[str, Any]] | None:
    """List assignments; none for an account that may not, None where the scope is gone."""
    try:
        return context.arm.listed("list what the machine may do", path)
    except Gone:
        return None
    except (NotAllowed, Rejected):
        return []


def _is_ours(assignment: dict[str, Any], subscription_id: str, scope: str) -> bool:
    """Whether it grants our role somewhere in that scope."""
    properties = assignment.get("properties") or {}
    granted_at = f"{properties.get('scope') or ''}/".lower()
    role = str(properties.get("roleDefinitionId") or "").lower()
    ours = role.rpartition("/")[2] == role_id(subscription_id).rpartition("/")[2]
    return ours and granted_at.startswith(f"{scope}/".lower())


def _principal(context: AzureContext, names: Names) -> str:
    """Read the machine's identity; empty if it has none, or is gone."""
    machines = context.arm.compute.virtual_machines
    try:
        answer = context.arm.call("look at the machine", machines.get, names.group, names.vm)
    except (Gone, NotAllowed, Rejected):
        return ""
    return str((answer.get("identity") or {}).get("principalId") or "")
