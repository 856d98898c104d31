"""Gathers the facts about a machine that set-up needs, in one round trip, changing nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from remote.ssh import SshConnection

FACTS_S = 180.0
PYTHON_MIN = (3, 11)
PYTHON_MAX = (3, 14)
"""The newest for which every package of the locks has a wheel."""


@dataclass(frozen=True, kw_only=True)
class DetectedGpu:
    """One GPU, as `nvidia-smi` reports it."""

    name: str
    driver: str
    """Version of the driver, such as `570.211.01`."""
    memory_mb: int
    capability: str
    """Compute capability, such as `7.5`."""


@dataclass(frozen=True, kw_only=True)
class PythonInterpreter:
    """A Python interpreter on the machine."""

    command: str
    version: tuple[int, int]
    venv: bool
    """Whether it can make environments (Debian and Ubuntu ship that part apart)."""
    kind: str = "cpython"
    """`cpython`, or `pypy`, `free-threaded`, `32-bit`: for these there are no wheels."""

    def __str__(self) -> str:
        kind = "" if self.kind == "cpython" else f" ({self.kind})"
        return f"{self.command} {'.'.join(map(str, self.version))}{kind}"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts about a machine that set-up needs; the defaults are those of a bare one."""

    os: str = ""
    """Such as `ubuntu 24.04`."""
    arch: str = "x86_64"
    libc: tuple[str, str] | None = None
    """Name and version of the C library, such as `("glibc", "2.39")`; None if it does not say."""
    kernel: str = ""
    boot_id: str = ""
    """Changes with every boot."""
    home: str = ""
    free_bytes: int = 0
    sudo: bool = False
    """Whether commands may run as root without a password."""
    pythons: tuple[PythonInterpreter, ...] = ()
    venvs: tuple[str, ...] = ()
    """Names of environments that we made and that are complete."""
    answers_python: str = ""
    """The interpreter that the last set-up named for answers that are code; empty if none."""
    cuda_seen: tuple[tuple[str, str], ...] = ()
    """(environment, `boot driver`) for which a tensor has reached the GPU."""
    pci_gpus: int = 0
    """Number of NVIDIA GPUs on the PCI bus, whether or not a driver sees them."""
    gpus: tuple[DetectedGpu, ...] = ()
    smi_code: int | None = None
    """Exit code of `nvidia-smi`; None if there is no such command."""
    smi_message: str = ""
    nouveau: bool = False
    """Whether the free driver (nouveau) is loaded."""
    packages: tuple[str, ...] = ()
    """Installed packages of NVIDIA's driver."""
    kernel_package: str = ""
    """The package of the running kernel; empty if it is not a package's."""
    held: tuple[str, ...] = ()
    """Packages on hold: upgrades leave them alone."""
    gridd: str = ""
    """The settings of the vGPU service that matter; empty if it is not configured."""
    grid_sha256: str = ""
    """Checksum of the vGPU driver's installer that was executed there; empty if none was."""
    secure_boot: bool = False
    cloud_init: str = ""
    """`running`, `done`, `error`, …; empty if the machine has no cloud-init."""
    cloud_init_error: str = ""
    """What went wrong in the first boot, as cloud-init reports it."""
    upgraders: tuple[str, ...] = ()
    """Active units that install upgrades on their own."""
    reboot_required: bool = False
    dpkg_broken: str = ""
    """What dpkg left half done when it was interrupted, in a few fields; empty if nothing."""
    open_modules: bool = False
    """Whether the driver's kernel modules are NVIDIA's open ones, loaded or not."""
    pinned: str = ""
    """The branch of NVIDIA's own repository to which `nvidia-driver-pinning-…` pins the driver."""

    @property
    def driver(self) -> str:
        """Return the driver's version; empty if no GPU answers."""
        return self.gpus[0].driver if self.gpus else ""

    @property
    def python(self) -> PythonInterpreter | None:
        """Return the interpreter for an environment: the newest with venv, else the newest."""
        fit = [
            one
            for one in self.pythons
            if PYTHON_MIN <= one.version <= PYTHON_MAX and one.kind == "cpython"
        ]
        ranked = sorted(fit, key=lambda one: (one.venv, one.version), reverse=True)
        return ranked[0] if ranked else None


