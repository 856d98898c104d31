"""The real command line, killed with SIGKILL at chosen requests, by the cloud it talks to.

pytest -m chaos tests/test_azure_chaos.py                        20 kills, evenly spread
QFT_CHAOS_KILLS=all pytest -m chaos tests/test_azure_chaos.py    all of them, for an hour
QFT_CHAOS_KILLS=6 pytest -m chaos tests/test_azure_chaos.py      fewer
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from arm import Cloud, LocalHypervisor
from arm.replies import Request
from support.runs import Project, json_of, make_project

PACE = 60.0


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    """A quick cloud."""
    hypervisor = LocalHypervisor(tmp_path / "guests", pace=PACE)
    with (
        Cloud(pace=PACE, hypervisor=hypervisor) as cloud,
        mock.patch.dict(os.environ, cloud.environment()),
    ):
        yield cloud


def spread(first: int, step: int, *, share: float) -> list[tuple[int, bool]]:
    """Before or after which requests to kill: some of `first`, `first + step`, ... up to 100.

    `share` is this test's part of `QFT_CHAOS_KILLS`, 20 if unset; `all` is every one.
    """
    every = [(at, answered) for at in range(first, 100, step) for answered in (False, True)]
    wanted = os.environ.get("QFT_CHAOS_KILLS", "20")
    count = len(every) if wanted == "all" else min(max(round(int(wanted) * share), 1), len(every))
    return [every[index * len(every) // count] for index in range(count)]


class Killer:
    """Sends SIGKILL to a process at its request number `at` to Resource Manager."""

    def __init__(self, process: subprocess.Popen[str], *, at: int, answered: bool) -> None:
        self.process = process
        self.at = at
        self.answered = answered
        self.lock = threading.Lock()
        self.seen = 0
        self.struck = ""

    def __call__(self, request: Request, done: bool) -> None:  # noqa: FBT001  (the server's call)
        """Count, and strike."""
        if not request.path.lower().startswith("/subscriptions/"):
            return
        with self.lock:
            self.seen += not done
            if self.seen == self.at and done is self.answered and not self.struck:
                self.struck = f"{request.method} {request.path}"
                self.process.send_signal(signal.SIGKILL)
                self.process.wait()


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("at", "answered"), spread(1, 3, share=0.65))
def test_killed_up_is_cleared_up_from_another_computer(
    cloud: Cloud, tmp_path: Path, at: int, *, answered: bool
) -> None:
    """`qft up`, killed around a request, then `qft down --all --delete` where nothing is known."""
    here = make_project(
        tmp_path / "project", vm={"provider": "azure", "regions": ["eastus"]}, budget={"hours": 20}
    )
    process = here.start("up", "--plain")
    killer = Killer(process, at=at, answered=answered)
    cloud.server.watcher = killer
    process.communicate(timeout=600)
    cloud.server.watcher = None
    there = Project(folder=here.folder, name=here.name)
    if (there.home / "runs").exists():
        (there.home / "runs").rename(tmp_path / "lost")
    if (there.home / "azure").exists():
        (there.home / "azure").rename(tmp_path / "lost too")

    down = there.qft("down", "--all", "--delete", "--json")

    assert down.returncode == 0, f"{killer.struck}\n{down.stderr}"
    assert json_of(there.qft("ls", "--all", "--json")) == [], killer.struck
    assert len(cloud.world.machines_made) <= 1
    assert cloud.leftovers() == [], killer.struck
    assert cloud.ledger.billing() == []


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("at", "answered"), spread(2, 6, share=0.35))
def test_killed_run_is_finished_by_the_same_command(
    cloud: Cloud, tmp_path: Path, at: int, *, answered: bool
) -> None:
    """`qft run`, killed around a request, then `qft run`: the adapter is home, nothing bills."""
    project = make_project(
        tmp_path / "project",
        vm={"provider": "azure", "regions": ["eastus"]},
        budget={"hours": 20},
        train={"steps": 60},
    )
    process = project.start("run", "--plain")
    killer = Killer(process, at=at, answered=answered)
    cloud.server.watcher = killer
    process.communicate(timeout=600)
    cloud.server.watcher = None

    done = project.qft("run", "--json", timeout_s=200)

    assert done.returncode == 0, f"{killer.struck}\n{done.stderr}"
    assert (project.out / "adapter" / "adapter_model.safetensors").exists()
    assert len(cloud.world.machines_made) == 1
    assert cloud.leftovers() == []
    assert cloud.ledger.billing() == []
