"""Plans the steps that download, verify, install and configure Azure's vGPU (GRID) driver."""

from __future__ import annotations

import shlex

from remote.errors import Unfit
from remote.setup.facts import Facts
from remote.setup.steps import SECURE_BOOT_HINT, SetupGoal, Step, with_apt_functions

GRID_BRANCH = 570
"""The newest branch that the hosts of Azure's A10 machines serve (vGPU 18, CUDA 12.8)."""
GRID_VERSION = "570.211.01"
GRID_URL = (
    "https://download.microsoft.com/download/2a04ca6a-9eec-40d9-9564-9cdea1ab795f/"
    f"NVIDIA-Linux-x86_64-{GRID_VERSION}-grid-azure.run"
)
GRID_SHA256 = ""
"""Nobody publishes one: neither Microsoft, whose own extension runs the file unchecked, nor those
who pin this version in public. So it is the user's (`vm.azure.grid_sha256`), or the first one seen,
which this computer then keeps and requires of every later machine."""
GRID_SETTINGS = {"EnableUI": "FALSE", "IgnoreSP": "FALSE"}
FILE = "/root/qft-grid.run"
SEEN = "/var/lib/qft-grid.sha256"
"""Where the machine keeps the checksum of what it executed, for this computer to read."""
FETCH = """umask 077
curl -fsSL --proto '=https' --retry 5 -o {file} {url} || exit
found=$(sha256sum < {file}) && found=${{found%% *}} || exit
echo "qft: sha256 of the vGPU driver: $found"
wanted={wanted}
if [ "$wanted" ] && [ "$found" != "$wanted" ]; then
  echo "qft: the checksum of the vGPU driver is $found instead of $wanted: it was not executed" >&2
  rm -f {file}
  exit 65
fi
if ! head -c 65536 {file} | grep -qF {version}; then
  echo "qft: the checksum of the vGPU driver is $found, and it is no installer of {version}" >&2
  rm -f {file}
  exit 65
fi
umask 022
sh {file} --silent --disable-nouveau || exit
rm -f {file}
echo "$found" > {seen}
"""
"""Download, verify, execute, in this order; no other user may read or change any of it."""


def grid_steps(facts: Facts, goal: SetupGoal) -> list[Step]:
    """Plan to install the cloud's vGPU driver; the ordinary one fails on these machines."""
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
                command=with_apt_functions(
                    f"apt-mark unhold {' '.join(facts.packages)} > /dev/null;"
                    f" qft_apt purge {' '.join(facts.packages)}"
                ),
                why="this size rents out a vGPU, with which the ordinary driver does not work",
                timeout_s=900,
                sudo=True,
            )
        )
    fetch = FETCH.format(
        file=FILE,
        url=GRID_URL,
        wanted=shlex.quote(goal.grid_sha256 or GRID_SHA256),
        version=GRID_VERSION,
        seen=SEEN,
    )
    steps.append(
        Step(
            name="install the vGPU driver",
            command=with_apt_functions(
                "printf 'blacklist nouveau\\noptions nouveau modeset=0\\n'"
                " > /etc/modprobe.d/qft-nouveau.conf"
                " && qft_update && qft_install build-essential curl linux-headers-$(uname -r)"
                f" || exit\n{fetch}"
            ),
            why=f"this size needs the cloud's vGPU driver of branch {GRID_BRANCH}",
            timeout_s=1800,
            sudo=True,
        )
    )
    steps.append(gridd_step(reboot_after=True))
    return steps


def gridd_step(*, reboot_after: bool = False) -> Step:
    """Return the step that configures the vGPU service; on Azure the machine has the licence."""
    lines = "".join(f"{key}={value}\\n" for key, value in sorted(GRID_SETTINGS.items()))
    keys = "|".join([*sorted(GRID_SETTINGS), "FeatureType"])
    return Step(
        name="configure the vGPU service",
        command="umask 022; mkdir -p /etc/nvidia && cd /etc/nvidia && touch gridd.conf"
        f" && {{ grep -Ev '^({keys})=' gridd.conf; printf '{lines}'; }} > gridd.conf.qft"
        " && mv gridd.conf.qft gridd.conf",
        why="without these settings the vGPU is throttled for want of a licence",
        timeout_s=60,
        sudo=True,
        reboot_after=reboot_after,
    )


def gridd_is_set(facts: Facts) -> bool:
    """Whether the vGPU service is configured as needed, and nothing contradicts it."""
    found = dict(word.split("=", 1) for word in facts.gridd.split() if "=" in word)
    return found == GRID_SETTINGS
