"""One part of a machine by its full id, read and removed through the client that knows its type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.azure.api_versions import type_of
from infra.azure.naming import DISK, NIC, NSG, PUBLIC_IP, VM, VNET

if TYPE_CHECKING:
    from infra.azure.sdk import Arm

_CLIENTS = {
    VM.lower(): ("compute", "virtual_machines"),
    DISK.lower(): ("compute", "disks"),
    NIC.lower(): ("network", "network_interfaces"),
    PUBLIC_IP.lower(): ("network", "public_ip_addresses"),
    NSG.lower(): ("network", "network_security_groups"),
    VNET.lower(): ("network", "virtual_networks"),
}
"""Each type with the SDK's client and operations for it, which know its api-version; an
auto-shutdown schedule has none among the SDK's packages that qft installs."""


def look_at(arm: Arm, id_: str) -> dict[str, Any]:
    """A part as Azure describes it; raises `Gone` if there is none."""
    doing, operations = f"look at `{id_}`", _operations(arm, id_)
    if operations is None:
        return arm.send(doing, "GET", id_)
    return dict(arm.call(doing, operations.get, *_group_and_name(id_)))


def begin_removal(arm: Arm, id_: str) -> None:
    """Ask for a part to be removed, without waiting for it; raises `Gone` if there is none."""
    doing, operations = f"remove `{id_}`", _operations(arm, id_)
    if operations is None:
        arm.send(doing, "DELETE", id_)
    else:
        arm.begin(doing, operations.begin_delete, *_group_and_name(id_))


def _operations(arm: Arm, id_: str) -> Any:
    """The SDK's operations for the type of an id; None if it has none."""
    client = _CLIENTS.get(type_of(id_).lower())
    return getattr(getattr(arm, client[0]), client[1]) if client else None


def _group_and_name(id_: str) -> tuple[str, str]:
    words = id_.strip("/").split("/")
    return words[3], words[-1]
