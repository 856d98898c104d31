"""A spot request that a refused create left open is cancelled, and the next zone is asked at once.

EC2 shows such a request only after seconds, and launches a machine from it when its zone has room.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSPreparedRequest
from ec2.harness import AwsHarness, aws, spec
from ec2.killing import KilledError, Killer
from support.fakecloud import FakeCloud, Story

from infra.aws.refused_requests import SHOWN_S
from infra.errors import NoCapacity, PriceAboveCap
from infra.provider import PowerState
from infra.run.journal import Outcome
from infra.run.plan import Policy

FULL, FREE = "us-east-1a", "us-east-1b"


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account in which refused creates leave their requests open, and one zone is full."""
    with aws(tmp_path / "here") as harness:
        harness.cloud.world.leaves_requests = True
        harness.cloud.market.fill(FULL)
        yield harness


def refuse(harness: AwsHarness, *, zone: str = FULL, generation: int = 1) -> None:
    """Ask for a machine where there is no room."""
    with pytest.raises(NoCapacity):
        harness.provider().create(spec(zone=zone, generation=generation))


class KillerAtOrder(Killer):
    """Dies around the answer to the order of a machine, or before the request after it."""

    def _before_send(self, request: AWSPreparedRequest, event_name: str, **more: Any) -> None:
        if event_name.endswith("RunInstances"):
            self.at = len(self.sent) + (1 if self.answered else 2)
        super()._before_send(request, event_name, **more)


def open_requests(harness: AwsHarness) -> list[str]:
    """The zones of requests that may launch a machine later."""
    return [one.zone for one in harness.cloud.spot_requests() if one.state == "open"]


def running(harness: AwsHarness) -> list[str]:
    """The zones of the machines that bill."""
    return [one.zone for one in harness.cloud.machines() if one.state in {"pending", "running"}]


def records(harness: AwsHarness) -> list[str]:
    """What is on record here of runs."""
    return [one.name for one in harness.state_dir.glob("run-*.json")]


def test_a_full_region_is_left_within_seconds(harness: AwsHarness) -> None:
    """Five zones refuse one after the other without a pause, then another region is free."""
    harness.set_capacity("us-east-1", free=False)
    began_s = harness.now()

    for generation, zone in enumerate("abcdf", start=1):
        refuse(harness, zone=f"us-east-1{zone}", generation=generation)

    assert harness.now() - began_s == 0
    harness.provider().create(spec(zone="us-west-2a", generation=6))
    assert running(harness) == ["us-west-2a"]


def test_what_is_shown_later_is_cancelled_by_a_later_look(harness: AwsHarness) -> None:
    """The run's own machine stays, and no other comes when the full zone has room again."""
    refuse(harness)
    vm = harness.provider().create(spec(zone=FREE, generation=2))
    assert open_requests(harness) == [FULL]

    harness.advance(SHOWN_S)
    seen = harness.provider().observe(vm)

    harness.cloud.market.empty(FULL)
    harness.advance(3600)
    assert seen.power is PowerState.RUNNING
    assert (open_requests(harness), running(harness)) == ([], [FREE])
    before = len(harness.cloud.calls("DescribeSpotInstanceRequests"))
    harness.provider().observe(vm)
    assert len(harness.cloud.calls("DescribeSpotInstanceRequests")) == before


def test_a_machine_that_was_launched_late_is_terminated(harness: AwsHarness) -> None:
    """The zone has room before anybody looks again: what came of the old request goes."""
    refuse(harness)
    vm = harness.provider().create(spec(zone=FREE))  # the same host key as the one refused
    harness.cloud.market.empty(FULL)
    harness.advance(3600)
    assert sorted(running(harness)) == [FULL, FREE]

    assert harness.provider().observe(vm).power is PowerState.RUNNING

    harness.advance(3600)
    assert (open_requests(harness), running(harness)) == ([], [FREE])


