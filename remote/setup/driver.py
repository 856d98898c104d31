"""Plans the driver steps that a machine with an NVIDIA GPU still needs, or refuses it."""

from __future__ import annotations

from remote.errors import Unfit
from remote.setup.facts import Facts, version_of
from remote.setup.steps import SECURE_BOOT_HINT, DriverKind, SetupGoal, Step, with_apt_functions
from remote.setup.vgpu_driver import GRID_BRANCH, grid_steps, gridd_is_set, gridd_step

REBOOT_S = 60.0
UNNUMBERED_BRANCH = 590
"""From this branch on NVIDIA's packages have no branch in their names; the pin alone chooses it."""
GPU_LOST = 15
"""Exit code of `nvidia-smi` when a GPU has fallen off the bus: no other driver mends that."""


def driver_steps(facts: Facts, goal: SetupGoal) -> list[Step]:
    """Plan what is needed until `nvidia-smi` answers with a driver that fits; empty if it does.

    Raises `Unfit` if there is no GPU, or fewer than wanted, if the driver is of a branch that the
    host does not serve, if Secure Boot forbids the driver, or if the machine is the user's own and
    lacks a driver.
    """
    if not facts.gpus and not facts.pci_gpus:
        size = "choose a size with a GPU; `qft plan` lists them"
        yours = "name a machine that has one, or `vm: {ssh: {gpu: false}}` to train without"
        raise Unfit(["there is no NVIDIA card on its PCI bus"], hint=size if goal.rented else yours)
    wrong = wrong_branch(facts, goal)
    if facts.gpus and not wrong:
        return card_steps(facts, goal) or hold_steps(facts, goal)
    if not goal.rented:
        reason = facts.smi_message or "there is no `nvidia-smi`"
        raise Unfit(
            [wrong or f"its NVIDIA driver does not answer: {reason}"],
            hint="install the driver on your machine, then repeat the command",
        )
    if facts.smi_code == GPU_LOST:
        return [reboot_step("wake the card by a reboot", facts.smi_message)]
    if goal.driver_given:
        return image_driver_steps(facts, wrong)
    if goal.driver is DriverKind.GRID:
        return grid_steps(facts, goal)
    return datacenter_steps(facts)


def card_steps(facts: Facts, goal: SetupGoal) -> list[Step]:
    """Plan a reboot of a rented machine whose driver shows too few cards; empty if it shows enough.

    Raises `Unfit` if that cannot help: there are too few on the bus, or it is the user's machine.
    """
    seen = len(facts.gpus)
    if seen >= goal.gpu_count:
        return []
    if goal.rented and facts.pci_gpus >= goal.gpu_count:
        why = f"`nvidia-smi` shows {seen} of its {facts.pci_gpus} cards"
        return [reboot_step("wake the other cards by a reboot", why)]
    names = ", ".join(one.name for one in facts.gpus)
    plural = "card" if seen == 1 else "cards"
    fewer = f"`vm.gpus: {seen}`" if seen > 1 else "no `vm.gpus`"
    raise Unfit(
        [f"{goal.gpu_count} cards are wanted, and `nvidia-smi` shows {seen} {plural}: {names}"],
        hint=f"write {fewer} into run.yaml; the result is the same, bit for bit"
        + ("" if goal.rented else ", or name a machine with more cards"),
    )


def image_driver_steps(facts: Facts, wrong: str) -> list[Step]:
    """Plan a reboot into the driver that the image should bring, or refuse: none is put over it."""
    if not wrong and ("mismatch" in facts.smi_message or facts.reboot_required):
        return [
            reboot_step("reboot into the image's driver", facts.smi_message or "reboot pending")
        ]
    reason = wrong or facts.smi_message or "there is no `nvidia-smi`"
    raise Unfit(
        [f"the driver that `vm.image` is said to bring does not answer: {reason}"],
        hint="`driver: auto` under `vm.image` lets qft install one; or name another image",
    )


def reboot_step(name: str, why: str) -> Step:
    """Return a step that only reboots."""
    return Step(
        name=name, command="true", why=why, timeout_s=REBOOT_S, sudo=True, reboot_after=True
    )


def wrong_branch(facts: Facts, goal: SetupGoal) -> str:
    """Return why the driver that answers is not the right one; empty if it is, or none answers."""
    if goal.driver is not DriverKind.GRID or not facts.driver:
        return ""
    branch = version_of(facts.driver)[0]
    if branch == GRID_BRANCH:
        return ""
    return (
        f"its vGPU driver is of branch {branch}, but the host serves {GRID_BRANCH}"
        " (Xid 78 when CUDA starts)"
    )


