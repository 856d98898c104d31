"""A create on EC2 ends with one machine as asked for, or with nothing that bills."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from ec2.harness import HOST_PRIVATE, AwsHarness, aws, spec

from infra.provider import PowerState


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account with room for every machine of the test."""
    with aws(tmp_path / "here") as harness:
        yield harness


def records(harness: AwsHarness) -> list[Path]:
    """The files that a computer keeps of its runs."""
    return [one for one in harness.state_dir.glob("*.json") if one.name != "refusals.json"]


def check_nothing_is_left(harness: AwsHarness) -> None:
    """Nothing bills, nothing can come back, and nobody remembers anything."""
    assert harness.cloud.leftovers() == []
    assert harness.cloud.ledger.billing() == []
    assert records(harness) == []


def test_machine_is_made_as_asked_for(harness: AwsHarness) -> None:
    """Persistent, stopped by an interruption, under the cap, in the zone, reachable by us only."""
    vm = harness.provider().create(spec(until_s=harness.now() + 3600))

    (machine,), (request,) = harness.cloud.machines(), harness.cloud.spot_requests()
    assert (vm.power, vm.zone, vm.host) == (PowerState.RUNNING, "us-east-1a", machine.public_ip)
    assert vm.metadata_api == "aws"
    assert (request.type, request.behavior, request.cap) == ("persistent", "stop", 0.30)
    assert request.valid_until_s == pytest.approx(harness.now() + 7200, abs=30)
    (group,) = [one for one in harness.cloud.world.groups.values() if one.name != "default"]
    assert group.name == "qft-run-a-1"


def test_every_kind_of_thing_carries_our_tag(harness: AwsHarness) -> None:
    """Machine, request, disk, interface and group are found by the run with every file lost."""
    harness.provider().create(spec())

    world = harness.cloud.world
    for store in (world.instances, world.requests, world.volumes, world.interfaces):
        assert [one.tags["qft-run"] for one in store.values()] == ["run-a"]


def test_host_key_does_not_stay_on_this_computer(harness: AwsHarness) -> None:
    """The exact request holds the throwaway host key; it goes when EC2 has answered."""
    harness.provider().create(spec())

    (record,) = records(harness)
    assert HOST_PRIVATE.splitlines()[1] not in record.read_text()
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
