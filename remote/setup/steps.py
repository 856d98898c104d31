"""Defines the goal and the steps of set-up, and plans the steps that precede all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from remote.clean_environment import CLEAR_VARIABLES
from remote.errors import Unfit
from remote.setup.facts import Facts

UPGRADERS = (
    "unattended-upgrades.service apt-daily.timer apt-daily-upgrade.timer"
    " apt-daily.service apt-daily-upgrade.service"
)
REBOOT_S_MAX = 600.0
SECURE_BOOT_HINT = (
    "create the machine with Secure Boot off (securityType Standard, or TrustedLaunch with"
    " secureBootEnabled false)"
)


class DriverKind(StrEnum):
    """The kind of NVIDIA driver that the machine needs."""

    NONE = "none"
    """No GPU is wanted."""
    DATACENTER = "datacenter"
    """The ordinary one: T4, A100, H100, and the user's own GPUs."""
    GRID = "grid"
    """The cloud's vGPU driver, as the A10 of Azure needs."""


@dataclass(frozen=True, kw_only=True)
class SetupGoal:
    """What a machine is to be set up for."""

    driver: DriverKind = DriverKind.NONE
    gpu_count: int = 1
    """How many cards the driver must show, where it is to show any."""
    cuda_max: str = ""
    """Newest CUDA that the size's driver admits, such as `12.8`; empty if there is no limit."""
    cuda: str = "auto"
    """The requirement set: `cpu`, `cu128`, `cu130`, or `auto` for the newest that fits."""
    python: str = ""
    """An interpreter that has all packages already: then no environment is made."""
    driver_given: bool = False
    """Whether the image should bring its driver: then none is ever installed over it."""
    grid_sha256: str = ""
    """The sha256 that the vGPU driver must have to be executed; empty if none is known yet."""
    rented: bool = True
    """Whether the machine is ours alone: only then drivers are installed and upgrades stopped."""
    answers: bool = False
    """Whether answers that are code run there, in an environment of their own."""
    spare_bytes: int = 0
    """Free disk that must remain for data, model and checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of set-up, and why it is needed."""

    name: str
    """What it does, for people, in the imperative."""
    command: str
    """For `sh -c`, in the user's home."""
    why: str
    timeout_s: float
    sudo: bool = False
    reboot_after: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    """Text files to write first, by path below the home: too long for a command line."""


def first_boot_steps(facts: Facts, goal: SetupGoal) -> list[Step]:
    """Plan to wait until a rented machine's first boot has finished; nothing else goes before it.

    Raises `Unfit` if it ended in an error: then what we asked it to install may be missing, and
    with it what stops the machine and its cost.
    """
    if not goal.rented or (goal.python and goal.driver is DriverKind.NONE):
        return []
    if facts.cloud_init == "error":
        reason = facts.cloud_init_error or "`cloud-init status` says error"
        raise Unfit(
            [f"its first boot failed: {reason}"],
            hint="`qft ssh` and then `cloud-init status --long` tell more; `qft down --delete` and"
            " `qft up` make a new machine",
        )
    if facts.cloud_init not in {"running", "not started", "not run"}:
        return []
    return [
        Step(
            name="wait for the first boot to finish",
            # How it ended is among the facts that are gathered next.
            command="cloud-init status --wait > /dev/null; true",
            why="cloud-init still installs and configures",
            timeout_s=900,
        )
    ]


def with_apt_functions(command: str) -> str:
    """Return a command for root that may use the functions of `apt.sh`, in a clean environment."""
    functions = Path(__file__).with_name("apt.sh").read_text(encoding="utf-8")
    return f"{CLEAR_VARIABLES}\n{functions}\n{command}"


def repair_steps(facts: Facts) -> list[Step]:
    """Plan to finish an interrupted installation: until then apt refuses everything."""
    if not facts.dpkg_broken:
        return []
    return [
        Step(
            name="finish the interrupted installation",
            command=with_apt_functions("qft_repair && qft_apt --fix-broken install"),
            why=f"it was cut in the middle, and apt refuses to work before: {facts.dpkg_broken}",
            timeout_s=1800,
            sudo=True,
        )
    ]


def stop_upgrades_steps(facts: Facts, goal: SetupGoal) -> list[Step]:
    """Plan to stop automatic upgrades, which would hold the package lock."""
    if not goal.rented or not facts.upgraders:
        return []
    return [
        Step(
            name="stop automatic upgrades",
            command=f"systemctl disable --now {UPGRADERS} 2>/dev/null;"
            " ! systemctl is-active --quiet unattended-upgrades.service",
            why="they hold the package lock for minutes after boot, and would replace the"
            " driver under a running training",
            timeout_s=1800,  # stopping waits for an upgrade that is under way
            sudo=True,
        )
    ]


def require_root(facts: Facts, steps: Sequence[Step]) -> list[Step]:
    """Return the steps; raise `Unfit` if one needs root and the user has no `sudo`."""
    names = [step.name for step in steps if step.sudo]
    if names and not facts.sudo:
        raise Unfit(
            [f"root is needed to {name}" for name in names],
            hint="allow this user `sudo` without a password, or do these steps yourself",
        )
    return list(steps)
