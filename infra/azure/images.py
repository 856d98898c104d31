"""Which disk image a size boots from, what the image brings, and how its firmware is asked for."""

from __future__ import annotations

from infra.catalog.gpus import Driver, GpuSize, find_size
from infra.image import generation_of

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
    """The image URN for a size: the one that the user chose, else the one that suits its driver.

    A size that the catalog lacks gets the image with the driver.
    """
    if chosen:
        return chosen
    facts = find_size(size)
    return PLAIN if facts is not None and facts.driver is Driver.GRID else WITH_DRIVER


def security_for(image: str) -> dict[str, object] | None:
    """The `securityProfile` for a machine of that image; None for Gen1, which has no such thing."""
    return None if generation_of(image) == 1 else dict(SECURITY)


def refuses_security(said: str) -> bool:
    """Whether a refusal in Azure's words is one of `SECURITY`, so that it helps to leave it out."""
    folded = said.lower()
    return any(word in folded for word in REFUSED_SECURITY)


def cannot_boot(image: str, size: GpuSize) -> str:
    """Why a size cannot boot an image; empty if it can, or if nothing is known against it."""
    generation = generation_of(image)
    if generation is None or generation in size.hypervisor_generations:
        return ""
    wanted = " or ".join(f"Gen{one}" for one in size.hypervisor_generations)
    return f"`{image}` is a Gen{generation} image, and {size.size} boots {wanted} only"