@pytest.mark.parametrize(
    ("looks_again", "answered"), [("create", True), ("delete", False), ("end", True)]
)
def test_a_kill_around_the_refusal_loses_nothing(
    harness: AwsHarness, looks_again: str, *, answered: bool
) -> None:
    """Killed before the refusal is seen, or before the request after it: the next call cancels."""
    killer = KillerAtOrder(answered=answered)
    with pytest.raises(KilledError):
        harness.provider(killer=killer).create(spec())
    assert killer.sent[-1 if answered else -2] == "ec2.RunInstances"
    harness.advance(60)

    if looks_again == "delete":
        harness.provider().delete("run-a")
    elif looks_again == "create":
        harness.provider().create(spec(zone=FREE))
        harness.provider().cancel_refused("run-a")
    else:
        refuse(harness)
        harness.provider().cancel_refused("run-a")

    harness.cloud.market.empty(FULL)
    harness.advance(3600)
    assert open_requests(harness) == []
    assert running(harness) == ([FREE] if looks_again == "create" else [])


def test_a_create_that_is_repeated_keeps_its_machine(harness: AwsHarness) -> None:
    """As soon as the old request is shown, it is cancelled, and the machine beside it is used."""
    refuse(harness)
    vm = harness.provider().create(spec(zone=FREE))
    harness.advance(SHOWN_S / 2 + 1)  # shown by now, and not yet sure to be

    again = harness.provider().create(spec(zone=FREE))

    assert again.id == vm.id
    assert open_requests(harness) == []


def test_delete_waits_until_everything_is_shown(harness: AwsHarness) -> None:
    """It proves that nothing is left, in every region that refused a machine just now."""
    harness.set_capacity("us-west-2", free=False)
    refuse(harness, zone="us-west-2a")
    refuse(harness, generation=2)

    removed = harness.provider().delete("run-a")

    assert [one.kind for one in removed].count("spot request") == 2
    assert (harness.cloud.leftovers(), records(harness)) == ([], [])


def test_nothing_is_kept_once_everything_was_looked_at(harness: AwsHarness) -> None:
    """At the end of a run without a machine its record goes with the last open request."""
    refuse(harness)

    harness.provider().cancel_refused("run-a")

    assert (harness.cloud.leftovers(), records(harness)) == ([], [])


def test_a_machine_of_another_computer_is_left_alone(harness: AwsHarness, tmp_path: Path) -> None:
    """Only requests of creates that were refused here are cancelled, whatever the run has else."""
    refuse(harness)
    there = harness.provider(state_dir=tmp_path / "there")
    vm = there.create(spec(zone=FREE))
    harness.advance(SHOWN_S)

    harness.provider().cancel_refused("run-a")

    harness.advance(3600)
    assert (open_requests(harness), running(harness)) == ([], [FREE])
    assert there.observe(vm).power is PowerState.RUNNING


def test_a_refusal_that_ends_the_run_is_looked_at_before_it_is_raised(harness: AwsHarness) -> None:
    """Where no other offer is tried, nobody would look again."""
    harness.cloud.deny("ec2:RunInstances")
    began_s = harness.now()

    with pytest.raises(Exception, match="RunInstances"):
        harness.provider().create(spec())

    assert harness.now() - began_s >= SHOWN_S
    assert records(harness) == []


def test_a_price_that_is_too_high_leaves_nothing_either(harness: AwsHarness) -> None:
    """The case that AWS documents: the request remains open, and would launch when it is cheaper.

    The next create of the run, minutes later at the same place, finds a clean region.
    """
    harness.cloud.set_price("g4dn.xlarge", FREE, 0.5)
    with pytest.raises(PriceAboveCap):
        harness.provider().create(spec(zone=FREE))
    harness.cloud.set_price("g4dn.xlarge", FREE, 0.1)
    harness.advance(180)

    vm = harness.provider().create(spec(zone=FREE, generation=2))

    harness.advance(3600)
    (machine,) = [one for one in harness.cloud.machines() if one.state == "running"]
    assert (vm.id.endswith(machine.id), open_requests(harness)) == (True, [])


def test_a_run_that_ends_refused_has_its_requests_cancelled(tmp_path: Path) -> None:
    """Nobody calls for it again: the end of the run does."""
    cancelled: list[str] = []

    class Cloud(FakeCloud):
        def cancel_refused(self, run_id: str) -> None:
            cancelled.append(run_id)

    story = Story(path=tmp_path / "journal.jsonl", policy=Policy(machineless_max_s=60))
    story.cloud = Cloud(world=story.world, full={"a", "b"})

    assert story.go().outcome is Outcome.CLOUD_REFUSED
    assert cancelled == ["run-1"]
