"""Plays the inside of one rented machine: its own programs first, a shared state behind them.

The SSH server, the shell and all that is not named in `programs.py` are real. A machine is made
from what the cloud was asked for (size, image, first-boot data); `Quirks` is what nobody asked for.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metal import firstboot
from metal.gpu import VGPU_BRANCH
from metal.packages import CUT, OPEN_PACKAGES
from metal.programs import PROGRAMS, SHELLED
from metal.state import HIDDEN, KERNEL, State, Store

IMAGE_DRIVER = "580.173.02"
"""What microsoft-dsvm:ubuntu-hpc:2404 brings: packages of NVIDIA's own repository, pinned."""
IMAGE_PACKAGES = (
    "libnvidia-container-tools",
    "libnvidia-container1",
    "nvidia-container-toolkit",
    "nvidia-fabricmanager",
    "build-essential",
    f"linux-headers-{KERNEL}",
)
OURS = ("nvidia-smi", "nvidia-uninstall", "ubuntu-drivers")
"""Played programs that are there only once something was installed."""
SYSTEM = [
    "awk",
    "basename",
    "bash",
    "cat",
    "chmod",
    "cp",
    "cut",
    "date",
    "dirname",
    "echo",
    "env",
    "false",
    "find",
    "grep",
    "head",
    "hostname",
    "ln",
    "ls",
    "mkdir",
    "mktemp",
    "mv",
    "nohup",
    "od",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "setsid",
    "sha256sum",
    "sort",
    "stat",
    "sync",
    "tail",
    "tar",
    "tee",
    "test",
    "timeout",
    "touch",
    "tr",
    "true",
    "wc",
    "xargs",
]
"""Programs of this computer that answer the same on any."""
EFI = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
PLAY = """#!/bin/sh
exec {python} -S -E -c 'import sys; sys.path.insert(0, "{tests}")
from metal.programs import main
sys.exit(main(sys.argv[1:]))' {directory} "${{0##*/}}" "$@"
"""
PYTHON = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then shift 2; exec {bin}/venv "$@"; fi
case "$1" in {root}/*) exec {bin}/script "$@" ;; esac
PYTHONPATH={hidden} exec {python} -S "$@"
"""
OS_RELEASE = """PRETTY_NAME="Ubuntu 24.04.3 LTS"
NAME="Ubuntu"
VERSION_ID="24.04"
ID=ubuntu
ID_LIKE=debian
"""


@dataclass(frozen=True, kw_only=True)
class Quirks:
    """What is special about a machine; waits in seconds of its own time."""

    image: str = ""
    """`hpc` or `plain`, against what was asked for."""
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


class Metal:
    """One machine's inside, in a directory beside its disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.store = Store(str(self.directory))
        self.programs = self.directory / "bin"
        self.log = str(self.directory / "boot.log")

    def make(
        self, properties: dict[str, Any], quirks: Quirks, *, pace: float, button: int, name: str
    ) -> None:
        """Install the image: programs, files and state; not booted yet."""
        root, programs = self.directory / "root", self.programs
        for folder in (programs, root / "etc/modprobe.d", root / "var/run", root / "root"):
            folder.mkdir(parents=True, exist_ok=True)
        (root / "etc/os-release").write_text(OS_RELEASE)
        boot_id = root / "proc/sys/kernel/random/boot_id"
        boot_id.parent.mkdir(parents=True)
        (root / "proc/modules").write_text("hv_vmbus 131072 0 - Live 0x0\n")
        variable = root / EFI
        variable.parent.mkdir(parents=True)
        secure = quirks.secure_boot or secure_by(properties)
        variable.write_bytes(b"\x06\0\0\0" + bytes([secure]))
        tests = Path(__file__).resolve().parents[1]
        text = PLAY.format(python=sys.executable, tests=tests, directory=self.directory)
        executable(programs / ".play", text)
        for name_ in PROGRAMS.keys() - set(OURS):
            (programs / name_).symlink_to(".play")
        for name_, text in SHELLED.items():
            executable(programs / name_, f"#!/bin/sh\n{text.format(root=root, kernel=KERNEL)}\n")
        for name_ in SYSTEM:
            if found := shutil.which(name_):
                (programs / name_).symlink_to(found)
        hidden = root / HIDDEN
        hidden.mkdir(parents=True)
        missing = "raise ModuleNotFoundError(\"No module named 'ensurepip'\")\n"
        (hidden / "ensurepip.py").write_text(missing)
        text = PYTHON.format(bin=programs, hidden=hidden, root=root, python=sys.executable)
        for name_ in ("python3", f"python3.{sys.version_info[1]}"):
            executable(programs / name_, text)
        for name_ in ("var/lib/dpkg/updates", "etc/nvidia"):
            (root / name_).mkdir(parents=True, exist_ok=True)
        if quirks.cut:
            (root / CUT).touch()
        (root / "usr/bin").mkdir()
        (root / "usr/bin/python3").symlink_to(programs / "python3")
        (root / "home").mkdir()
        user = properties["osProfile"]["adminUsername"]
        (root / "home" / user).symlink_to(self.directory.parent / "disk")
        (self.directory / "profile").write_text(f"export PATH={programs}\n")
        firstboot.install(self.directory, firstboot.parsed(properties["osProfile"]["customData"]))
        state = installed(properties, quirks, pace=max(pace, 1.0))
        state.root = str(root)
        state.button, state.name, state.secure_boot = button, name, secure
        self.store.write(state)

    def environ(self) -> dict[str, str]:
        """What puts a login's shell inside this machine; bash reads the file that it names."""
        return {"BASH_ENV": str(self.directory / "profile")}

    def boot(self, *, outbound: bool, hurry: Sequence[str] = ()) -> None:
        """Begin a life: another boot id, and the driver that the kernel takes."""
        path = self.directory / "root/proc/sys/kernel/random/boot_id"
        path.write_text(f"{uuid.uuid4()}\n")
        with self.store.change() as state:
            state.outbound, state.hurry = state.outbound and outbound, list(hurry)
            state.boot(time.time())

    def start(self, environ: Mapping[str, str]) -> None:
        """Let the machine itself, once its SSH answers, run what a boot runs; does not wait."""
        text = '"$0" >> "$1" 2>&1 &'
        self.as_root("/bin/sh", "-c", text, str(self.programs / "init"), self.log, environ=environ)

    def as_root(self, *argv: str, environ: Mapping[str, str]) -> None:
        """Do something in the machine; `environ` makes the process one of the machine's."""
        inside = {"PATH": str(self.programs), "METAL_ROOT": "1", **environ}
        subprocess.run(argv, env=inside, stdin=subprocess.DEVNULL, check=True)

    def host_key(self) -> str:
        """The private key with which its SSH presents itself, as the first boot put it there."""
        return (self.directory / "root/etc/ssh/ssh_host_ed25519_key").read_text()

    def done(self) -> list[str]:
        """Every command so far that changed the system, in order."""
        return self.store.read().done


def secure_by(properties: dict[str, Any]) -> bool:
    """Whether the machine was asked for with Secure Boot."""
    profile = properties.get("securityProfile") or {}
    return bool((profile.get("uefiSettings") or {}).get("secureBootEnabled"))


def installed(properties: dict[str, Any], quirks: Quirks, *, pace: float) -> State:
    """The machine of that size and image, as its first boot will find it."""
    storage = properties["storageProfile"]
    offer = storage["imageReference"].get("offer", "")
    image = quirks.image or ("hpc" if "hpc" in offer else "plain")
    now = time.time()
    state = State(
        pace=pace,
        disk_gb=float(storage["osDisk"].get("diskSizeGB", 30)),
        cloud_init_error=quirks.cloud_init_error,
        outbound=quirks.outbound,
        pip_s=quirks.pip_s,
        xid_on_cuda=quirks.xid_on_cuda,
        host=quirks.host,
        packages=[f"linux-image-{KERNEL}", "linux-azure", "curl"],
        **gpu_of(properties["hardwareProfile"]["vmSize"]),
    )
    if image == "hpc":
        state.used_gb = 45
        state.packages += IMAGE_PACKAGES
        state.held = [f"linux-image-{KERNEL}"]
    state.driver = quirks.driver if quirks.driver is not None else IMAGE_DRIVER * (image == "hpc")
    packaged = image == "hpc" and quirks.driver is None and not quirks.runfile
    state.by_file, state.grid = bool(state.driver) and not packaged, quirks.grid
    state.stuck, state.gsp, state.open = quirks.silent and not packaged, not quirks.silent, packaged
    state.forged = quirks.forged
    if packaged:
        state.packages += OPEN_PACKAGES
    state.cloud_init_until = now + quirks.cloud_init_s / pace
    state.lists_until = now + quirks.lists_s / pace
    state.frontend_until, state.frontend_holder = now + quirks.lock_s / pace, quirks.lock_holder
    return state


def gpu_of(size: str) -> dict[str, Any]:
    """The card that a size has."""
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


def executable(path: Path, text: str) -> None:
    """Write a program."""
    path.write_text(text)
    path.chmod(0o755)
