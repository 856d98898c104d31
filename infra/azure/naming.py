"""Names and tags from which everything of a run can be found again with every local file lost."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from infra.provider import BadRequest, NotAllowed, PowerState, Vm, VmSpec

RUN = "qft-run"
GENERATION = "qft-generation"
TAG_VALUE_CHARS_MAX = 256
LABELS_MAX = 20
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


def tags_of(spec: VmSpec, *, created_at: str) -> dict[str, str]:
    """The tags that every part carries: enough to list, to reach and to remove the machine.

    Holds public facts only. Raises `BadRequest` for a label that no tag can hold.
    """
    tags = {
        RUN: spec.run_id,
        GENERATION: str(spec.generation),
        "qft-created": created_at,
        "qft-region": spec.offer.region,
        "qft-zone": spec.offer.zone,
        "qft-size": spec.offer.size,
        "qft-user": spec.user,
        "qft-host-key": spec.host_public_key.strip(),
        "qft-cap": "" if spec.max_price_usd_per_h is None else f"{spec.max_price_usd_per_h:.5f}",
        "qft-price": f"{spec.offer.spot_usd_per_h:.6f}",
        "qft-idle": f"{idle_usd_per_h(spec.disk_gb):.6f}",
    }
    for name, value in sorted(spec.labels.items())[:LABELS_MAX]:
        tags[f"qft-label-{re.sub('[<>%&?/]', '-', name)}"[:512]] = value
    for name, value in tags.items():
        if len(value) > TAG_VALUE_CHARS_MAX:
            raise BadRequest(f"the tag `{name}` is longer than {TAG_VALUE_CHARS_MAX} characters")
    return tags


def lower_case_names(tags: Mapping[str, str] | None) -> dict[str, str]:
    """Tags by names in lower case: names have no case at Azure, and policies rewrite them."""
    return {name.lower(): str(value) for name, value in (tags or {}).items()}


def is_of_run(tags: Mapping[str, str] | None, run_id: str) -> bool:
    """Whether tags say that what carries them belongs to that run."""
    return lower_case_names(tags).get(RUN, "").lower() == run_id.lower()


def vm_from_tags(
    found: Mapping[str, str], *, subscription_id: str, power: PowerState, host: str = ""
) -> Vm | None:
    """The machine that these tags speak of; None if they are not ours."""
    tags = lower_case_names(found)
    run_id = tags.get(RUN, "").lower()
    if not run_id:
        return None
    generation = int(tags.get(GENERATION, "1")) if tags.get(GENERATION, "1").isdigit() else 1
    names = Names(subscription_id=subscription_id, run_id=run_id, generation=generation)
    return Vm(
        provider="azure",
        run_id=run_id,
        id=names.vm_id,
        region=tags.get("qft-region", ""),
        size=tags.get("qft-size", ""),
        zone=tags.get("qft-zone", ""),
        generation=generation,
        user=tags.get("qft-user", "qft"),
        host=host,
        host_public_key=tags.get("qft-host-key", ""),
        power=power,
        created_at=tags.get("qft-created", ""),
        price_usd_per_h=_number(tags.get("qft-price", "")),
        idle_usd_per_h=_number(tags.get("qft-idle", "")) or idle_usd_per_h(DISK_GB),
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
