"""What the simulated EC2 puts on the bill: by the second, and nothing after the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ec2.harness import A10G, AwsHarness, aws
from ec2.steps import Ec2User

USD_PER_H = 0.36216
"""The price of g5.xlarge in us-east-1a."""


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account with a computer."""
    with aws(tmp_path) as made:
        yield made


@pytest.fixture
def user(harness: AwsHarness) -> Ec2User:
    """Somebody who rents machines in it."""
    return Ec2User(harness)


def run_for(harness: AwsHarness, user: Ec2User, seconds: float) -> str:
    """A machine that ran so many seconds and is stopping."""
    made = user.run()
    harness.advance(9 + seconds)
    user.call("stop_instances", InstanceIds=[made])
    return made


@pytest.mark.parametrize(("ran_s", "billed_s"), [(1, 60), (60, 60), (61.5, 62), (5000, 5000)])
def test_compute_is_by_the_second_and_a_minute_at_least(
    harness: AwsHarness, user: Ec2User, ran_s: float, billed_s: float
) -> None:
    """Compute bills from `running` to `stopping`, in whole seconds, 60 of them at least."""
    run_for(harness, user, ran_s)
    harness.advance(1000)

    expected = billed_s / 3600 * USD_PER_H
    assert harness.cloud.ledger.usd("compute") == pytest.approx(expected, rel=1e-9)


def test_each_start_bills_its_own_minute(harness: AwsHarness, user: Ec2User) -> None:
    """Two starts of some seconds cost two minutes."""
    made = run_for(harness, user, 5)
    harness.advance(101)
    user.call("start_instances", InstanceIds=[made])
    harness.advance(9 + 5)
    user.call("stop_instances", InstanceIds=[made])

    expected = 120 / 3600 * USD_PER_H
    assert harness.cloud.ledger.usd("compute") == pytest.approx(expected, rel=1e-9)


def test_disk_and_address_bill_as_long_as_they_are_there(
    harness: AwsHarness, user: Ec2User
) -> None:
    """The disk bills until it is deleted, the address only while the machine runs."""
    made = run_for(harness, user, 3600)
    harness.advance(3600 - 9)
    ledger = harness.cloud.ledger
    disk = 75 * 0.08 / 730

    assert ledger.usd("disk") == pytest.approx(2 * disk)
    assert ledger.usd("address") == pytest.approx(0.005)
    user.cancel(made)
    user.call("terminate_instances", InstanceIds=[made])
    harness.advance(100)
    total = ledger.usd()
    harness.advance(86400)
    assert ledger.usd() == total


def test_a_disk_that_stays_bills_on(harness: AwsHarness, user: Ec2User) -> None:
    """A disk that does not go with its machine is left available, billing, until deleted."""
    mapping = [{"DeviceName": "/dev/sda1", "Ebs": {"DeleteOnTermination": False}}]
    made = user.running(BlockDeviceMappings=mapping)
    user.cancel(made)
    user.call("terminate_instances", InstanceIds=[made])
    harness.advance(60)
    (volume,) = user.call("describe_volumes")["Volumes"]
    billing = harness.cloud.ledger.billing()
    user.call("delete_volume", VolumeId=volume["VolumeId"])

    assert volume["State"] == "available"
    assert billing == [f"disk {volume['VolumeId']}"]
    assert harness.cloud.ledger.billing() == []


@pytest.mark.parametrize(("ran_s", "free"), [(3000, True), (4000, False)])
def test_the_first_hour_is_free_if_ec2_interrupts_it(
    harness: AwsHarness, user: Ec2User, ran_s: float, *, free: bool
) -> None:
    """A machine that EC2 takes away within an hour of its launch has cost no compute."""
    user.run()
    harness.advance(9 + ran_s)
    harness.cloud.interrupt(harness.cloud.machines()[0], notice_s=0)
    harness.advance(1)

    expected = 0 if free else ran_s / 3600 * USD_PER_H
    assert harness.cloud.ledger.usd("compute") == pytest.approx(expected)


def test_who_stops_after_the_notice_pays(harness: AwsHarness, user: Ec2User) -> None:
    """A machine that its user stops during the notice is billed, and is not an interruption."""
    made = user.run()
    harness.advance(9 + 600)
    harness.cloud.interrupt(harness.cloud.machines()[0])
    user.call("stop_instances", InstanceIds=[made])
    harness.advance(300)

    assert harness.cloud.ledger.usd("compute") == pytest.approx(600 / 3600 * USD_PER_H)
    assert user.look(made)["StateReason"]["Code"] == "Client.UserInitiatedShutdown"


def test_a_machine_on_demand_costs_its_list_price(harness: AwsHarness, user: Ec2User) -> None:
    """A machine without a spot request bills the on-demand price, in any zone with room."""
    harness.cloud.market.on_demand_vcpus = 4
    harness.cloud.market.fill("us-east-1a")
    body = user.body()
    del body["InstanceMarketOptions"], body["SubnetId"]
    body["TagSpecifications"] = body["TagSpecifications"][:3]
    made = user.call("run_instances", **body)["Instances"][0]
    harness.advance(9 + 3600)

    assert made["Placement"]["AvailabilityZone"] == "us-east-1b"
    assert "SpotInstanceRequestId" not in made
    assert harness.cloud.ledger.usd("compute") == pytest.approx(1.006)


def test_the_market_price_is_paid_and_not_the_cap(harness: AwsHarness, user: Ec2User) -> None:
    """A price that moves below the cap is what the machine costs from then on."""
    user.run()
    harness.advance(9 + 3600)
    harness.cloud.set_price(A10G, "us-east-1a", 0.5)
    harness.advance(3600)

    assert harness.cloud.ledger.usd("compute") == pytest.approx(USD_PER_H + 0.5)
