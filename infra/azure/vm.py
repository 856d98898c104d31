"""Builds the request body of one spot machine, and reads the machine that Azure answers with.

Also which disk image a size boots from, and how its firmware is requested. All of it is pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infra.azure.cloudinit import custom_data
from infra.azure.naming import NIC, Names
from infra.azure.settings import PUBLIC_ARM
from infra.catalog.azure import AZURE
from infra.catalog.gpus import Driver
from infra.catalog.vendor import GpuSize
from infra.errors import BadRequest
from infra.image import generation_of
from infra.provider import PowerState, Vm, VmSpec

NO_CAP = -1
"""Azure's word for "never evict for the price"; the price is then capped at on-demand."""
CAP_STEP_USD = 1e-6
"""Caps that differ by less are the same: Azure keeps five decimals."""


@dataclass(frozen=True, kw_only=True)
class VmOptions:
    """Options of a machine apart from its spec."""

    image: str
    """URN: publisher:offer:sku:version."""
    disk_sku: str
    identity: bool
    """Whether it gets a managed identity of its own."""
    security: bool = True
    """Whether the body says that Secure Boot is off; not where Azure refused that."""
    arm: str = PUBLIC_ARM
    """The Resource Manager that the machine itself asks to take it back."""
    audience: str = PUBLIC_ARM


def vm_body(
    spec: VmSpec, *, names: Names, tags: dict[str, str], options: VmOptions
) -> dict[str, Any]:
    """Build the `virtualMachines` PUT body: spot, under the cap, with parts deleted along.

    Secure Boot is off, as `SECURITY` says why.
    """
    vm: dict[str, Any] = {
        "location": spec.offer.region,
        "tags": tags,
        "properties": {
            "priority": "Spot",
            "evictionPolicy": "Deallocate",
            "billingProfile": {"maxPrice": cap_of(spec)},
            "hardwareProfile": {"vmSize": spec.offer.size},
            "storageProfile": {
                "imageReference": image_of(options.image),
                "osDisk": {
                    "name": names.disk,
                    "createOption": "FromImage",
                    "deleteOption": "Delete",
                    "caching": "ReadWrite",
                    "diskSizeGB": spec.disk_gb,
                    "managedDisk": {"storageAccountType": options.disk_sku},
                },
            },
            "osProfile": _os_profile(spec, names, options),
            "networkProfile": {
                "networkInterfaces": [
                    {
                        "id": names.id_of(NIC, names.nic),
                        "properties": {"primary": True, "deleteOption": "Delete"},
                    }
                ]
            },
            "diagnosticsProfile": {"bootDiagnostics": {"enabled": True}},
        },
    }
    if options.security and (profile := security_for(options.image)):
        vm["properties"]["securityProfile"] = profile
    if options.identity:
        vm["identity"] = {"type": "SystemAssigned"}
    if spec.offer.zone:
        vm["zones"] = [spec.offer.zone]
    return vm


def _os_profile(spec: VmSpec, names: Names, options: VmOptions) -> dict[str, Any]:
    """Build the OS profile: one SSH key, no password, and the first-boot data."""
    return {
        "computerName": names.vm[:63].rstrip("-"),
        "adminUsername": spec.user,
        "customData": custom_data(
            host_private_key=spec.host_private_key,
            host_public_key=spec.host_public_key,
            self_release_arguments=_self_release_arguments(spec, options)
            if options.identity
            else (),
        ),
        "linuxConfiguration": {
            "disablePasswordAuthentication": True,
            "ssh": {
                "publicKeys": [
                    {
                        "path": f"/home/{spec.user}/.ssh/authorized_keys",
                        "keyData": spec.public_key.strip(),
                    }
                ]
            },
        },
    }


def _self_release_arguments(spec: VmSpec, options: VmOptions) -> list[str]:
    """The arguments of the program with which the machine releases itself."""
    home = ["--home", f"/home/{spec.user}"]
    if options.arm == PUBLIC_ARM:
        return home
    return [*home, "--arm", options.arm, "--audience", f"{options.audience}/"]


