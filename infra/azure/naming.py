"""Names the parts of a run, so that they are found again with every local file lost."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from infra.errors import NotAllowed
from infra.provider import Vm
from infra.renting.tags import lower_case_names, vm_from_tags

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
    node: int = 0
    """Which of the machines of its run it is: node 0 is called as the machine of a run with one."""
    network_generation: int = 0
    """The generation in the names of the network that the run's machines share, where that is not
    this machine's own; 0: it is."""

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
        which = f"node{self.node}-" if self.node else ""
        return f"qft-{self.run_id}-{which}{self.generation}"

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
        return f"{self._network}-nsg"

    @property
    def vnet(self) -> str:
        """The virtual network."""
        return f"{self._network}-vnet"

    @property
    def _network(self) -> str:
        return f"qft-{self.run_id}-{self.network_generation or self.generation}"

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

    def own_ids(self) -> list[str]:
        """Every id of what is this machine's alone, in the order of removal."""
        return [
            self.id_of(SCHEDULE, self.schedule),
            self.vm_id,
            self.id_of(DISK, self.disk),
            self.id_of(NIC, self.nic),
            self.id_of(PUBLIC_IP, self.public_ip),
        ]

    def shared_ids(self) -> list[str]:
        """The ids of what the machines of the run share, in the order of removal."""
        return [self.id_of(NSG, self.nsg), self.id_of(VNET, self.vnet)]


def ids_of(machines: Sequence[Names]) -> list[str]:
    """Every id that machines of a run can have left behind, in the order of removal.

    What they share comes last, and is named as node 0 says.
    """
    own = [id_ for one in machines for id_ in one.own_ids()]
    shared = [id_ for one in machines if one.node == 0 for id_ in one.shared_ids()]
    return [*own, *shared]


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
    return Names(
        subscription_id=subscription_id,
        run_id=vm.run_id,
        generation=vm.generation,
        node=vm.node,
    )


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


def vm_of_tags(tags: Mapping[str, str] | None, *, subscription_id: str) -> Vm | None:
    """The machine that tags describe, not yet observed; None if they are not ours."""
    node = node_of(tags)

    def vm_id(run_id: str, generation: int) -> str:
        return Names(
            subscription_id=subscription_id, run_id=run_id, generation=generation, node=node
        ).vm_id

    found = vm_from_tags(
        tags, provider="azure", id_of=vm_id, default_idle_usd_per_h=idle_usd_per_h(DISK_GB)
    )
    return found and replace(found, node=node)


NODE = "qft-node"
"""The tag of what belongs to one of several machines: its number; that of node 0 carries none."""


def node_of(tags: Mapping[str, str] | None) -> int:
    """Read from its tags to which of its run's machines something belongs."""
    text = lower_case_names(tags).get(NODE, "")
    return int(text) if text.isdigit() else 0
