"""Runs the simulated EC2's machines as real processes, made from their user data alone."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass, field
from typing import Any

from metal import firstboot
from metal.definition import AWS_IMAGES, VmDefinition
from metal.hypervisor import MachineHost

from ec2.metadata import Imds, MetadataFacts
from ec2.resources import Instance
from ec2.state import ACCOUNT
from ec2.world import World
from infra.local.machine import Machine

USER_DATA_BYTES_MAX = 16384
"""EC2's limit, counted before base64."""
CARDS: dict[str, dict[str, Any]] = {
    "g4dn": {"gpu_name": "Tesla T4", "pci": "1eb8", "memory_mb": 15360, "capability": "7.5"},
    "g5": {"gpu_name": "NVIDIA A10G", "pci": "2237", "memory_mb": 23028, "capability": "8.6"},
    "g6": {"gpu_name": "NVIDIA L4", "pci": "27b8", "memory_mb": 23034, "capability": "8.9"},
    "g6e": {"gpu_name": "NVIDIA L40S", "pci": "26b9", "memory_mb": 46068, "capability": "8.9"},
}
"""The card of each family of sizes, as `nvidia-smi` shows it."""
SEVERAL_CARDS = {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8, "metal": 8}


@dataclass
class Ec2Guests(MachineHost[Instance]):
    """Runs every machine as a process of this computer, behind the address that EC2 gave it.

    `ssh_port` is for `QFT_AWS_SSH_PORT`, `metadata_url` for `QFT_AWS_IMDS_ENDPOINT`. The cloud
    calls `attach` once.
    """

    imds: dict[str, Imds] = field(default_factory=dict)
    """The metadata service of each machine by its id."""

    def attach(self, world: World) -> None:
        """Belong to a world: its images, disks and clock; a shutdown from inside stops there."""
        self._world = world
        self.on_power_off = self._powered_off

    def id_of(self, vm: Instance) -> str:
        """Its id at EC2."""
        return vm.id

    def definition(self, vm: Instance) -> VmDefinition:
        """The machine as `RunInstances` asked for it; raises ValueError for bad user data."""
        data = base64.b64decode(vm.user_data)
        document = firstboot.document_of(data, bytes_max=USER_DATA_BYTES_MAX) if data else {}
        user, public_key, sudo = firstboot.login_of(document)
        image = self._world.images[vm.image_id].name.lower()
        return VmDefinition(
            id=vm.id,
            name=vm.id,
            user=user,
            public_key=public_key,
            images=AWS_IMAGES,
            image="base" if "deep learning" in image else "plain",
            disk_gb=float(self._world.volumes[vm.volume_id].size_gb),
            cloud_config=document,
            card=card_of(vm.size),
            sudo=sudo,
        )

    def metadata_service(self, vm: Instance, machine: Machine) -> Imds:
        """IMDS of that machine, whose times are those of the machine's own clock."""
        del machine
        self.imds[vm.id] = Imds(facts=lambda: self.facts(vm))
        return self.imds[vm.id]

    def metadata_port_of(self, id_: str) -> int:
        """Where that service answers."""
        return self.imds[id_].port

    def warn(self, vm: Instance, notice_s: float) -> None:
        """Do nothing: the metadata service reads the notice from the cloud itself."""

    def halt(self, vm: Instance) -> None:
        """Pull the plug; the address goes, the disk stays."""
        super().halt(vm)
        if forwarder := self.forwarders.pop(vm.id, None):
            forwarder.close()

    def facts(self, vm: Instance) -> MetadataFacts:
        """What a machine's metadata tells now."""
        self._world.run_due()
        options = vm.metadata_options
        notice = vm.notice
        return MetadataFacts(
            instance_id=vm.id,
            account=ACCOUNT,
            region=vm.region,
            zone=vm.zone,
            instance_type=vm.size,
            image_id=vm.image_id,
            local_ipv4=vm.private_ip,
            public_ipv4=vm.public_ip,
            lifecycle="spot" if vm.request_id else "on-demand",
            user_data=base64.b64decode(vm.user_data),
            action=notice.action if notice else "",
            action_at_s=self._inside(notice.at_s) if notice else 0.0,
            rebalance_s=None if vm.rebalance_s is None else self._inside(vm.rebalance_s),
            enabled=options["HttpEndpoint"] == "enabled",
            needs_token=options["HttpTokens"] == "required",
        )

    def _inside(self, at_s: float) -> float:
        """A time of the cloud by the machine's own clock, which is this computer's."""
        return time.time() + (at_s - self._world.now()) / max(self.pace, 1.0)

    def _powered_off(self, id_: str) -> None:
        with self._world.lock:
            self._world.run_due()
            self._world.shut_down_inside(id_)


def card_of(size: str) -> dict[str, Any]:
    """The cards that a size of EC2 has; a size without any lists none."""
    family, _, rest = size.partition(".")
    if family not in CARDS:
        return {"cards": 0}
    return {**CARDS[family], "cards": SEVERAL_CARDS.get(rest, 1)}
