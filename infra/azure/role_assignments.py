"""Role assignments that go with a machine, found in Azure's own record, whoever made them."""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import quote

from infra.azure.context import AzureContext
from infra.azure.naming import Names
from infra.azure.permissions import role_id
from infra.provider import Gone, NotAllowed, Rejected

LIST = "providers/Microsoft.Authorization/roleAssignments"


def revoke_role_assignments(context: AzureContext, names: Names) -> None:
    """Delete what the machine's identity was granted, and what our role was granted in its group.

    The identity dies with the machine: whatever it still holds afterwards belongs to nobody, and is
    shown as "Identity not found" for ever. Our role itself stays: it is one for the subscription,
    other machines may need it, and not everybody who may assign it may define it again.

    Safe to repeat, and silent for an account that may not read or write assignments: they cost
    nothing. Raises `Transient` and `SignedOut`.
    """
    for id_ in _found(context, names):
        with contextlib.suppress(Gone, NotAllowed, Rejected):
            context.arm.send("take back a right of the machine", "DELETE", id_)


def _found(context: AzureContext, names: Names) -> list[str]:
    """The ids of the assignments that go with the machine."""
    home = f"/subscriptions/{names.subscription_id}"
    found: list[dict[str, Any]] = []
    if principal := _principal(context, names):
        wanted = quote(f"principalId eq '{principal}'")
        found += _listed(context, f"{home}/{LIST}?$filter={wanted}") or []
    in_group = _listed(context, f"{names.group_id}/{LIST}")
    if in_group is None:  # the group is gone: what hung on it is known to the subscription alone
        in_group = _listed(context, f"{home}/{LIST}") or []
    found += [one for one in in_group if _is_ours(one, names)]
    ids = {str(one.get("id") or "").lower(): str(one.get("id") or "") for one in found}
    return [id_ for id_ in ids.values() if id_]


def _listed(context: AzureContext, path: str) -> list[dict[str, Any]] | None:
    """Assignments; none for an account that may not look, None where the scope is gone."""
    try:
        return context.arm.listed("list what the machine may do", path)
    except Gone:
        return None
    except (NotAllowed, Rejected):
        return []


def _is_ours(assignment: dict[str, Any], names: Names) -> bool:
    """Whether it grants our role somewhere in the run's group."""
    properties = assignment.get("properties") or {}
    scope = f"{properties.get('scope') or ''}/".lower()
    role = str(properties.get("roleDefinitionId") or "").lower()
    ours = role.rpartition("/")[2] == role_id(names.subscription_id).rpartition("/")[2]
    return ours and scope.startswith(f"{names.group_id}/".lower())


def _principal(context: AzureContext, names: Names) -> str:
    """The identity of the machine; empty if it has none, or is gone."""
    machines = context.arm.compute.virtual_machines
    try:
        answer = context.arm.call("look at the machine", machines.get, names.group, names.vm)
    except (Gone, NotAllowed, Rejected):
        return ""
    return str((answer.get("identity") or {}).get("principalId") or "")
