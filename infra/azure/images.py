"""Which disk image a size boots from: one that brings the driver, or one on which GRID installs."""

from __future__ import annotations

from infra.catalog import Driver, find_size

WITH_DRIVER = "microsoft-dsvm:ubuntu-hpc:2404:latest"
"""Driver 580 and CUDA 13 preinstalled: nothing to build, no reboot."""
PLAIN = "Canonical:ubuntu-24_04-lts:server:latest"
"""For sizes that need Azure's GRID driver, which the image above would be in the way of."""


def image_for(size: str) -> str:
    """The image URN for a size of the catalog; an unknown size gets the one with the driver."""
    known = find_size(size)
    return PLAIN if known is not None and known.driver is Driver.GRID else WITH_DRIVER
