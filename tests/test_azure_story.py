"""The whole story on the simulated Azure: real CLI, SDKs, SSH, SFTP and trainer, and the bill."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from arm import Cloud, LocalHypervisor
from arm.market import SIZES
from arm.replies import Request
from support.runs import Project, json_of, make_project

from infra.run.journal import Kind

PACE = 30.0


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    """A cloud in which minutes take seconds, with machines that are real processes."""
    hypervisor = LocalHypervisor(tmp_path / "guests", pace=PACE)
    with (
        Cloud(pace=PACE, hypervisor=hypervisor, registered=False) as cloud,
        mock.patch.dict(os.environ, cloud.environment()),
    ):
        yield cloud


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A tiny project that rents from two regions and rehearses one eviction."""
    return make_project(
        tmp_path / "project",
        vm={
            "provider": "azure",
            "regions": ["eastus", "westus2"],
            "rehearse_evictions": [40],
        },
        budget={"hours": 20},  # an hour of the cloud takes two minutes, and its schedule strikes
        train={"steps": 350},
    )


class Fate(threading.Thread):
    """Fills the first region when a start there is asked for, and evicts once in the second."""

    def __init__(self, cloud: Cloud, hypervisor: Path) -> None:
        super().__init__(daemon=True)
        self.cloud = cloud
        self.hypervisor = hypervisor
        self.struck = False
        self.over = threading.Event()

    def fill(self, request: Request, done: bool) -> None:  # noqa: FBT001  (the server's call)
        """Let no machine of the first region start again."""
        if not done and request.method == "POST" and request.path.endswith("/start"):
            for size in SIZES:
                self.cloud.market.sold_out[size, "eastus"] = "AllocationFailed"

    def run(self) -> None:
        """Watch until it can evict, without notice."""
        while not (self.struck or self.over.wait(0.1)):
            for vm in self.cloud.machines():
                if vm.location == "westus2" and self.step(vm.name) > 150:
                    self.struck = True
                    self.cloud.evict(vm, notice_s=0)

    def step(self, name: str) -> int:
        """How far the trainer on a machine is."""
        for status in (self.hypervisor / name / "disk").glob("qft/*/run/status.json"):
            return int(json.loads(status.read_text()).get("step") or 0)
        return 0


def test_run_survives_two_evictions_and_a_full_region(
    cloud: Cloud, project: Project, tmp_path: Path
) -> None:
    """Evicted with notice, refused, moved, evicted without notice: the adapter comes home.

    At the end nothing exists and nothing bills, one machine at a time was ever there, and the
    receipt's cost is what the cloud's own ledger says.
    """
    fate = Fate(cloud, tmp_path / "guests")
    cloud.server.watcher = fate.fill
    fate.start()
    began = time.monotonic()

    try:
        done = project.qft("run", "--json", timeout_s=850)
    finally:
        fate.over.set()
        fate.join()

    output = f"{done.stderr[-3000:]}\nafter {time.monotonic() - began:.0f} s"
    assert done.returncode == 0, output
    receipt = json_of(done)
    kinds = [event.kind for event in project.events()]
    assert fate.struck
    assert kinds.count(Kind.STOP_SEEN) == 2
    assert receipt["evictions"] == 2  # the second without notice, before the log tells of it
    assert kinds.count(Kind.START_FAILED) >= 1
    assert [id_.rpartition("/")[2][-1] for id_ in cloud.world.machines_made] == ["1", "2"]
    assert (project.out / "adapter" / "adapter_model.safetensors").exists()
    assert cloud.leftovers() == []
    assert cloud.ledger.billing() == []
    assert project.processes() == []
    spent = cloud.ledger.usd() / PACE
    assert receipt["usd"] == pytest.approx(spent, rel=0.6)
    assert receipt["planned"]["card"] == "T4"
    assert receipt["planned"]["usd"]["compute"]["likely"] > 0
    assert set(receipt["actual"]["usd"]) == {"compute", "disk"}
    secrets = [*cloud.login.tokens, cloud.login.client_secret]
    kept = "".join(
        path.read_text(errors="replace")
        for path in sorted(project.home.rglob("*.json*"))
        if path.is_file() and "keys" not in path.parts
    )
    assert [one for one in secrets if one in kept + done.stdout + done.stderr] == []
    assert "PRIVATE KEY" not in kept + done.stdout + done.stderr
