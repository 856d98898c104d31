"""With every process of qft dead, the machine itself ends the bill: real script, identity, ARM."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from arm import Cloud, LocalHypervisor
from support.runs import Project, make_project, wait_until

from infra.provider import StopReason
from infra.run.journal import Kind

PACE = 30.0
UNIT = "qft-watch.service"
SOON = ("--every-s", "0.2", "--idle-s", "4", "--done-s", "2")
"""Minutes of patience as seconds."""


@pytest.fixture
def hypervisor(tmp_path: Path) -> LocalHypervisor:
    """Machines that give themselves back."""
    return LocalHypervisor(tmp_path / "guests", pace=PACE, hurry=SOON)


@pytest.fixture
def cloud(hypervisor: LocalHypervisor) -> Iterator[Cloud]:
    """A cloud in which minutes take seconds."""
    with (
        Cloud(pace=PACE, hypervisor=hypervisor) as cloud,
        mock.patch.dict(os.environ, cloud.environment()),
    ):
        yield cloud


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A tiny project in one region, with hours of budget."""
    return make_project(
        tmp_path / "project",
        vm={"provider": "azure", "regions": ["eastus"]},
        budget={"hours": 20},
        train={"steps": 30},
    )


def given_back(cloud: Cloud) -> bool:
    """Whether the one machine is deallocated, and no compute bills."""
    (vm,) = cloud.machines()
    return vm.hidden["power"] == "deallocated" and cloud.ledger.billing("compute") == []


def who(cloud: Cloud) -> set[str]:
    """Who asked for the deallocation, by the activity log."""
    wanted = "Microsoft.Compute/virtualMachines/deallocate/action"
    return {one["caller"] for one in cloud.world.log if one["operationName"]["value"] == wanted}


def principal(cloud: Cloud) -> str:
    """The machine's own identity."""
    (vm,) = cloud.machines()
    return str(vm.more["identity"]["principalId"])


def limit(hypervisor: LocalHypervisor) -> Path:
    """The file in which the laptop wrote down the end of the budget."""
    (path,) = hypervisor.directory.glob("*/disk/qft/limit")
    return path


def nobody_comes(hypervisor: LocalHypervisor) -> None:
    """Nothing happens at all."""
    assert float(limit(hypervisor).read_text()) > time.time() + 3600


def budget_ends(hypervisor: LocalHypervisor) -> None:
    """The hours of the budget have gone by."""
    limit(hypervisor).write_text(str(time.time() - 1))


@pytest.mark.parametrize(
    ("hurry", "happen"),
    [(SOON, nobody_comes), (("--every-s", "0.2"), budget_ends)],
    ids=["nobody asks", "budget spent"],
)
def test_machine_that_nobody_needs_gives_itself_back(
    cloud: Cloud,
    project: Project,
    hypervisor: LocalHypervisor,
    hurry: tuple[str, ...],
    happen: Callable[[LocalHypervisor], None],
) -> None:
    """After `qft up` no process of ours lives: by silence or by its limit, compute ends to bill."""
    hypervisor.hurry = ("--every-s", "0.2")
    up = project.qft("up", "--plain")
    assert up.returncode == 0, up.stderr
    assert cloud.ledger.billing("compute") != []
    (vm,) = cloud.machines()
    hypervisor.hasten(vm, UNIT, *hurry)

    happen(hypervisor)

    wait_until(lambda: given_back(cloud))
    assert who(cloud) == {principal(cloud)}


def test_finished_training_is_not_paid_for_while_the_laptop_is_dead(
    cloud: Cloud, project: Project, hypervisor: LocalHypervisor
) -> None:
    """Killed while it follows, `qft` finds the machine deallocated, and the adapter on its disk."""
    hypervisor.hurry = ("--every-s", "0.2", "--done-s", "2")  # silence alone is borne for long
    process = project.start("run", "--plain")
    wait_until(lambda: Kind.LAUNCHED in project.kinds())
    process.kill()
    process.communicate()

    wait_until(lambda: given_back(cloud))

    (status,) = hypervisor.directory.glob("*/disk/qft/*/run/status.json")
    assert json.loads(status.read_text())["phase"] == "done"
    assert who(cloud) == {principal(cloud)}
    hypervisor.hurry = ("--every-s", "0.2")
    done = project.qft("run", "--json")
    assert done.returncode == 0, done.stderr
    stops = [e.data for e in project.events() if e.kind in {Kind.STOP_SEEN, Kind.STOP_EXPLAINED}]
    assert stops[-1]["reason"] in {StopReason.RETURNED, StopReason.EVICTED}
    assert (project.out / "adapter" / "adapter_model.safetensors").exists()
    assert cloud.leftovers() == []


def test_machine_without_the_role_is_refused_and_goes_on_asking(
    cloud: Cloud, project: Project, hypervisor: LocalHypervisor
) -> None:
    """Its identity alone allows nothing: Azure says 403, the script says so and asks again."""
    cloud.world.may_assign = False
    up = project.qft("up", "--plain")
    assert up.returncode == 0, up.stderr
    assert "does NOT end the bill: self-release" in up.stderr
    (log,) = hypervisor.directory.glob(f"*/metal/{UNIT}.log")

    wait_until(lambda: log.read_text().count("403") >= 2)

    assert cloud.ledger.billing("compute") != []
