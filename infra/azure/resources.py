"""Reads and removes the parts of a run by id, through the SDK's client that knows their type."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.azure.api_versions import type_of
from infra.azure.context import AzureContext
from infra.azure.errors import UnregisteredError
from infra.azure.naming import DISK, NIC, NSG, PUBLIC_IP, VM, VNET, Names
from infra.errors import Gone, ProviderError, Transient
from infra.renting.run_record import RunRecord

if TYPE_CHECKING:
    from infra.azure.sdk import Arm, Operation

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


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Reads the parts of a run's resource group and removes them."""

    context: AzureContext

    def inventory(self, names: Names) -> list[dict[str, Any]]:
        """List what the group contains; the list lags."""
        with contextlib.suppress(Gone):  # no group holds nothing
            return self.context.arm.pages(
                "list what the group holds",
                lambda: self.context.arm.resources.resources.list_by_resource_group(names.group),
            )
        return []

    def begin_group_removal(self, names: Names, token: str) -> Operation:
        """Begin to remove the group with all that is in it, or take that up by its token."""
        groups = self.context.arm.resources.resource_groups
        more = {"continuation_token": token} if token else {}
        return self.context.arm.begin(
            f"remove the resource group `{names.group}`",
            groups.begin_delete,
            names.group,
            force_deletion_types=VM,
            **more,
        )

    def remove_id(self, id_: str, deadline: float) -> None:
        """Remove one part and wait until it is gone, so that nothing holds on to the next."""
        with contextlib.suppress(Gone):  # gone is the goal
            begin_removal(self.context.arm, id_)
        while self.exists(id_):
            if self.context.clock() >= deadline:
                raise Transient(f"`{id_}` is not gone yet")
            self.context.sleep(self.context.settings.polling_s)

    def exists(self, id_: str) -> bool:
        """Whether a part is there."""
        return self.get(id_) is not None

    def get(self, id_: str) -> dict[str, Any] | None:
        """A part as Azure describes it; None if there is none."""
        try:
            return get_part(self.context.arm, id_)
        except (Gone, UnregisteredError):
            return None

    def remove_empty_group(self, record: RunRecord, names: Names) -> None:
        """Remove a group that holds nothing; whether it goes now or in a minute costs nothing."""
        with contextlib.suppress(ProviderError):  # an empty group costs nothing
            self.context.begin_or_resume(
                record, "group", lambda token: self.begin_group_removal(names, token)
            )
            self.context.clear_tokens(record, "group")


def get_part(arm: Arm, id_: str) -> dict[str, Any]:
    """Get a part as Azure describes it; raises `Gone` if there is none."""
    doing, operations = f"look at `{id_}`", _operations(arm, id_)
    if operations is None:
        return arm.send(doing, "GET", id_)
    return dict(arm.call(doing, operations.get, *_group_and_name(id_)))


def begin_removal(arm: Arm, id_: str) -> None:
    """Begin to remove a part, without waiting for it; raises `Gone` if there is none."""
    doing, operations = f"remove `{id_}`", _operations(arm, id_)
    if operations is None:
        arm.send(doing, "DELETE", id_)
    else:
        arm.begin(doing, operations.begin_delete, *_group_and_name(id_))


def _operations(arm: Arm, id_: str) -> Any:
    """Find the SDK's operations for the type of an id; None if it has none."""
    client = _CLIENTS.get(type_of(id_).lower())
    return getattr(getattr(arm, client[0]), client[1]) if client else None


def _group_and_name(id_: str) -> tuple[str, str]:
    segments = id_.strip("/").split("/")
    return segments[3], segments[-1]
