"""Which driver steps a machine with an NVIDIA card still needs, and when none will ever help."""

from __future__ import annotations

from remote.errors import Unfit
from remote.setup_facts import Facts, version_of
from remote.setup_steps import APT, APT_IDLE, APT_UPDATE, Driver, Step, Want

GRID_BRANCH = 570
"""The newest branch that the hosts of Azure's A10 machines serve (vGPU 18, CUDA 12.8)."""
GRID_URL = (
    "https://download.microsoft.com/download/2a04ca6a-9eec-40d9-9564-9cdea1ab795f/"
    "NVIDIA-Linux-x86_64-570.211.01-grid-azure.run"
)
GRID_SETTINGS = {"EnableUI": "FALSE", "IgnoreSP": "FALSE"}
REBOOT_S = 60.0
LOST = 15
"""What `nvidia-smi` ends with when a card has fallen off the bus: no other driver mends that."""
SECURE_BOOT_HINT = (
    "create the machine with Secure Boot off (securityType Standard, or TrustedLaunch with"
    " secureBootEnabled false)"
)


def driver_steps(facts: Facts, want: Want) -> list[Step]:
    """List what is needed until `nvidia-smi` answers with a driver that fits; empty if it does.

    Raises `Unfit` if there is no card, if the driver is of a branch that the host does not serve,
    if Secure Boot forbids the driver, or if the machine is the user's own and lacks a driver.
    """
    if not facts.gpus and not facts.pci_gpus:
        size = "choose a size with a GPU; `qft plan` lists them"
        yours = "name a machine that has one, or `vm: {ssh: {gpu: false}}` to train without"
        raise Unfit(["there is no NVIDIA card on its PCI bus"], hint=size if want.rented else yours)
    wrong = wrong_branch(facts, want)
    if facts.gpus and not wrong:
        return settle_steps(facts, want)
    if not want.rented:
        said = facts.smi_said or "there is no `nvidia-smi`"
        raise Unfit(
            [wrong or f"its NVIDIA driver does not answer: {said}"],
            hint="install the driver on your machine, then repeat the command",
        )
    if facts.smi_code == LOST:
        return [reboot_step("wake the card by a reboot", facts.smi_said)]
    if want.driver_given:
        return given_steps(facts, wrong)
    if want.driver is Driver.GRID:
        return grid_steps(facts)
    return datacenter_steps(facts)


def given_steps(facts: Facts, wrong: str) -> list[Step]:
    """Reboot into the driver that the image is said to bring, or refuse: none is put over it."""
    if not wrong and ("mismatch" in facts.smi_said or facts.reboot_required):
        return [reboot_step("reboot into the image's driver", facts.smi_said or "reboot pending")]
    said = wrong or facts.smi_said or "there is no `nvidia-smi`"
    raise Unfit(
        [f"the driver that `vm.image` is said to bring does not answer: {said}"],
        hint="`driver: auto` under `vm.image` lets qft install one; or name another image",
    )


def reboot_step(name: str, why: str) -> Step:
    """Reboot, and nothing else."""
    return Step(
        name=name, command="true", why=why, timeout_s=REBOOT_S, sudo=True, reboot_after=True
    )


def wrong_branch(facts: Facts, want: Want) -> str:
    """Say why the driver that answers is not the right one; empty if it is, or none answers."""
    if want.driver is not Driver.GRID or not facts.driver:
        return ""
    branch = version_of(facts.driver)[0]
    if branch == GRID_BRANCH:
        return ""
    return (
        f"its vGPU driver is of branch {branch}, but the host serves {GRID_BRANCH}"
        " (Xid 78 when CUDA starts)"
    )


def settle_steps(facts: Facts, want: Want) -> list[Step]:
    """Keep a driver that works: nothing may replace it, or the kernel below it, while we train."""
    steps = []
    if want.driver is Driver.GRID and not gridd_is_set(facts):
        steps.append(gridd_step())
    kept = [name for name in (*facts.packages, facts.kernel_package) if name]
    if want.rented and "ubuntu" in facts.os and set(kept) - set(facts.held):
        steps.append(
            Step(
                name="hold kernel and driver",
                command=f"{APT_IDLE};"
                " apt-mark hold $(dpkg-query -W -f '${Status} ${Package}\\n' 'linux-image-*'"
                " 'linux-azure*' 'nvidia-*' 'libnvidia-*' 'linux-modules-nvidia-*' 2>/dev/null"
                " | sed -n 's/^[a-z]* ok installed //p') > /dev/null",
                why="an upgrade in mid-training ends in `Driver/library version mismatch`",
                timeout_s=700,
                sudo=True,
            )
        )
    return steps


