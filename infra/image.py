"""Checks the URN of a disk image, `publisher:offer:sku:version`, and derives its facts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

EXAMPLE = "Canonical:ubuntu-24_04-lts:server:latest"
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
VERSION = re.compile(r"latest|\d{1,10}(\.\d{1,10}){2,3}")
PARTS = ("publisher", "offer", "sku", "version")


class ImageDriver(StrEnum):
    """The NVIDIA driver that an image brings."""

    UNKNOWN = "auto"
    """Set-up looks: it keeps a driver that answers and fits, and installs one otherwise."""
    NONE = "none"
    CUDA = "cuda"
    """The ordinary data-center driver."""
    GRID = "grid"
    """The cloud's vGPU driver."""
    PREINSTALLED = "preinstalled"
    """The one that the size needs, whichever that is."""


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What is known of an image without asking the cloud."""

    driver: ImageDriver
    generation: int | None = None
    """Of the virtual hardware that it boots on; None if the sku alone does not say."""


def check_urn(urn: str) -> str:
    """Return the URN if it names one image of the marketplace for x86_64 Linux.

    Raises `ValueError` that says what is wrong with it, in one sentence.
    """
    if urn.startswith("/") or "/" in urn:
        raise ValueError(
            f"`{urn[:80]}` is the id of an image of your own or of a gallery, which qft does not"
            f" rent from: name one of the marketplace, such as `{EXAMPLE}`"
        )
    parts = urn.split(":")
    if len(parts) != len(PARTS):
        raise ValueError(
            f"`{urn[:80]}` has {len(parts)} part{'s' * (len(parts) != 1)}; an image's URN has four,"
            f" `publisher:offer:sku:version`, such as `{EXAMPLE}`"
        )
    for name, part in zip(PARTS[:3], parts[:3], strict=True):
        if not WORD.fullmatch(part):
            raise ValueError(
                f"`{part[:80]}` is no {name} of an image: it has letters, digits, `.`, `_` and `-`"
            )
    if not VERSION.fullmatch(parts[3]):
        raise ValueError(
            f"`{parts[3][:80]}` is no version of an image: write `latest`, or numbers such as"
            " `24.04.202511120`"
        )
    _check_kind(urn, parts)
    return urn


def _check_kind(urn: str, parts: list[str]) -> None:
    folded = [part.lower() for part in parts]
    if "windows" in folded[0] or "windows" in folded[1]:
        raise ValueError(f"`{urn}` is a Windows image, and qft sets up Ubuntu")
    if re.search(r"arm64|aarch64", folded[2]) or re.search(r"arm64|aarch64", folded[1]):
        raise ValueError(f"`{urn}` is for ARM processors, and the GPU sizes have x86_64 ones")


def image_facts(urn: str) -> ImageFacts:
    """Return which driver an image brings, and for which generation it is."""
    publisher, offer, sku, *_ = [*urn.lower().split(":"), "", "", ""]
    if publisher == "microsoft-dsvm" and offer == "ubuntu-hpc":
        # Of 18.04 there were both generations; since 20.04 only the second.
        return ImageFacts(
            driver=ImageDriver.CUDA, generation=_by_sku(sku) or (None if "1804" in sku else 2)
        )
    if publisher == "canonical":
        return ImageFacts(
            driver=ImageDriver.NONE, generation=_by_sku(sku) or _canonical(offer, sku)
        )
    return ImageFacts(driver=ImageDriver.UNKNOWN, generation=_by_sku(sku))


def _canonical(offer: str, sku: str) -> int | None:
    """Canonical's plain skus are Gen2 since 23.10 and Gen1 before."""
    if offer.startswith("ubuntu-"):
        return 2
    old = offer.startswith("0001-com-ubuntu-") or offer == "ubuntuserver"
    return 1 if old and re.fullmatch(r"\d\d[._]\d\d-lts", sku) else None


def _by_sku(sku: str) -> int | None:
    found = re.search(r"(?:^|[-_.])g(?:en)?-?([12])(?:$|[-_.])", sku)
    return int(found[1]) if found else None


def generation_of(urn: str) -> int | None:
    """Return for which generation of virtual hardware an image is; None if unknown."""
    return image_facts(urn).generation