def cap_of(spec: VmSpec) -> float:
    """Read the cap as Azure wants it: USD per hour with five decimals, or -1 for none.

    Raises `BadRequest` for a cap that is not above zero.
    """
    return cap_for(spec.max_price_usd_per_h)


def cap_for(cap: float | None) -> float:
    """The same for a bare cap."""
    if cap is None:
        return NO_CAP
    if not cap > 0 or round(cap, 5) <= 0:
        raise BadRequest(f"a cap of {cap} USD/h rents nothing", hint="raise `vm.max_price`")
    return round(cap, 5)


def current_cap(answer: dict[str, Any]) -> float:
    """Read the cap of a machine, USD per hour; `NO_CAP` if it has none."""
    profile = (answer.get("properties") or {}).get("billingProfile") or {}
    return float(profile.get("maxPrice") or NO_CAP)


def image_of(urn: str) -> dict[str, str]:
    """`publisher:offer:sku:version` as Azure's image reference."""
    parts = urn.split(":")
    if len(parts) != 4 or not all(parts):
        raise BadRequest(f"`{urn}` is not publisher:offer:sku:version")
    return dict(zip(("publisher", "offer", "sku", "version"), parts, strict=True))


def urn_of(body: dict[str, Any]) -> str:
    """The image that a body asks for, as a URN or an id."""
    image = body["properties"]["storageProfile"]["imageReference"]
    return ":".join(str(value) for value in image.values())


def difference_from(answer: dict[str, Any], spec: VmSpec) -> str:
    """Why the machine that Azure describes is not a spot machine under our cap; empty if it is."""
    properties = answer.get("properties") or {}
    priority = properties.get("priority") or "Regular"
    cap = (properties.get("billingProfile") or {}).get("maxPrice")
    policy = properties.get("evictionPolicy")
    if priority != "Spot":
        return f"its priority is {priority}, which is billed at the on-demand price"
    if cap is None or abs(float(cap) - cap_of(spec)) > CAP_STEP_USD:
        return f"its price cap is {cap} instead of {cap_of(spec)} USD/h"
    if policy != "Deallocate":
        return f"its eviction policy is {policy}, which loses the disk"
    return ""


def vm_from_answer(answer: dict[str, Any], names: Names) -> Vm:
    """Read a machine of ours from its own description, where no tag describes it."""
    properties = answer.get("properties") or {}
    return Vm(
        provider="azure",
        run_id=names.run_id,
        id=names.vm_id,
        region=str(answer.get("location") or ""),
        size=str((properties.get("hardwareProfile") or {}).get("vmSize") or ""),
        generation=names.generation,
        node=names.node,
        created_at=str(properties.get("timeCreated") or ""),
    )


def power_of(answer: dict[str, Any]) -> tuple[PowerState, str]:
    """Read the power state and Azure's own words for it, from a GET with the instance view.

    Statuses come in any order, and the power state can be absent, so nothing is read by position.
    """
    properties = answer.get("properties") or {}
    made = str(properties.get("provisioningState") or "").lower()
    view = properties.get("instanceView") or {}
    statuses = [one for one in view.get("statuses") or [] if isinstance(one, dict)]
    codes = [str(one.get("code") or "") for one in statuses]
    power = next((c.partition("/")[2] for c in codes if c.lower().startswith("powerstate/")), "")
    state = _POWER.get(power.lower())
    if made == "deleting":
        return PowerState.STOPPING, "being deleted"
    if state is not None and (made != "failed" or state in _TRUSTED_AFTER_FAILURE):
        return state, _status_text(statuses, "powerstate/")
    if made == "failed":
        return PowerState.FAILED, _status_text(
            statuses, "provisioningstate/"
        ) or "provisioning failed"
    return PowerState.CREATING, _status_text(statuses, "provisioningstate/") or made


_POWER = {
    "creating": PowerState.CREATING,
    "starting": PowerState.STARTING,
    "running": PowerState.RUNNING,
    "stopping": PowerState.STOPPING,
    "stopped": PowerState.STOPPED,
    "deallocating": PowerState.STOPPING,
    "deallocated": PowerState.DEALLOCATED,
}
_TRUSTED_AFTER_FAILURE = {PowerState.RUNNING, PowerState.DEALLOCATED}


