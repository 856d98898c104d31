"""A machine rented from the simulated cloud becomes trainable, or is refused with the reason.

Real SSH and the real set-up, on machines whose drivers, packages and boots are played (`metal`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from arm import LocalHypervisor
from arm.harness import T4, azure, spec
from metal.definition import Quirks
from metal.machine import Metal
from metal.state import VENV
from support.azure_login import enter

from commands.runs import factory
from infra.config import VmTable
from infra.provider import Vm
from remote import keys
from remote.errors import CommandFailed, RemoteError, Unfit
from remote.setup.apply import ReadyMachine, apply
from remote.setup.facts import gather_facts
from remote.setup.python_env import cuda_for
from remote.setup.steps import SetupGoal
from remote.ssh import SshConnection

PACE = 60.0
A10 = "Standard_NV36ads_A10_v5"
OLD = "470.256.02"
DRIVERS = {T4: "580.173.02", A10: "570.211.01"}


@dataclass
class Rented:
    """One machine, the line to it, and what is inside."""

    vm: Vm
    connection: SshConnection
    goal: SetupGoal
    metal: Metal
    messages: list[str]

    def apply(self) -> ReadyMachine:
        """Set the machine up as `qft` does."""
        ready = apply(self.connection, self.goal, on_message=self.messages.append)
        self.connection = ready.connection
        return ready

    def refused(self, kind: type[RemoteError]) -> str:
        """Set up in vain; what the user reads."""
        with pytest.raises(kind) as caught:
            self.apply()
        return f"{caught.value}\nhint: {caught.value.hint}"


Rent = Callable[[str, Quirks], Rented]


@pytest.fixture
def rent(tmp_path: Path) -> Iterator[Rent]:
    """Rents machines by size, with something special about them."""
    hypervisor = LocalHypervisor(tmp_path / "guests", pace=PACE)
    rented: list[Rented] = []

    def rent_one(size: str, quirks: Quirks) -> Rented:
        hypervisor.quirks = quirks
        public, host = keys.generate(tmp_path / "user"), keys.generate(tmp_path / "host")
        vm = harness.provider().create(
            spec(
                size=size,
                max_price_usd_per_h=5.0,
                public_key=public,
                host_private_key=(tmp_path / "host").read_text(),
                host_public_key=host,
            )
        )
        (metal,) = hypervisor.metals.values()
        want = factory.setup_wanted(VmTable(provider="azure", max_price=5.0), vm)
        connection = enter(vm, tmp_path / "user", host)
        rented.append(Rented(vm=vm, connection=connection, goal=want, metal=metal, messages=[]))
        return rented[-1]

    with azure(tmp_path / "state", hypervisor=hypervisor) as harness:
        yield rent_one
        for one in rented:
            one.connection.close()


def verbs(metal: Metal) -> list[str]:
    """What was done to the system, without the names of packages and units."""
    return [" ".join(line.split()[:2]) for line in metal.done()]


def steps(messages: list[str]) -> list[str]:
    """The steps that were told, without their reasons and without how far each was meanwhile."""
    return [line.split(" (")[0] for line in messages if ": " not in line.split(" (")[0]]


def test_healthy_t4_needs_no_driver_and_no_reboot(rent: Rent) -> None:
    """The image's driver is kept, CUDA 13 wheels go in; a second pass runs no command."""
    machine = rent(T4, Quirks())

    ready = machine.apply()
    done = machine.metal.done()
    again = machine.apply()

    assert ready.facts.driver == "580.173.02"
    assert verbs(machine.metal) == [
        "systemctl enable",
        "systemctl disable",
        "apt-mark hold",
        "apt-get install",
        "python -m",
        "pip install",
    ]
    assert cuda_for(ready.facts, machine.goal) == "cu130"
    assert again.done == ()
    assert machine.metal.done() == done


def test_t4_without_a_driver_gets_the_signed_one(rent: Rent) -> None:
    """On plain Ubuntu, Secure Boot or not: install, reboot, reconnect, and a tensor on the GPU."""
    machine = rent(T4, Quirks(image="plain", secure_boot=True, cloud_init_s=300))

    ready = machine.apply()

    assert steps(machine.messages) == [
        "wait for the first boot to finish",
        "stop automatic upgrades",
        "install the NVIDIA driver",
        "reboot",
        "hold kernel and driver",
        "install Python's venv",
        "make the Python environment",
        "put a tensor on the GPU",
    ]
    assert ready.facts.driver == "580.126.09"
    assert machine.metal.store.read().boot_count == 2
    assert set(ready.facts.packages) <= set(ready.facts.held)