def hold_steps(facts: Facts, goal: SetupGoal) -> list[Step]:
    """Plan to hold a working driver and its kernel: no upgrade may replace them while we train."""
    steps = []
    if goal.driver is DriverKind.GRID and not gridd_is_set(facts):
        steps.append(gridd_step())
    kept = [name for name in (*facts.packages, facts.kernel_package) if name]
    if goal.rented and "ubuntu" in facts.os and set(kept) - set(facts.held):
        steps.append(
            Step(
                name="hold kernel and driver",
                # apt-mark does not wait for the lock on installing, apt-get does.
                command=with_apt_functions(
                    "qft_apt check > /dev/null;"
                    " apt-mark hold $(dpkg-query -W -f '${Status} ${Package}\\n' 'linux-image-*'"
                    " 'linux-azure*' 'nvidia-*' 'libnvidia-*' 'linux-modules-nvidia-*'"
                    " 'cuda-drivers*' 2>/dev/null | sed -n 's/^[a-z]* ok installed //p')"
                    " > /dev/null"
                ),
                why="an upgrade in mid-training ends in `Driver/library version mismatch`",
                timeout_s=700,
                sudo=True,
            )
        )
    return steps


def datacenter_steps(facts: Facts) -> list[Step]:
    """Plan to install a driver, or to reboot into the one that is installed.

    Where NVIDIA's own repository is pinned, the driver comes from there: packages of the
    distribution would lose against its priority, and be mixed with them.
    """
    if "mismatch" in facts.smi_message or (facts.packages and facts.reboot_required):
        why = f"the driver is installed but not loaded: {facts.smi_message or 'reboot pending'}"
        return [reboot_step("reboot into the installed driver", why)]
    signed = any(name.startswith("linux-modules-nvidia-") for name in facts.packages)
    if facts.secure_boot and (facts.smi_code is not None or facts.pinned) and not signed:
        refused = "Secure Boot is on, and the kernel refuses its NVIDIA driver, which is unsigned"
        raise Unfit([f"{refused}: {facts.smi_message}"], hint=SECURE_BOOT_HINT)
    if not facts.os.startswith("ubuntu"):
        raise Unfit(
            [f"no driver answers, and qft installs drivers on Ubuntu only, not on `{facts.os}`"],
            hint="use an image that brings the driver, such as microsoft-dsvm:ubuntu-hpc:2404",
        )
    if facts.pinned:
        return closed_module_steps(facts)
    return [
        Step(
            name="install the NVIDIA driver",
            command=with_apt_functions(
                "qft_update && qft_install ubuntu-drivers-common linux-headers-$(uname -r)"
                # The libraries of NVIDIA's own installer would lie over those of the packages.
                " && if command -v nvidia-uninstall; then nvidia-uninstall --silent; fi"
                " && DEBIAN_FRONTEND=noninteractive ubuntu-drivers install"
            ),
            why="`nvidia-smi` does not answer; the distribution's driver is signed, so that it"
            " also loads under Secure Boot",
            timeout_s=1800,
            sudo=True,
            reboot_after=True,
        )
    ]


def closed_module_steps(facts: Facts) -> list[Step]:
    """Plan to replace NVIDIA's open kernel modules by the closed ones of the same pinned branch.

    As NVIDIA's guide says for Ubuntu: install the closed driver, and let apt purge what conflicts
    with it. The open modules need a processor on the GPU (GSP) that not every hypervisor lets run.
    Raises `Unfit` if the closed ones are installed, and do not answer either.
    """
    if not has_open_modules(facts):
        reason = facts.smi_message or "there is no `nvidia-smi`"
        modules = f"neither NVIDIA's open kernel modules nor the closed ones of {facts.pinned}"
        raise Unfit(
            [f"{modules}: {reason}"],
            hint="boot another image: `vm: {image: Canonical:ubuntu-24_04-lts:server:latest}` gets"
            " the driver of Ubuntu",
        )
    branch = version_of(facts.pinned)[0]
    driver = f"nvidia-driver-{branch}" if branch < UNNUMBERED_BRANCH else "nvidia-driver"
    held = sorted(set(facts.held) & set(facts.packages))
    unhold = f"apt-mark unhold {' '.join(held)} > /dev/null && " if held else ""
    return [
        Step(
            name="replace NVIDIA's open kernel modules by the closed ones",
            command=with_apt_functions(
                f"qft_update && qft_apt check > /dev/null; {unhold}"
                f"qft_install --autoremove --purge cuda-drivers {driver} linux-headers-$(uname -r)"
            ),
            why="`nvidia-smi` does not answer with the open ones, which need firmware (GSP) that"
            f" this hypervisor may not run: {facts.smi_message or 'there is no `nvidia-smi`'}"[
                :300
            ],
            timeout_s=1800,
            sudo=True,
            reboot_after=True,
        )
    ]


def has_open_modules(facts: Facts) -> bool:
    """Whether the driver has NVIDIA's open kernel modules, by its modules or its packages."""
    closed = any(name.startswith("cuda-drivers") for name in facts.packages)
    return facts.open_modules or not closed
