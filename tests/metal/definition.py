"""What a machine is made as: the part that every cloud says in its own words, in plain ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metal.gpu import VGPU_BRANCH
from metal.packages import OPEN_PACKAGES
from metal.state import KERNEL


@dataclass(frozen=True, kw_only=True)
class Image:
    """What a cloud's image brings before anything is done to it."""

    kernel: str = KERNEL
    modules: str = "hv_vmbus"
    """A module of the platform, as `/proc/modules` lists one on every machine of it."""
    driver: str = ""
    """NVIDIA's driver; empty for none."""
    open: bool = False
    """Whether the driver's modules are NVIDIA's open ones."""
    packages: tuple[str, ...] = ()
    """Beside the kernel and what every system has."""
    driver_packages: tuple[str, ...] = ()
    """Those of the driver; empty if NVIDIA's installer put it there."""
    holds_kernel: bool = False
    used_gb: float = 3.0
    mirror: str = "azure.archive.ubuntu.com"
    datasource: str = "DataSourceAzure [seed=/dev/sr0]"


AZURE_PLAIN = Image(packages=("linux-azure",))
AZURE_HPC = Image(
    driver="580.173.02",  # packages of NVIDIA's own repository, pinned
    open=True,
    packages=(
        "linux-azure",
        "libnvidia-container-tools",
        "libnvidia-container1",
        "nvidia-container-toolkit",
        "nvidia-fabricmanager",
        "build-essential",
        f"linux-headers-{KERNEL}",
    ),
    driver_packages=OPEN_PACKAGES,
    holds_kernel=True,
    used_gb=45,
)
AWS_KERNEL = "6.14.0-1018-aws"
AWS_PLAIN = Image(
    kernel=AWS_KERNEL,
    modules="ena",
    packages=("linux-aws",),
    mirror="us-east-1.ec2.archive.ubuntu.com",
    datasource="DataSourceEc2Local",
)
AWS_BASE = Image(
    kernel=AWS_KERNEL,
    modules="ena",
    driver="595.91.07",  # the deep-learning base image with the open modules, October 2026
    open=True,
    packages=("linux-aws", "build-essential", f"linux-headers-{AWS_KERNEL}"),
    used_gb=50,
    mirror="us-east-1.ec2.archive.ubuntu.com",
    datasource="DataSourceEc2Local",
)
"""Its driver was put there by NVIDIA's installer, not by the package manager."""
AZURE_IMAGES = {"hpc": AZURE_HPC, "plain": AZURE_PLAIN}
AWS_IMAGES = {"base": AWS_BASE, "plain": AWS_PLAIN}


@dataclass(frozen=True, kw_only=True)
class VmDefinition:
    """One machine as it was asked for."""

    id: str
    name: str
    """Names its directory on this computer."""
    user: str
    public_key: str
    """The key that may log in; empty if none may."""
    images: Mapping[str, Image]
    """What the cloud has."""
    image: str
    """Which of them was asked for."""
    disk_gb: float
    cloud_config: Mapping[str, Any] = field(default_factory=dict)
    """First-boot data, checked by `firstboot`."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the state that describe the cards; a T4 by default."""
    secure_boot: bool = False
    sudo: bool = True
    """Whether the user may become root without a password."""
    instance: dict[str, str] = field(default_factory=dict)
    """Facts for Azure's metadata service."""


@dataclass(frozen=True, kw_only=True)
class Quirks:
    """What is special about a machine; waits in seconds of its own time."""

    image: str = ""
    """Another of the cloud's images than was asked for, such as `plain`."""
    driver: str | None = None
    """The image's driver instead of its own; empty for none."""
    silent: bool = False
    """Whether the image's driver fails to load until another one is installed."""
    runfile: bool = False
    """Whether NVIDIA's installer put the image's driver there, as it did until 2025."""
    cut: bool = False
    """Whether dpkg was cut in the middle of an installation."""
    forged: bool = False
    """Whether what is downloaded is another file than it should be."""
    grid: bool = False
    """Whether that driver is Azure's."""
    secure_boot: bool = False
    outbound: bool = True
    cloud_init_s: float = 15.0
    cloud_init_error: str = ""
    lists_s: float = 20.0
    lock_s: float = 0.0
    lock_holder: str = "unattended-upgr"
    pip_s: float = 0.0
    """In real seconds: so that something can happen meanwhile."""
    xid_on_cuda: int = 0
    host: int = VGPU_BRANCH
    """The branch of drivers that a vGPU's host serves."""
