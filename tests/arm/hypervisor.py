"""Runs the simulated Azure's machines as real processes, with SSH and metadata."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from metal import firstboot
from metal.definition import AZURE_IMAGES, VmDefinition
from metal.hypervisor import MachineHost

from arm.metadata import MetadataService
from arm.replies import Reply, Request
from arm.world import Resource
from infra.local.machine import Machine


@dataclass
class LocalHypervisor(MachineHost[Resource]):
    """Runs every machine as a process of this computer, behind the address the cloud gave it.

    Its `metadata_url` is for `QFT_IMDS_ENDPOINT`.
    """

    identity: Callable[[Request, str], Reply] = lambda _request, _vm_id: Reply(status=404)
    """The cloud's answer to a machine that asks for a token of its own."""

    def id_of(self, vm: Resource) -> str:
        """Its id in Azure."""
        return vm.id

    def definition(self, vm: Resource) -> VmDefinition:
        """The machine as its PUT asked for it."""
        profile, storage = vm.properties["osProfile"], vm.properties["storageProfile"]
        offer = storage["imageReference"].get("offer", "")
        return VmDefinition(
            id=vm.id,
            name=vm.name,
            user=profile["adminUsername"],
            public_key=profile["linuxConfiguration"]["ssh"]["publicKeys"][0]["keyData"],
            images=AZURE_IMAGES,
            image="hpc" if "hpc" in offer else "plain",
            disk_gb=float(storage["osDisk"].get("diskSizeGB", 30)),
            cloud_config=firstboot.parsed(profile["customData"]),
            card=card_of(vm.properties["hardwareProfile"]["vmSize"]),
            secure_boot=secure_by(vm.properties),
            instance={"vmId": vm.properties["vmId"], "location": vm.location, "resourceId": vm.id},
        )

    def metadata_service(self, vm: Resource, machine: Machine) -> MetadataService:
        """Answers for the machine: tokens in the cloud's name, the rest as the machine does."""
        return MetadataService(
            identity=lambda request: self.identity(request, vm.id),
            port_of=lambda: machine.state().metadata_port,
        )

    def metadata_port_of(self, id_: str) -> int:
        """Where the machine's own service answers."""
        return self.machines[id_].state().metadata_port

    def warn(self, vm: Resource, notice_s: float) -> None:
        """Announce the eviction; the machine ends itself when the notice has run out."""
        self.machines[vm.id].request_eviction(notice_s / max(self.pace, 1.0))


def secure_by(properties: dict[str, Any]) -> bool:
    """Whether the machine was asked for with Secure Boot."""
    profile = properties.get("securityProfile") or {}
    return bool((profile.get("uefiSettings") or {}).get("secureBootEnabled"))


def card_of(size: str) -> dict[str, Any]:
    """The cards that a size of Azure has."""
    size = size.lower()
    if "_a10_" in size:
        share = {"nv6ads": 4, "nv12ads": 8, "nv18ads": 12}.get(size.split("_")[1], 24)
        return {
            "gpu_name": f"NVIDIA A10-{share}Q",
            "cards": 2 if "nv72ads" in size else 1,
            "pci": "2236",
            "memory_mb": share * 1024 - 64,
            "capability": "8.6",
            "vgpu": True,
        }
    if "_a100_" in size:
        gpu = {"gpu_name": "NVIDIA A100 80GB PCIe", "pci": "20b5", "memory_mb": 81920}
        return {**gpu, "capability": "8.0"}
    if "_h100_" in size:
        gpu = {"gpu_name": "NVIDIA H100 NVL", "pci": "2321", "memory_mb": 95830}
        return {**gpu, "capability": "9.0"}
    return {"cards": 4 if "nc64as" in size else 1}
