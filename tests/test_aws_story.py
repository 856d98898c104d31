"""The whole story on the simulated AWS: real CLI, botocore, SSH, SFTP and trainer, and the bill."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from ec2.cloud import Ec2Cloud
from ec2.guests import Ec2Guests
from ec2.regions import REGIONS
from ec2.resources import Instance
from ec2.state import SECRET_KEY
from support.runs import Project, json_of, make_project, wait_until

from infra.offer import Offer
from infra.run.journal import Kind

PACE = 30.0


@pytest.fixture
def guests(tmp_path: Path) -> Ec2Guests:
    """Room for machines that are real processes."""
    return Ec2Guests(tmp_path / "guests", pace=PACE)


@pytest.fixture
def cloud(guests: Ec2Guests) -> Iterator[Ec2Cloud]:
    """An AWS in which minutes take seconds."""
    with (
        Ec2Cloud(pace=PACE, hypervisor=guests) as cloud,
        mock.patch.dict(os.environ, cloud.environment()),
    ):
        yield cloud


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A tiny project that rents from two regions."""
    return make_project(
        tmp_path / "project",
        vm={"provider": "aws", "regions": ["us-east-1", "us-west-2"], "max_price": 0.5},
        budget={"hours": 20},
        train={"steps": 220},
    )


def step(guests: Ec2Guests, machine: Instance) -> int:
    """How far the trainer on a machine is."""
    for status in (guests.directory / machine.id / "disk").glob("qft/*/run/status.json"):
        return int(json.loads(status.read_text()).get("step") or 0)
    return 0


def trained(cloud: Ec2Cloud, guests: Ec2Guests, *, region: str, steps: int) -> Instance:
    """The machine of a region, as soon as it has trained so far."""
    found: list[Instance] = []

    def far_enough() -> bool:
        found[:] = [
            one
            for one in cloud.machines()
            if one.region == region and one.state == "running" and step(guests, one) >= steps
        ]
        return bool(found)

    wait_until(far_enough)
    return found[0]


def rented(project: Project) -> list[Offer]:
    """What the run has rented or asked for."""
    events = [one for one in project.events() if one.kind is Kind.CREATE_INTENDED]
    return [Offer.from_json(one.data["offer"]) for one in events]


@pytest.mark.slow
def test_run_survives_interruptions_a_full_region_and_its_own_death(
    cloud: Ec2Cloud, guests: Ec2Guests, project: Project
) -> None:
    """Interrupted with notice, refused, moved; qft killed, interrupted, restarted by EC2, resumed.

    The same command takes over the machine that EC2 has started by itself. The adapter comes home,
    nothing exists and nothing bills at the end, and the receipt covers the ledger.
    """
    began_s = time.monotonic()
    killed = project.start("run", "--plain")
    first = trained(cloud, guests, region="us-east-1", steps=60)
    for zone in REGIONS[first.region].zones:
        cloud.market.fill(zone)
    cloud.interrupt(first, notice_s=120.0)
    second = trained(cloud, guests, region="us-west-2", steps=120)
    killed.kill()
    killed.communicate()
    cloud.interrupt(second, notice_s=0.0)
    wait_until(lambda: bool(cloud.machines()) and second.launches == 2)

    done = project.qft("run", "--json")
    used_s = time.monotonic() - began_s

    assert done.returncode == 0, done.stderr[-3000:]
    receipt, kinds = json_of(done), project.kinds()
    assert (receipt["evictions"], kinds.count(Kind.STOP_SEEN)) == (2, 2)
    assert Kind.START_FAILED in kinds
    assert [one for one in project.events() if one.data.get("crash")] == []
    # Every other zone that sells the size, which us-east-1e does not.
    assert kinds.count(Kind.CREATE_FAILED) == len(REGIONS[first.region].zones) - 2
    assert cloud.world.machines_made == [first.id, second.id]
    assert (project.out / "adapter" / "adapter_model.safetensors").exists()
    assert cloud.leftovers() == []
    assert cloud.ledger.billing() == []
    assert project.processes() == []
    kept = "".join(
        path.read_text(errors="replace")
        for path in sorted(project.home.rglob("*.json*"))
        if path.is_file() and "keys" not in path.parts
    )
    assert [one for one in ("PRIVATE KEY", SECRET_KEY) if one in kept + done.stderr] == []
    # Nobody watched the second interruption: that its first hour was free, EC2 alone knows.
    billed_usd = cloud.ledger.usd() / PACE
    whole_usd = max(one.running_usd_per_h for one in rented(project)) * used_s / 3600
    assert billed_usd * 0.4 <= receipt["usd"] <= whole_usd