def datacenter_steps(facts: Facts) -> list[Step]:
    """Install the distribution's signed driver, or reboot into the one that is installed."""
    if "mismatch" in facts.smi_said or (facts.packages and facts.reboot_required):
        said = facts.smi_said or "reboot pending"
        why = f"the driver is installed but not loaded: {said}"
        return [reboot_step("reboot into the installed driver", why)]
    signed = any(name.startswith("linux-modules-nvidia-") for name in facts.packages)
    if facts.secure_boot and facts.smi_code is not None and not signed:
        refused = "Secure Boot is on, and the kernel refuses its NVIDIA driver, which is unsigned"
        raise Unfit(
            [f"{refused}: {facts.smi_said}"],
            hint=SECURE_BOOT_HINT,
        )
    if not facts.os.startswith("ubuntu"):
        raise Unfit(
            [f"no driver answers, and qft installs drivers on Ubuntu only, not on `{facts.os}`"],
            hint="use an image that brings the driver, such as microsoft-dsvm:ubuntu-hpc:2404",
        )
    return [
        Step(
            name="install the NVIDIA driver",
            command=f"{APT_UPDATE} && {APT} install ubuntu-drivers-common linux-headers-$(uname -r)"
            # The libraries of NVIDIA's own installer would lie over those of the packages.
            " && if command -v nvidia-uninstall; then nvidia-uninstall --silent; fi"
            " && DEBIAN_FRONTEND=noninteractive ubuntu-drivers install",
            why="`nvidia-smi` does not answer; the distribution's driver is signed, so that it"
            " also loads under Secure Boot",
            timeout_s=1800,
            sudo=True,
            reboot_after=True,
        )
    ]


def grid_steps(facts: Facts) -> list[Step]:
    """Install the cloud's vGPU driver; the ordinary one fails on these machines in odd ways."""
    if facts.secure_boot:
        raise Unfit(
            ["Secure Boot is on, and the vGPU driver that this size needs is not signed for it"],
            hint=SECURE_BOOT_HINT,
        )
    if not facts.os.startswith("ubuntu"):
        raise Unfit([f"qft installs the vGPU driver on Ubuntu only, not on `{facts.os}`"])
    steps = []
    if facts.packages:
        steps.append(
            Step(
                name="remove the ordinary NVIDIA driver",
                command=f"apt-mark unhold {' '.join(facts.packages)} > /dev/null;"
                f" {APT} purge {' '.join(facts.packages)}",
                why="this size rents out a vGPU, with which the ordinary driver does not work",
                timeout_s=900,
                sudo=True,
            )
        )
    steps.append(
        Step(
            name="install the vGPU driver",
            command="printf 'blacklist nouveau\\noptions nouveau modeset=0\\n'"
            " > /etc/modprobe.d/qft-nouveau.conf"
            f" && {APT_UPDATE} && {APT} install build-essential curl linux-headers-$(uname -r)"
            f" && curl -fsSL --retry 5 -o /root/qft-grid.run {GRID_URL}"
            " && sh /root/qft-grid.run --silent --disable-nouveau && rm /root/qft-grid.run",
            why=f"this size needs the cloud's vGPU driver of branch {GRID_BRANCH}",
            timeout_s=1800,
            sudo=True,
        )
    )
    steps.append(gridd_step(reboot_after=True))
    return steps


def gridd_step(*, reboot_after: bool = False) -> Step:
    """Configure the vGPU service; on Azure the licence comes with the machine."""
    lines = "".join(f"{key}={value}\\n" for key, value in sorted(GRID_SETTINGS.items()))
    keys = "|".join([*sorted(GRID_SETTINGS), "FeatureType"])
    return Step(
        name="configure the vGPU service",
        command="mkdir -p /etc/nvidia && cd /etc/nvidia && touch gridd.conf"
        f" && {{ grep -Ev '^({keys})=' gridd.conf; printf '{lines}'; }} > gridd.conf.qft"
        " && mv gridd.conf.qft gridd.conf",
        why="without these settings the vGPU is throttled for want of a licence",
        timeout_s=60,
        sudo=True,
        reboot_after=reboot_after,
    )


def gridd_is_set(facts: Facts) -> bool:
    """Tell whether the vGPU service is configured as needed, and nothing contradicts it."""
    found = dict(word.split("=", 1) for word in facts.gridd.split() if "=" in word)
    return found == GRID_SETTINGS
