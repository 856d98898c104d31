"""The whole command line on machines that must be set up first: driver, reboot, wheels, job."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from arm import Cloud, LocalHypervisor
from metal.definition import Quirks
from metal.machine import Metal
from support.runs import Project, make_project, wait_until

from infra.run.journal import Kind

PACE = 60.0


@pytest.fixture
def hypervisor(tmp_path: Path) -> LocalHypervisor:
    """Room for real machines."""
    return LocalHypervisor(tmp_path / "guests", pace=PACE)


@pytest.fixture
def cloud(hypervisor: LocalHypervisor) -> Iterator[Cloud]:
    """A quick cloud."""
    with (
        Cloud(pace=PACE, hypervisor=hypervisor) as cloud,
        mock.patch.dict(os.environ, cloud.environment()),
    ):
        yield cloud


def project_in(folder: Path, *, gpu: str) -> Project:
    """A tiny project that rents one kind of card in one region."""
    return make_project(
        folder,
        vm={"provider": "azure", "gpu": gpu, "regions": ["eastus"], "max_price": 2.0},
        budget={"usd": 100, "hours": 20},
        train={"steps": 20},
    )


def inside(hypervisor: LocalHypervisor) -> Metal | None:
    """What is inside the one machine."""
    return next(iter(hypervisor.metals.values()), None)


@pytest.mark.usefixtures("cloud")
def test_run_killed_in_set_up_is_finished_by_the_same_command(
    cloud: Cloud, hypervisor: LocalHypervisor, tmp_path: Path
) -> None:
    """An A10: GRID driver, reboot; `qft` is killed while wheels arrive, and run again, trains.

    The wheels go on arriving meanwhile, and are not fetched twice.
    """
    hypervisor.quirks = Quirks(pip_s=15)
    project = project_in(tmp_path / "project", gpu="A10")
    process = project.start("run", "--plain")

    def wheels_arrive() -> bool:
        metal = inside(hypervisor)
        done = metal.done() if metal else []
        return bool(done) and done[-1].startswith("python -m venv")

    wait_until(wheels_arrive)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = project.qft("run", "--json")

    assert again.returncode == 0, again.stderr[-3000:]
    (done,) = hypervisor.history.values()
    assert [line for line in done if "installer" in line] == ["GRID installer 570.211.01"]
    assert [line.split()[0] for line in done].count("reboot") == 1
    assert sum(line.startswith("pip install") for line in done) == 1
    assert (project.out / "adapter" / "adapter_model.safetensors").exists()
    assert cloud.ledger.billing() == []


@pytest.mark.usefixtures("cloud")
def test_driver_too_old_for_any_wheel_is_refused_before_training(
    cloud: Cloud, hypervisor: LocalHypervisor, tmp_path: Path
) -> None:
    """Exit code 4, the driver's version, what helps; nothing was installed and no trainer ran."""
    hypervisor.quirks = Quirks(driver="470.256.02")
    project = project_in(tmp_path / "project", gpu="T4")

    refused = project.qft("run", "--plain")
    down = project.qft("down", "--delete")

    assert refused.returncode == 4, refused.stderr[-3000:]
    assert "`cu130` needs a driver of at least 580.65" in refused.stderr
    assert "470.256.02" in refused.stderr
    assert "choose another size or image" in refused.stderr
    assert Kind.LAUNCH_INTENDED not in project.kinds()
    (done,) = hypervisor.history.values()
    assert not any(line.startswith(("pip", "python")) for line in done)
    assert down.returncode == 0, down.stderr
    assert cloud.ledger.billing() == []
