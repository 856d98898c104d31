"""What the simulated EC2 promises about machines and their spot requests, asked by botocore."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ec2.harness import AwsHarness, aws
from ec2.steps import Ec2User

from infra.aws.errors import NotYetVisibleError


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account with a computer."""
    with aws(tmp_path) as made:
        yield made


@pytest.fixture
def user(harness: AwsHarness) -> Ec2User:
    """Somebody who rents machines in it."""
    return Ec2User(harness)


def test_a_machine_runs_and_bills_until_it_is_terminated(
    harness: AwsHarness, user: Ec2User
) -> None:
    """A launched machine is pending, then runs with an address, and bills nothing when gone."""
    made = user.run()
    with pytest.raises(NotYetVisibleError):
        user.look(made)
    harness.advance(5)
    assert user.state(made) == "pending"
    harness.advance(5)
    shown = user.look(made)

    assert shown["State"]["Name"] == "running"
    assert shown["PublicIpAddress"].startswith("127.0.")
    assert shown["InstanceLifecycle"] == "spot"
    assert user.request(made) == ("active", "fulfilled")
    kinds = sorted(line.split()[0] for line in harness.cloud.ledger.billing())
    assert kinds == ["address", "compute", "disk"]

    user.cancel(made)
    assert user.state(made) == "running"
    user.call("terminate_instances", InstanceIds=[made])
    harness.advance(60)
    assert user.state(made) == "terminated"
    assert harness.cloud.ledger.billing() == []
    assert harness.cloud.leftovers() == []
