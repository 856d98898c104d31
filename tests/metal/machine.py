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
from pathlib import Path

import asyncssh

from metal import firstboot
from metal.definition import Quirks, VmDefinition
from metal.packages import CUT
from metal.programs import NO_SUDO, PROGRAMS, SHELLED
from metal.state import HIDDEN, State, Store

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
    "ssh-keygen",
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
HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
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


class Metal:
    """One machine's inside, in a directory beside its disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.store = Store(str(self.directory))
        self.programs = self.directory / "bin"
        self.log = str(self.directory / "boot.log")

    def make(self, definition: VmDefinition, quirks: Quirks, *, pace: float, button: int) -> None:
        """Install the image: programs, files and state; not booted yet."""
        root, programs = self.directory / "root", self.programs
        for folder in (programs, root / "etc/modprobe.d", root / "var/run", root / "root"):
            folder.mkdir(parents=True, exist_ok=True)
        (root / "etc/os-release").write_text(OS_RELEASE)
        boot_id = root / "proc/sys/kernel/random/boot_id"
        boot_id.parent.mkdir(parents=True)
        state = installed(definition, quirks, pace=max(pace, 1.0))
        platform = definition.images[definition.image].modules
        (root / "proc/modules").write_text(f"{platform} 131072 0 - Live 0x0\n")
        variable = root / EFI
        variable.parent.mkdir(parents=True)
        secure = quirks.secure_boot or definition.secure_boot
        variable.write_bytes(b"\x06\0\0\0" + bytes([secure]))
        tests = Path(__file__).resolve().parents[1]
        text = PLAY.format(python=sys.executable, tests=tests, directory=self.directory)
        executable(programs / ".play", text)
        for name in PROGRAMS.keys() - set(OURS):
            (programs / name).symlink_to(".play")
        shelled = SHELLED if definition.sudo else {**SHELLED, "sudo": NO_SUDO}
        for name, text in shelled.items():
            lines = text.format(root=root, kernel=state.kernel)
            executable(programs / name, f"#!/bin/sh\n{lines}\n")
        for name in SYSTEM:
            if found := shutil.which(name):
                (programs / name).symlink_to(found)
        hidden = root / HIDDEN
        hidden.mkdir(parents=True)
        missing = "raise ModuleNotFoundError(\"No module named 'ensurepip'\")\n"
        (hidden / "ensurepip.py").write_text(missing)
        text = PYTHON.format(bin=programs, hidden=hidden, root=root, python=sys.executable)
        for name in ("python3", f"python3.{sys.version_info[1]}"):
            executable(programs / name, text)
        for name in ("var/lib/dpkg/updates", "etc/nvidia"):
            (root / name).mkdir(parents=True, exist_ok=True)
        if quirks.cut:
            (root / CUT).touch()
        (root / "usr/bin").mkdir()
        (root / "usr/bin/python3").symlink_to(programs / "python3")
        (root / "home").mkdir()
        (root / "home" / definition.user).symlink_to(self.directory.parent / "disk")
        (self.directory / "profile").write_text(f"export PATH={programs}\n")
        firstboot.install(self.directory, definition.cloud_config)
        state.root = str(root)
        state.user, state.button, state.secure_boot = definition.user, button, secure
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

    def host_key_path(self) -> Path:
        """Where the private key lies with which its SSH presents itself, made if there is none."""
        path = self.directory / "root" / HOST_KEY
        if not path.exists():  # what cloud-init does where it is given none
            key = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
            firstboot.put(self.directory / "root", f"/{HOST_KEY}", key, 0o600)
        return path

    def done(self) -> list[str]:
        """Every command so far that changed the system, in order."""
        return self.store.read().done


def installed(definition: VmDefinition, quirks: Quirks, *, pace: float) -> State:
    """The machine of that size and image, as its first boot will find it."""
    image = definition.images[quirks.image or definition.image]
    now = time.time()
    state = State(
        pace=pace,
        name=definition.id,
        kernel=image.kernel,
        mirror=image.mirror,
        datasource=image.datasource,
        disk_gb=definition.disk_gb,
        used_gb=image.used_gb,
        cloud_init_error=quirks.cloud_init_error,
        outbound=quirks.outbound,
        pip_s=quirks.pip_s,
        xid_on_cuda=quirks.xid_on_cuda,
        host=quirks.host,
        packages=[f"linux-image-{image.kernel}", "curl", *image.packages],
        **definition.card,
    )
    if image.holds_kernel:
        state.held = [f"linux-image-{image.kernel}"]
    state.driver = quirks.driver if quirks.driver is not None else image.driver
    own = bool(image.driver) and quirks.driver is None and not quirks.runfile
    packaged, state.open = own and bool(image.driver_packages), own and image.open
    state.by_file, state.grid = bool(state.driver) and not packaged, quirks.grid
    state.stuck, state.gsp = quirks.silent and not state.open, not quirks.silent
    state.forged = quirks.forged
    if packaged:
        state.packages += image.driver_packages
    state.cloud_init_until = now + quirks.cloud_init_s / pace
    state.lists_until = now + quirks.lists_s / pace
    state.frontend_until, state.frontend_holder = now + quirks.lock_s / pace, quirks.lock_holder
    return state


def executable(path: Path, text: str) -> None:
    """Write a program."""
    path.write_text(text)
    path.chmod(0o755)
