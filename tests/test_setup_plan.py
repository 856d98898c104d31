"""Set-up decides from facts alone: each row of these tables is a machine and what it needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote.errors import Unfit
from remote.setup import python_env
from remote.setup.apply import plan_steps
from remote.setup.facts import DetectedGpu, Facts, PythonInterpreter
from remote.setup.python_env import cuda_for, interpreter
from remote.setup.steps import DriverKind, SetupGoal

PYTHON = PythonInterpreter(command="python3.12", version=(3, 12), venv=True)
BARE = Facts(
    os="ubuntu 24.04",
    kernel="6.8.0-1030-azure",
    boot_id="b1",
    home="/home/qft",
    free_bytes=100_000_000_000,
    sudo=True,
    pythons=(PYTHON,),
    cloud_init="done",
)
WITH_GPU = replace(BARE, pci_gpus=1)
T4 = DetectedGpu(name="Tesla T4", driver="580.173.02", memory_mb=15360, capability="7.5")
A10 = DetectedGpu(name="NVIDIA A10-24Q", driver="570.211.01", memory_mb=24512, capability="8.6")
T4_OK = replace(WITH_GPU, gpus=(T4,), smi_code=0)
A10_OK = replace(
    WITH_GPU, gpus=(A10,), smi_code=0, gridd="EnableUI=FALSE IgnoreSP=FALSE", secure_boot=False
)
HPC = replace(
    WITH_GPU,
    packages=("nvidia-open-580", "nvidia-dkms-580-open", "nvidia-driver-pinning-580.173.02"),
    held=("nvidia-open-580", "linux-image-azure"),
    pinned="580.173.02",
)
DATACENTER = SetupGoal(driver=DriverKind.DATACENTER)
GRID = SetupGoal(driver=DriverKind.GRID, cuda_max="12.8")
CPU = SetupGoal()
UPGRADERS = ("unattended-upgrades.service", "apt-daily.timer")


def ready(facts: Facts, goal: SetupGoal) -> Facts:
    """Say what the machine looks like once its environment is there and has used the GPU."""
    name = Path(interpreter(facts, goal)).parts[1]
    seen = f"{facts.boot_id} {facts.driver}"
    return replace(facts, venvs=(name,), cuda_seen=((name, seen),))


TABLE: dict[str, tuple[Facts, SetupGoal, list[str]]] = {
    "cpu": (BARE, CPU, ["make the Python environment"]),
    "cpu, ready": (ready(BARE, CPU), CPU, []),
    "cpu, interpreter given": (Facts(), SetupGoal(python="/usr/bin/python3"), []),
    "cpu, booting": (
        replace(BARE, cloud_init="running", upgraders=UPGRADERS),
        CPU,
        ["wait for the first boot to finish"],
    ),
    "cpu, no venv": (
        replace(BARE, pythons=(replace(PYTHON, venv=False),), upgraders=UPGRADERS),
        CPU,
        ["stop automatic upgrades", "install Python's venv", "make the Python environment"],
    ),
    "cpu, no venv, machine of the user": (
        replace(BARE, pythons=(replace(PYTHON, venv=False),), upgraders=UPGRADERS),
        SetupGoal(rented=False),
        ["install Python's venv", "make the Python environment"],
    ),
    "T4, driver in the image": (
        T4_OK,
        DATACENTER,
        ["make the Python environment", "put a tensor on the GPU"],
    ),
    "T4, ready": (ready(T4_OK, DATACENTER), DATACENTER, []),
    "T4, after a reboot": (
        replace(ready(T4_OK, DATACENTER), boot_id="b2"),
        DATACENTER,
        ["put a tensor on the GPU"],
    ),
    "T4, packages not held": (
        replace(ready(T4_OK, DATACENTER), packages=("nvidia-driver-580",)),
        DATACENTER,
        ["hold kernel and driver"],
    ),
    "T4, packages held": (
        replace(
            ready(T4_OK, DATACENTER),
            packages=("nvidia-driver-580",),
            held=("nvidia-driver-580", "linux-image-azure"),
        ),
        DATACENTER,
        [],
    ),
    "T4, machine of the user": (
        replace(
            T4_OK, packages=("nvidia-driver-580",), upgraders=UPGRADERS, cloud_init="", sudo=False
        ),
        replace(DATACENTER, rented=False),
        ["make the Python environment", "put a tensor on the GPU"],
    ),
    "T4, bare, first boot": (
        replace(WITH_GPU, cloud_init="running", upgraders=UPGRADERS, nouveau=True),
        DATACENTER,
        ["wait for the first boot to finish"],
    ),
    "T4, signed driver not loaded yet, Secure Boot": (
        replace(
            WITH_GPU, secure_boot=True, smi_code=9, packages=("linux-modules-nvidia-580-azure",)
        ),
        DATACENTER,
        ["install the NVIDIA driver"],
    ),
    "T4, kernel not held": (
        ready(replace(T4_OK, kernel_package="linux-image-6.8.0-1030-azure"), DATACENTER),
        DATACENTER,
        ["hold kernel and driver"],
    ),
    "T4, bare": (
        replace(WITH_GPU, upgraders=UPGRADERS, nouveau=True),
        DATACENTER,
        ["stop automatic upgrades", "install the NVIDIA driver"],
    ),
    "T4, bare, apt cut in the middle": (
        replace(WITH_GPU, upgraders=UPGRADERS, dpkg_broken="(cut)"),
        DATACENTER,
        [
            "stop automatic upgrades",
            "finish the interrupted installation",
            "install the NVIDIA driver",
        ],
    ),
    "cpu, apt cut in the middle, nothing to install": (
        replace(BARE, dpkg_broken="libc6"),
        CPU,
        ["make the Python environment"],
    ),
    "cpu, no venv, apt cut in the middle": (
        replace(BARE, pythons=(replace(PYTHON, venv=False),), dpkg_broken="libc6"),
        CPU,
        [
            "finish the interrupted installation",
            "install Python's venv",
            "make the Python environment",
        ],
    ),
    "T4, NVIDIA's pinned open modules are silent": (
        replace(HPC, smi_code=9, smi_message="couldn't communicate"),
        DATACENTER,
        ["replace NVIDIA's open kernel modules by the closed ones"],
    ),
    "T4, NVIDIA's pinned open modules, no nvidia-smi": (
        HPC,
        DATACENTER,
        ["replace NVIDIA's open kernel modules by the closed ones"],
    ),
    "T4, closed packages, but open modules on the disk": (
        replace(
            HPC,
            packages=("cuda-drivers", "nvidia-driver-580", "nvidia-driver-pinning-580"),
            open_modules=True,
            smi_code=9,
        ),
        DATACENTER,
        ["replace NVIDIA's open kernel modules by the closed ones"],
    ),
    "T4, NVIDIA's closed modules wait for a reboot": (
        replace(HPC, packages=("cuda-drivers",), reboot_required=True, smi_code=9),
        DATACENTER,
        ["reboot into the installed driver"],
    ),
    "T4, driver replaced under the kernel": (
        replace(WITH_GPU, smi_code=18, smi_message="Driver/library version mismatch"),
        DATACENTER,
        ["reboot into the installed driver"],
    ),
    "T4, driver waits for a reboot": (
        replace(WITH_GPU, packages=("nvidia-driver-580",), reboot_required=True, smi_code=9),
        DATACENTER,
        ["reboot into the installed driver"],
    ),
    "T4, driver of the user's image, replaced under the kernel": (
        replace(WITH_GPU, smi_code=18, smi_message="Driver/library version mismatch"),
        replace(DATACENTER, driver_given=True),
        ["reboot into the image's driver"],
    ),
    "A10, bare": (
        WITH_GPU,
        GRID,
        ["install the vGPU driver", "configure the vGPU service"],
    ),
    "A10, with the ordinary driver": (
        replace(WITH_GPU, packages=("nvidia-driver-580",), smi_code=6, smi_message="No devices"),
        GRID,
        [
            "remove the ordinary NVIDIA driver",
            "install the vGPU driver",
            "configure the vGPU service",
        ],
    ),
    "A10, driver of an older host": (
        replace(A10_OK, gpus=(replace(A10, driver="535.161.08"),)),
        GRID,
        ["install the vGPU driver", "configure the vGPU service"],
    ),
    "A10, service not configured": (
        replace(ready(A10_OK, GRID), gridd="FeatureType=1 IgnoreSP=FALSE"),
        GRID,
        ["configure the vGPU service"],
    ),
    "A10, driver there": (
        A10_OK,
        GRID,
        ["make the Python environment", "put a tensor on the GPU"],
    ),
    "A10, ready": (ready(A10_OK, GRID), GRID, []),
}


@pytest.mark.parametrize("name", TABLE)
def test_plan(name: str) -> None:
    """The machine of this row needs exactly these steps, in this order."""
    facts, goal, names = TABLE[name]

    assert [step.name for step in plan_steps(facts, goal)] == names


REFUSED: dict[str, tuple[Facts, SetupGoal, str]] = {
    "an image said to bring its driver": (
        replace(WITH_GPU, smi_code=9, smi_message="couldn't communicate"),
        replace(DATACENTER, driver_given=True),
        "said to bring does not answer: couldn't communicate; `driver: auto` under `vm.image`",
    ),
    "an image said to bring the vGPU driver": (
        replace(A10_OK, gpus=(replace(A10, driver="535.161.08"),)),
        replace(GRID, driver_given=True),
        "its vGPU driver is of branch 535, but the host serves 570",
    ),
    "no card": (BARE, DATACENTER, "no NVIDIA card on its PCI bus; choose a size"),
    "no card, machine of the user": (
        BARE,
        replace(DATACENTER, rented=False),
        "or `vm: {ssh: {gpu: false}}` to train without",
    ),
    "an unsigned driver under Secure Boot": (
        replace(WITH_GPU, secure_boot=True, smi_code=9, smi_message="couldn't communicate"),
        DATACENTER,
        "the kernel refuses its NVIDIA driver, which is unsigned: couldn't communicate",
    ),
    "a first boot that failed": (
        replace(T4_OK, cloud_init="error", cloud_init_error="- ('scripts_user', 'failed')"),
        DATACENTER,
        "its first boot failed: - ('scripts_user', 'failed')",
    ),
    "NVIDIA's closed modules are silent, too": (
        replace(HPC, packages=("cuda-drivers", "nvidia-driver-580"), smi_code=9, smi_message="No."),
        DATACENTER,
        "neither NVIDIA's open kernel modules nor the closed ones of 580.173.02: No.; boot another",
    ),
    "NVIDIA's packages under Secure Boot": (
        replace(HPC, secure_boot=True, smi_code=9, smi_message="couldn't communicate"),
        DATACENTER,
        "the kernel refuses its NVIDIA driver, which is unsigned",
    ),
    "GRID under Secure Boot": (replace(WITH_GPU, secure_boot=True), GRID, "Secure Boot is on"),
    "CUDA 13 wheels on a vGPU": (A10_OK, replace(GRID, cuda="cu130"), "this size admits 12.8"),
    "CUDA 13 wheels on an old driver": (
        replace(T4_OK, gpus=(replace(T4, driver="550.54.14"),)),
        replace(DATACENTER, cuda="cu130"),
        "needs a driver of at least 580.65; this machine has 550.54.14",
    ),
    "a driver that no wheel of ours knows": (
        replace(T4_OK, gpus=(replace(T4, driver="470.82.01"),)),
        DATACENTER,
        "needs a driver of at least 525.60",
    ),
    "an unknown set": (T4_OK, replace(DATACENTER, cuda="cu11"), "no requirement set `cu11`"),
    "the CPU set with a GPU": (T4_OK, replace(DATACENTER, cuda="cpu"), "leave the GPU unused"),
    "too little disk": (replace(BARE, free_bytes=1_000_000_000), CPU, "1,000.0 MB are free"),
    "too little disk for CUDA": (
        replace(T4_OK, free_bytes=9_000_000_000),
        DATACENTER,
        "9,000.0 MB are free",
    ),
    "another Python than CPython": (
        replace(
            BARE,
            pythons=(
                PythonInterpreter(command="python3", version=(3, 11), venv=True, kind="pypy"),
                PythonInterpreter(
                    command="python3.13", version=(3, 13), venv=True, kind="free-threaded"
                ),
            ),
        ),
        CPU,
        "is there, only python3 3.11 (pypy), python3.13 3.13 (free-threaded); use an image",
    ),
    "an old C library": (
        replace(BARE, libc=("glibc", "2.17")),
        CPU,
        "the tested wheels need glibc 2.28, and this system has glibc 2.17",
    ),
    "another C library": (
        replace(BARE, libc=("musl", "")),
        CPU,
        "need glibc 2.28, and this system has musl",
    ),
    "too little disk for the data": (
        replace(BARE, free_bytes=20_000_000_000),
        replace(CPU, spare_bytes=19_000_000_000),
        "rest 19.0 GB); 20.0 GB are free",
    ),
    "old Python": (
        replace(BARE, pythons=(PythonInterpreter(command="python3", version=(3, 10), venv=True),)),
        CPU,
        "no Python of 3.11 to 3.14 is there, only python3 3.10",
    ),
    "a Python that is too new": (
        replace(BARE, pythons=(PythonInterpreter(command="python3", version=(3, 15), venv=True),)),
        CPU,
        "no Python of 3.11 to 3.14 is there, only python3 3.15",
    ),
    "another processor": (
        replace(BARE, arch="aarch64"),
        CPU,
        "for x86_64, and this machine is aarch64",
    ),
    "no root": (replace(WITH_GPU, sudo=False), DATACENTER, "root is needed to install the NVIDIA"),
    "not Ubuntu": (
        replace(WITH_GPU, os="debian 12"),
        DATACENTER,
        "on Ubuntu only, not on `debian 12`",
    ),
    "not Ubuntu, GRID": (replace(WITH_GPU, os="rhel 9"), GRID, "on Ubuntu only, not on `rhel 9`"),
    "a machine of the user without driver": (
        replace(WITH_GPU, smi_message="couldn't communicate"),
        replace(DATACENTER, rented=False),
        "does not answer: couldn't communicate",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str) -> None:
    """The machine of this row is refused with the reason, before anything is changed."""
    facts, goal, reason = REFUSED[name]
    with pytest.raises(Unfit) as caught:
        plan_steps(facts, goal)

    assert reason in f"{caught.value}; {caught.value.hint}"


CUDA: dict[str, tuple[Facts, SetupGoal, str]] = {
    "no GPU": (BARE, CPU, "cpu"),
    "driver 580": (T4_OK, DATACENTER, "cu130"),
    "driver 575": (replace(T4_OK, gpus=(replace(T4, driver="575.57.08"),)), DATACENTER, "cu128"),
    "driver 580.65.06": (
        replace(T4_OK, gpus=(replace(T4, driver="580.65.06"),)), DATACENTER, "cu130"
    ),
    "vGPU": (A10_OK, GRID, "cu128"),
    "demanded": (T4_OK, replace(DATACENTER, cuda="cu128"), "cu128"),
}  # fmt: skip


@pytest.mark.parametrize("name", CUDA)
def test_requirement_set(name: str) -> None:
    """The newest set that driver and size admit is chosen."""
    facts, goal, cuda = CUDA[name]

    assert cuda_for(facts, goal) == cuda


def test_steps_have_a_reason_and_a_limit() -> None:
    """Every step of every plan has a reason, a command and a time-out."""
    steps = [step for facts, goal, _ in TABLE.values() for step in plan_steps(facts, goal)]

    assert steps
    assert all(step.why and step.command and 0 < step.timeout_s <= 3600 for step in steps)


def test_driver_steps_wait_for_the_package_lock() -> None:
    """Every step that uses apt waits for the lock rather than failing on it."""
    steps = [step for facts, goal, _ in TABLE.values() for step in plan_steps(facts, goal)]
    users = [step for step in steps if "apt-get" in step.command]

    assert users
    assert all("DPkg::Lock::Timeout=600" in step.command and step.sudo for step in users)


def test_environment_is_named_after_all_that_matters() -> None:
    """Another interpreter or another lock is another environment, for every set of them."""
    older = replace(PYTHON, version=(3, 11))
    names = {
        python_env.environment(python, cuda)
        for python in (PYTHON, older)
        for cuda in ("cpu", "cu128", "cu130")
    }

    assert len(names) == 6


def test_planning_twice_changes_nothing() -> None:
    """A plan depends on nothing but its arguments."""
    rows: list[Any] = [(facts, goal) for facts, goal, _ in TABLE.values()]

    assert [plan_steps(*row) for row in rows] == [plan_steps(*row) for row in rows]


@pytest.mark.parametrize(
    ("pinned", "driver"),
    [("580", "nvidia-driver-580"), ("580.173.02", "nvidia-driver-580"), ("595", "nvidia-driver")],
)
def test_closed_modules_are_of_the_pinned_branch(pinned: str, driver: str) -> None:
    """The pin chooses the version; its packages are named by branch up to 580, and not later."""
    (step,) = plan_steps(replace(HPC, pinned=pinned, smi_code=9), DATACENTER)

    assert f"--autoremove --purge cuda-drivers {driver} linux-headers-$(uname -r)" in step.command
    assert "apt-mark unhold nvidia-open-580 >" in step.command
    assert step.reboot_after


def test_vgpu_driver_is_executed_only_with_its_checksum() -> None:
    """The step compares before it executes, and downloads over nothing but TLS."""
    goal = replace(GRID, grid_sha256="ab" * 32)
    step = next(one for one in plan_steps(WITH_GPU, goal) if one.name == "install the vGPU driver")
    compared = step.command.index("ab" * 32)

    assert compared < step.command.index("sh /root/qft-grid.run")
    assert "--proto '=https'" in step.command