def test_open_modules_that_do_not_answer_are_replaced(rent: Rent) -> None:
    """On the HPC image as it is now: the closed modules of the pinned branch, and a reboot."""
    machine = rent(T4, Quirks(silent=True))
    with machine.metal.store.change() as state:
        state.held = sorted({*state.held, "nvidia-open", "nvidia-dkms-580-open"})

    ready = machine.apply()
    state = machine.metal.store.read()

    assert steps(machine.messages)[-7:-4] == [
        "stop automatic upgrades",
        "replace NVIDIA's open kernel modules by the closed ones",
        "reboot",
    ]
    assert (ready.facts.driver, ready.facts.open_modules) == ("580.173.02", False)
    assert (state.boot_count, state.open) == (2, False)
    assert {"cuda-drivers", "nvidia-driver-580", "nvidia-utils-580"} <= set(state.packages)
    assert not [name for name in state.packages if "open" in name]
    assert "nvidia-uninstall" not in verbs(machine.metal)
    assert machine.apply().done == ()


def test_closed_modules_that_do_not_answer_either_are_refused(rent: Rent) -> None:
    """What was tried, what the driver says, and which image to boot instead are told."""
    machine = rent(T4, Quirks(silent=True))
    with machine.metal.store.change() as state:
        state.stuck = True

    reason = machine.refused(Unfit)

    assert "neither NVIDIA's open kernel modules nor the closed ones of 580.173.02" in reason
    assert "couldn't communicate with the NVIDIA driver" in reason
    assert "Canonical:ubuntu-24_04-lts:server:latest" in reason
    assert machine.metal.store.read().boot_count == 2


def test_older_image_whose_driver_does_not_answer_gets_another(rent: Rent) -> None:
    """An installer's driver is removed first: its libraries do not fit the packages' modules."""
    machine = rent(T4, Quirks(silent=True, runfile=True))

    ready = machine.apply()

    assert verbs(machine.metal)[:6] == [
        "systemctl enable",
        "systemctl disable",
        "apt-get install",
        "nvidia-uninstall",
        "apt-get install",
        "reboot",
    ]
    assert ready.facts.driver == "580.126.09"


def test_interrupted_installation_is_finished_first(rent: Rent) -> None:
    """After a cut in the middle of apt, dpkg is asked to finish before anything else is."""
    machine = rent(T4, Quirks(image="plain", cut=True))

    ready = machine.apply()

    assert ready.facts.driver == "580.126.09"
    assert verbs(machine.metal)[2:4] == ["dpkg --configure", "apt-get install"]


def test_vgpu_driver_with_another_checksum_is_not_executed(rent: Rent) -> None:
    """The checksum that the user names is compared first, and the file is gone."""
    machine = rent(A10, Quirks(forged=True))
    machine.goal = replace(machine.goal, grid_sha256="0" * 64)

    reason = machine.refused(CommandFailed)

    assert f"instead of {'0' * 64}: it was not executed" in reason
    assert "was not executed: see `vm.azure.grid_sha256`" in reason
    assert [line for line in machine.metal.done() if "installer" in line] == []
    assert not (machine.metal.directory / "root/root/executed").exists()
    assert not (machine.metal.directory / "root/root/qft-grid.run").exists()


