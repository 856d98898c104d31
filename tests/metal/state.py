"""What a played machine is right now: one JSON file that its programs share, whole or absent.

A look at a machine starts a dozen of these programs, so what they import is counted.
"""

# Plain os calls and a plain class: pathlib and dataclasses cost more than the programs themselves:
# ruff: noqa: PTH105, PTH108, PTH110, PTH123, PTH211

from __future__ import annotations

import fcntl
import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VENV = f"python3.{sys.version_info[1]}-venv"
"""The package without which Ubuntu's Python has no `ensurepip`."""
HIDDEN = "usr/lib/python"
"""What stands before the interpreter's own modules."""
KERNEL = "6.8.0-1041-azure"
UNITS = (
    "unattended-upgrades.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "apt-daily.service",
    "apt-daily-upgrade.service",
)


class State:
    """One machine; the defaults are a T4 on plain Ubuntu 24.04, never booted."""

    root: str = ""
    """The directory that plays `/` for the files that matter."""
    user: str = "qft"
    pace: float = 1.0
    """How much faster the machine's waits are than real ones."""
    disk_gb: float = 128.0
    used_gb: float = 3.0
    button: int = 0
    """The port behind which a line `BUTTON ID` restarts the machine, or switches it off."""
    name: str = ""
    """The cloud's id of the machine."""
    kernel: str = KERNEL
    mirror: str = "azure.archive.ubuntu.com"
    datasource: str = ""
    """Where cloud-init found what it was given."""
    pip_s: float = 0.0
    """How long an environment takes to be filled."""

    # the card
    gpu_name: str = "Tesla T4"
    cards: int = 1
    pci: str = "1eb8"
    memory_mb: int = 15360
    capability: str = "7.5"
    host: int = 0
    """The branch of drivers that the host of a slice serves."""
    vgpu: bool = False
    """Whether the host rents out a slice: then only Azure's GRID driver works."""
    gone: bool = False
    """Whether the card has fallen off the bus; a reboot brings it back."""
    inforom_corrupted: bool = False
    """Whether the card's own notes are damaged, of which every answer warns."""
    xid_on_cuda: int = 0
    """What the card's first use ends in; 0 if it works."""

    # the driver
    driver: str = ""
    """Version of the libraries and of the modules on the disk; empty if there are none."""
    grid: bool = False
    by_file: bool = False
    """Whether an installer of NVIDIA's put it there, not the package manager."""
    open: bool = False
    """Whether its kernel modules are NVIDIA's open ones."""
    gsp: bool = True
    """Whether the card's own processor runs here, without which the open modules do not load."""
    signed: bool = False
    """Whether a kernel under Secure Boot takes its modules."""
    stray: bool = False
    """Whether libraries of an earlier installer lie over those of the packages."""
    stuck: bool = False
    """Whether that driver's modules, built for another kernel, do not load into this one."""
    loaded: str = ""
    """Version of the modules in the running kernel."""
    secure_boot: bool = False

    # the system
    outbound: bool = True
    forged: bool = False
    """Whether somebody on the way puts another file in the place of what is downloaded."""
    metadata_port: int = 0
    """Where the metadata service answers that has a well-known address on real machines."""
    ssh_port: int = 0
    """Where SSH answers instead of at 22."""
    hurry: list[str]
    """Further arguments of services, for tests without an hour to wait."""
    boot_count: int = 0
    booting: bool = True
    """Whether the first boot's commands have not come to their end yet."""
    cloud_init_until: float = 0.0
    cloud_init_error: str = ""
    frontend_until: float = 0.0
    """Until when, in seconds since 1970, somebody holds the lock for installing."""
    frontend_holder: str = "unattended-upgr"
    lists_until: float = 0.0
    """The same of the lock for fetching lists, for which no option of apt waits."""
    packages: list[str]
    held: list[str]
    active: list[str]
    """Units of the system."""
    kernel_log: list[str]
    done: list[str]
    """Every command that changed something, in order."""

    def __init__(self, **fields: Any) -> None:
        self.packages, self.held, self.kernel_log, self.done, self.hurry = [], [], [], [], []
        self.active = list(UNITS[:3])
        for name, value in fields.items():
            setattr(self, name, value)

    def note(self, line: str) -> None:
        """Let the kernel say something."""
        self.kernel_log.append(f"[{12.0 + len(self.kernel_log):12.6f}] {line}")

    def boot(self, now: float) -> None:
        """Begin a new life: what was installed is loaded if the kernel takes it."""
        self.boot_count += 1
        self.gone = False
        self.kernel_log = []
        self.loaded = ""
        if self.boot_count > 1:  # the first boot's work is over, and nothing upgrades just now
            self.cloud_init_until = self.frontend_until = self.lists_until = now
        if self.driver and self.secure_boot and not self.signed:
            self.note("Loading of unsigned module is rejected")
        elif self.driver and self.open and not self.gsp:
            self.note("NVRM: GPU 0001:00:00.0: RmInitAdapter failed! (0x62:0x40:2401)")
        elif self.driver and not self.stuck:
            self.loaded = self.driver
            if self.vgpu and self.driver.split(".")[0] != str(self.host):
                self.note("NVRM: Xid (PCI:0001:00:00): 78, pid='<unknown>', vGPU guest mismatch")


class Store:
    """Where a machine's state lies: `state.json`, changed under a lock, replaced whole."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.path = f"{directory}/state.json"

    def read(self) -> State:
        """The state as it is now."""
        with open(self.path, encoding="utf-8") as file:
            return State(**json.load(file))

    def write(self, state: State) -> None:
        """Replace the state, and let those programs be there that something installed brought."""
        temporary = f"{self.path}.{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(vars(state), file)
        os.replace(temporary, self.path)
        brought = {
            "nvidia-smi": bool(state.driver),
            "nvidia-uninstall": state.by_file,
            "ubuntu-drivers": "ubuntu-drivers-common" in state.packages,
        }
        for name, there in brought.items():
            place = f"{self.directory}/bin/{name}"
            if there and not os.path.lexists(place):
                os.symlink(".play", place)
            elif not there and os.path.lexists(place):
                os.unlink(place)
        hidden = f"{state.root}/{HIDDEN}/ensurepip.py"
        if VENV in state.packages and os.path.exists(hidden):
            os.unlink(hidden)

    def change(self) -> Change:
        """Read, let the caller change, and write, with nobody else in between."""
        return Change(self)

    def nap(self, wait_s: float) -> None:
        """Wait as long as the machine thinks that it waits."""
        time.sleep(wait_s / self.read().pace)


class Change:
    """The state, to be changed inside a `with`; written also if the block returns early."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __enter__(self) -> State:
        self._handle = os.open(f"{self._store.directory}/state.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        self._state = self._store.read()
        return self._state

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._store.write(self._state)
        os.close(self._handle)