def gather_facts(connection: SshConnection) -> Facts:
    """Read the facts about the machine. Raises what `SshConnection.run` raises."""
    script = Path(__file__).with_name("facts.sh").read_bytes()
    return parse_facts(connection.run("sh -s", input=script, timeout_s=FACTS_S).stdout.splitlines())


def parse_facts(lines: Iterable[str]) -> Facts:
    """Parse the `key=value` lines of facts.sh; what is malformed counts as absent."""
    values: dict[str, list[str]] = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if equals:
            values.setdefault(key.strip(), []).append(value.strip())

    def first(key: str) -> str:
        return values.get(key, [""])[0]

    return Facts(
        os=first("os"),
        arch=first("arch"),
        libc=read_libc(first("libc")),
        kernel=first("kernel"),
        boot_id=first("boot"),
        home=first("home"),
        free_bytes=number(first("free_kb")) * 1024,
        sudo=first("sudo") == "yes",
        pythons=tuple(filter(None, map(read_python, values.get("python", ())))),
        venvs=tuple(values.get("venv", ())),
        answers_python=first("answers_python"),
        cuda_seen=tuple(pair(row) for row in values.get("cuda_seen", ())),
        pci_gpus=len(values.get("pci", ())),
        gpus=tuple(filter(None, map(read_gpu, values.get("gpu", ())))),
        smi_code=number(first("smi_code")) if first("smi_code") else None,
        smi_message=first("smi_message"),
        nouveau=first("nouveau") == "yes",
        packages=tuple(values.get("package", ())),
        kernel_package=first("kernel_package"),
        held=tuple(values.get("held", ())),
        gridd=first("gridd"),
        grid_sha256=sha256_of(first("grid_sha256")),
        secure_boot=first("secure_boot") == "1",
        cloud_init=first("cloud_init"),
        cloud_init_error=first("cloud_init_error"),
        upgraders=tuple(values.get("upgrader", ())),
        reboot_required=first("reboot_required") == "yes",
        dpkg_broken=first("dpkg_broken"),
        open_modules=first("open_modules") == "yes",
        pinned=pin_of(values.get("package", ())),
    )


def read_gpu(row: str) -> DetectedGpu | None:
    """Parse one line of `nvidia-smi`'s table."""
    cells = [cell.strip() for cell in row.split(",")]
    if len(cells) != 4 or not cells[1][:1].isdigit():
        return None
    name, driver, memory, capability = cells
    return DetectedGpu(name=name, driver=driver, memory_mb=number(memory), capability=capability)


def read_python(row: str) -> PythonInterpreter | None:
    """Parse `command version venv kind`; the last may be left out."""
    fields = row.split()
    if len(fields) not in {3, 4}:
        return None
    version = version_of(fields[1])
    return PythonInterpreter(
        command=fields[0],
        version=(version[0], version[1]),
        venv=fields[2] == "yes",
        kind=fields[3] if len(fields) > 3 else "cpython",
    )


def read_libc(text: str) -> tuple[str, str] | None:
    """Parse `glibc 2.39`, or a name alone."""
    name, version = pair(text)
    return (name.lower(), version) if name else None


def version_of(text: str) -> tuple[int, ...]:
    """Parse `570.211.01` into numbers, at least two of them, so that versions can be compared."""
    numbers = [number(part) for part in text.split(".")]
    return tuple(numbers + [0] * (2 - len(numbers)))


def sha256_of(text: str) -> str:
    """Return a sha256; empty for what is none."""
    return text if re.fullmatch("[0-9a-f]{64}", text) else ""


def pin_of(packages: Iterable[str]) -> str:
    """Return the branch to which NVIDIA's repository is pinned, such as `580` or `580.173.02`."""
    stem = "nvidia-driver-pinning-"
    found = [name.removeprefix(stem) for name in packages if name.startswith(stem)]
    return found[0] if found else ""


def pair(row: str) -> tuple[str, str]:
    """Split a line into its first word and the rest."""
    head, _, rest = row.partition(" ")
    return head, rest.strip()


def number(text: str) -> int:
    """Parse a number; 0 for what is none."""
    return int(text) if text.isdecimal() else 0