def test_vgpu_driver_is_the_one_that_was_seen_first(
    rent: Rent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This computer remembers the checksum of the first, and demands it of every later machine."""
    monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
    table = VmTable(provider="azure", gpu="A10", max_price=5.0)
    machine = rent(A10, Quirks())
    ready, _ = factory.make_ready(table, machine.messages.append)(machine.connection, machine.vm)
    machine.connection = ready
    seen = gather_facts(ready).grid_sha256
    later = factory.setup_wanted(table, machine.vm)
    named = table.model_copy(update={"azure": table.azure.model_copy(update={"grid_sha256": "A"})})

    assert len(seen) == 64
    assert later.grid_sha256 == seen
    assert factory.setup_wanted(named, machine.vm).grid_sha256 == "a"


def test_a10_gets_the_vgpu_driver_and_cuda_12(rent: Rent) -> None:
    """Plain image, GRID 570, its settings, a reboot, CUDA 12.8 wheels; the kernel is held."""
    machine = rent(A10, Quirks())

    ready = machine.apply()

    assert ready.facts.driver == "570.211.01"
    assert ready.facts.gpus[0].name == "NVIDIA A10-24Q"
    assert cuda_for(ready.facts, machine.goal) == "cu128"
    assert ready.facts.gridd.split() == ["EnableUI=FALSE", "IgnoreSP=FALSE"]
    assert ready.facts.kernel_package in ready.facts.held
    assert machine.apply().done == ()


@pytest.mark.parametrize(
    "quirks",
    [Quirks(image="hpc"), Quirks(driver="595.58.03", grid=True)],
    ids=["datacenter", "newer GRID"],
)
def test_a10_with_the_wrong_driver_gets_the_right_one(rent: Rent, quirks: Quirks) -> None:
    """A driver that sees no card on the vGPU is replaced by the branch that the host serves."""
    machine = rent(A10, quirks)

    assert machine.apply().facts.driver == "570.211.01"


@pytest.mark.parametrize(
    ("damage", "boot_count"),
    [("inforom_corrupted", 1), ("gone", 2)],
    ids=["corrupted infoROM", "card lost"],
)
@pytest.mark.parametrize("size", [T4, A10])
def test_good_driver_of_an_odd_card_is_kept(
    rent: Rent, size: str, damage: str, boot_count: int
) -> None:
    """A warning changes nothing, and a card that was lost comes back by a reboot alone."""
    machine = rent(size, Quirks(driver=DRIVERS[size], grid=size == A10))
    with machine.metal.store.change() as state:
        setattr(state, damage, True)

    ready = machine.apply()

    assert ready.facts.driver == DRIVERS[size]
    assert machine.metal.store.read().boot_count == boot_count
    assert not [line for line in machine.metal.done() if "driver" in line or "GRID" in line]


REFUSALS: dict[str, tuple[str, Quirks, type[RemoteError], tuple[str, ...]]] = {
    "Secure Boot, vGPU": (
        A10,
        Quirks(secure_boot=True),
        Unfit,
        ("Secure Boot is on, and the vGPU driver", "secureBootEnabled false"),
    ),
    "Secure Boot, driver of the image": (
        T4,
        Quirks(secure_boot=True),
        Unfit,
        ("Secure Boot is on, and the kernel refuses its NVIDIA driver", "secureBootEnabled false"),
    ),
    "driver too old": (
        T4,
        Quirks(driver=OLD),
        Unfit,
        ("`cu130` needs a driver of at least 580.65", f"this machine has {OLD}", "image"),
    ),
    "lock that is never released": (
        T4,
        Quirks(image="plain", lock_s=10**6, lock_holder="apt-get"),
        CommandFailed,
        ("Could not get lock /var/lib/dpkg/lock-frontend", "(apt-get)", "still at work"),
    ),
    "first boot failed": (
        T4,
        Quirks(cloud_init_error="('scripts_user', RuntimeError('Runparts: 1 failures'))"),
        Unfit,
        ("its first boot failed", "Runparts: 1 failures", "cloud-init status --long"),
    ),
    "no way out, driver": (
        T4,
        Quirks(image="plain", outbound=False),
        CommandFailed,
        ("install the NVIDIA driver", "connection timed out", "no way out to the Internet"),
    ),
    "no way out, vGPU driver": (
        A10,
        Quirks(outbound=False),
        CommandFailed,
        ("install the vGPU driver", "no way out to the Internet"),
    ),
    "host of another branch": (
        A10,
        Quirks(host=595),
        Unfit,
        ("install the vGPU driver", "No devices were found", "Xid 78: the guest's vGPU driver"),
    ),
    "Xid": (
        T4,
        Quirks(xid_on_cuda=79),
        CommandFailed,
        ("put a tensor on the GPU", "unspecified launch failure", "Xid 79: the card has fallen"),
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_says_why(rent: Rent, name: str) -> None:
    """A machine that cannot be made ready is refused with the reason and what helps."""
    size, quirks, kind, words = REFUSALS[name]

    reason = rent(size, quirks).refused(kind)

    assert [word for word in words if word not in reason] == [], reason


def test_no_way_out_is_reported_when_packages_are_fetched(rent: Rent) -> None:
    """With everything but the wheels there, pip's failure is explained too."""
    machine = rent(T4, Quirks())
    with machine.metal.store.change() as state:
        state.packages.append(VENV)
        state.outbound = False

    reason = machine.refused(CommandFailed)

    assert "No matching distribution found" in reason
    assert "no way out to the Internet" in reason


@pytest.mark.parametrize("holder", ["unattended-upgr", "apt-get"])
def test_package_lock_is_waited_for(rent: Rent, holder: str) -> None:
    """While another tool holds the locks after boot, set-up waits, whoever it is."""
    machine = rent(T4, Quirks(lock_holder=holder))
    free_s = time.time() + 300 / PACE
    with machine.metal.store.change() as state:
        state.lists_until, state.frontend_until = free_s - 60 / PACE, free_s

    ready = machine.apply()

    assert ready.facts.driver
    assert time.time() > free_s
