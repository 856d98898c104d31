"""Names the parts of a run, so that they are found again with every local file lost."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from infra.errors import NotAllowed
from infra.provider import Vm
from infra.renting.tags import vm_from_tags

TAG_NAME_CHARS_MAX = 512
DISK_GB = 128
"""The disk of a machine unless `vm.disk_gb` says otherwise."""
DISK_USD_PER_GB_H = 9.60 / 128 / 730
"""StandardSSD E10, public list price of a month of 730 hours."""
ADDRESS_USD_PER_H = 0.005
"""Static Standard public address, public list price."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """What the parts of one machine are called, and their full ids."""

    subscription_id: str
    run_id: str
    generation: int

    @property
    def group(self) -> str:
        """The resource group: one per run, so that one deletion removes all of it."""
        return f"qft-{self.run_id}"

    @property
    def group_id(self) -> str:
        """The group's full id."""
        return f"/subscriptions/{self.subscription_id}/resourceGroups/{self.group}"

    @property
    def vm(self) -> str:
        """The machine."""
        return f"qft-{self.run_id}-{self.generation}"

    @property
    def nic(self) -> str:
        """The network card."""
        return f"{self.vm}-nic"

    @property
    def public_ip(self) -> str:
        """The public address."""
        return f"{self.vm}-ip"

    @property
    def nsg(self) -> str:
        """The network security group."""
        return f"{self.vm}-nsg"

    @property
    def vnet(self) -> str:
        """The virtual network."""
        return f"{self.vm}-vnet"

    @property
    def disk(self) -> str:
        """The disk with the system and the checkpoints."""
        return f"{self.vm}-disk"

    @property
    def schedule(self) -> str:
        """The auto-shutdown schedule; Azure prescribes this name."""
        return f"shutdown-computevm-{self.vm}"

    def id_of(self, type_: str, name: str) -> str:
        """The full id of a resource of `type_`, such as `Microsoft.Compute/disks`."""
        return f"{self.group_id}/providers/{type_}/{name}"

    @property
    def vm_id(self) -> str:
        """The machine's full id."""
        return self.id_of(VM, self.vm)

    def all_ids(self) -> list[str]:
        """Every id that a machine of this run can have left behind, in the order of removal."""
        return [
            self.id_of(SCHEDULE, self.schedule),
            self.vm_id,
            self.id_of(DISK, self.disk),
            self.id_of(NIC, self.nic),
            self.id_of(PUBLIC_IP, self.public_ip),
            self.id_of(NSG, self.nsg),
            self.id_of(VNET, self.vnet),
        ]


VM = "Microsoft.Compute/virtualMachines"
DISK = "Microsoft.Compute/disks"
NIC = "Microsoft.Network/networkInterfaces"
PUBLIC_IP = "Microsoft.Network/publicIPAddresses"
NSG = "Microsoft.Network/networkSecurityGroups"
VNET = "Microsoft.Network/virtualNetworks"
SCHEDULE = "Microsoft.DevTestLab/schedules"

KINDS = {
    VM.lower(): "virtual machine",
    DISK.lower(): "disk",
    NIC.lower(): "network card",
    PUBLIC_IP.lower(): "public IP",
    NSG.lower(): "firewall",
    VNET.lower(): "network",
    SCHEDULE.lower(): "auto-shutdown schedule",
}


def names_of(vm: Vm, subscription_id: str) -> Names:
    """The names of an existing machine's parts.

    Raises `NotAllowed` for a machine of another subscription than the one chosen: looked for there
    it would seem to be gone, while it goes on billing.
    """
    check_subscription(vm.id, subscription_id)
    return Names(subscription_id=subscription_id, run_id=vm.run_id, generation=vm.generation)


def check_subscription(id_: str, chosen: str) -> None:
    """Raise `NotAllowed` if a full id belongs to another subscription than the one chosen."""
    found = re.match(r"/subscriptions/([^/]+)/", id_, re.IGNORECASE)
    if found and found[1].lower() != chosen.lower():
        raise NotAllowed(
            f"this run's machine is in the subscription {found[1]}, and "
            f"{chosen or 'none'} is chosen: looked for here, it would bill there unseen",
            hint=f"set AZURE_SUBSCRIPTION_ID={found[1]} (or `vm.azure.subscription`)",
        )


def idle_usd_per_h(disk_gb: int) -> float:
    """What a disk of that size and the address cost per hour while the compute does not bill."""
    return round(disk_gb * DISK_USD_PER_GB_H + ADDRESS_USD_PER_H, 6)


def vm_of_group(tags: Mapping[str, str] | None, *, subscription_id: str) -> Vm | None:
    """The machine that a group's tags describe, not yet observed; None if they are not ours."""

    def vm_id(run_id: str, generation: int) -> str:
        return Names(subscription_id=subscription_id, run_id=run_id, generation=generation).vm_id

    return vm_from_tags(
        tags, provider="azure", id_of=vm_id, default_idle_usd_per_h=idle_usd_per_h(DISK_GB)
    )