def failure_of(answer: dict[str, Any]) -> tuple[str, str]:
    """Read code and message of a failed provisioning from the instance view; empty if not there."""
    view = (answer.get("properties") or {}).get("instanceView") or {}
    for one in view.get("statuses") or []:
        parts = str(one.get("code") or "").split("/")
        if len(parts) == 3 and [part.lower() for part in parts[:2]] == [
            "provisioningstate",
            "failed",
        ]:
            return parts[2], str(one.get("message") or one.get("displayStatus") or "")
    return "", ""


def last_finished_at(answer: dict[str, Any]) -> str:
    """Read when Azure last finished something with the machine; empty if not in the view."""
    view = (answer.get("properties") or {}).get("instanceView") or {}
    for one in view.get("statuses") or []:
        if str(one.get("code") or "").lower() == "provisioningstate/succeeded":
            return str(one.get("time") or "")
    return ""


def _status_text(statuses: list[dict[str, Any]], prefix: str) -> str:
    for one in statuses:
        if str(one.get("code") or "").lower().startswith(prefix):
            texts = [one.get("displayStatus"), one.get("message")]
            return ": ".join(str(word) for word in texts if word)
    return ""


def check_spec(spec: VmSpec) -> None:
    """Raise `BadRequest` at once for what Azure would refuse late and at a cost."""
    if spec.offer.provider != "azure":
        raise BadRequest(f"an offer of `{spec.offer.provider}` cannot be rented from azure")
    if spec.user.lower() in _FORBIDDEN_USERS:
        raise BadRequest(f"Azure forbids the user name `{spec.user}`", hint="use `qft`")
    cap_of(spec)


_FORBIDDEN_USERS = frozenset(
    {
        *("1", "a", "actuser", "adm", "admin", "administrator", "backup", "console", "david"),
        *("guest", "john", "owner", "root", "server", "sql", "support", "sys", "test", "test1"),
        *("test2", "user", "user1", "user2", "video"),
        *("123", "admin1", "admin2", "aspnet", "support_388945a0", "test3", "user3", "user4"),
        "user5",
    }
)


WITH_DRIVER = "microsoft-dsvm:ubuntu-hpc:2404:latest"
"""Driver 580 and CUDA 13 preinstalled: nothing to build, no reboot."""
PLAIN = "Canonical:ubuntu-24_04-lts:server:latest"
"""For sizes that need Azure's GRID driver, which the image above would be in the way of."""
SECURITY = {
    "securityType": "TrustedLaunch",
    "uefiSettings": {"secureBootEnabled": False, "vTpmEnabled": True},
}
"""Secure Boot off, said in so many words: a subscription may have it on by default, and then the
kernel loads no driver that is built on the machine. `Standard` would say the same, but needs a
feature (`UseStandardSecurityType`) that few subscriptions have registered."""
REFUSED_SECURITY = ("trustedlaunch", "trusted launch", "securitytype", "securityprofile")
"""In the words of a refusal of `SECURITY`, which sizes and images without it get."""


def image_for(size: str, chosen: str = "") -> str:
    """Choose the image URN for a size: the user's, else the one that suits its driver.

    A size that the catalog lacks gets the image with the driver.
    """
    if chosen:
        return chosen
    catalogued = AZURE.find(size)
    return PLAIN if catalogued is not None and catalogued.driver is Driver.GRID else WITH_DRIVER


def security_for(image: str) -> dict[str, object] | None:
    """The `securityProfile` for a machine of that image; None for Gen1, which has no such thing."""
    return None if generation_of(image) == 1 else dict(SECURITY)


def refuses_security(text: str) -> bool:
    """Whether a refusal is about `SECURITY`, so that it helps to leave it out."""
    lowered = text.lower()
    return any(word in lowered for word in REFUSED_SECURITY)


def cannot_boot(image: str, size: GpuSize) -> str:
    """Explain why a size cannot boot an image; empty if it can, or if nothing speaks against it."""
    generation = generation_of(image)
    if generation is None or generation in size.hypervisor_generations:
        return ""
    wanted = " or ".join(f"Gen{one}" for one in size.hypervisor_generations)
    return f"`{image}` is a Gen{generation} image, and {size.size} boots {wanted} only"
