"""Listing what an account has on a simulated EC2: every region, machines and what is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from arm.disruptions import Disruption, DisruptionKind
from arm.replies import Reply
from ec2.harness import AwsHarness, aws, spec
from ec2.killing import KilledError, Killer
from support.aws_machines import instance_of, provider_of, rent, stopped

from infra.aws.naming import MachineId
from infra.aws.provider import AwsProvider
from infra.errors import NotAllowed, SignedOut, Transient
from infra.provider import PowerState
from infra.renting.run_record import RunRecord


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account with a computer."""
    with aws(tmp_path) as made:
        made.changes = {"polling_s": 20.0}
        yield made


@pytest.fixture
def other(harness: AwsHarness) -> AwsProvider:
    """Another computer of the same account, which has no record of anything."""
    return harness.provider(state_dir=harness.state_dir / "other")


def close_region(harness: AwsHarness, region: str) -> None:
    """Have an organisation's policy refuse every call in a region."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error>'
        "<Code>UnauthorizedOperation</Code><Message>You are not authorized to perform this"
        " operation with an explicit deny in a service control policy</Message></Error></Errors>"
        "<RequestID>1</RequestID></Response>"
    )
    reply = Reply(status=403, body=body)
    harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.ANSWER, path=f"/ec2/{region}/", times=99, reply=reply)
    )


def test_machines_of_all_regions_are_listed_newest_first(
    harness: AwsHarness, other: AwsProvider
) -> None:
    """Another computer sees each machine, wherever it is, with all that is needed to reach it."""
    first = rent(harness, "run-a")
    harness.advance(60)
    second = stopped(harness, "run-b", zone="us-west-2a")

    found = other.list_all()

    assert [(one.id, one.power) for one in found] == [
        (second.id, PowerState.DEALLOCATED),
        (first.id, PowerState.RUNNING),
    ]
    assert [(one.run_id, one.region, one.zone, one.size) for one in found] == [
        ("run-b", "us-west-2", "us-west-2a", "g4dn.xlarge"),
        ("run-a", "us-east-1", "us-east-1a", "g4dn.xlarge"),
    ]
    assert found[1].host == instance_of(harness, first).public_ip
    assert found[1].host_public_key == first.host_public_key
    assert (found[1].metadata_api, found[1].idle_usd_per_h) == ("aws", first.idle_usd_per_h)


def test_a_region_without_anything_costs_one_request(harness: AwsHarness) -> None:
    """Where nothing of ours is, one request says so; regions that are not enabled are not asked."""
    provider = provider_of(harness)

    assert provider.list_all() == []

    ours = [one for one in harness.cloud.requests if one.service == "ec2"]
    regions = [one.region for one in ours if one.operation != "DescribeRegions"]
    assert len(regions) == len(set(regions)) == 17
    assert "ap-east-1" not in regions
    harness.cloud.requests.clear()
    harness.cloud.world.opted_in.add("ap-east-1")
    provider.list_all()
    assert "ap-east-1" in {one.region for one in harness.cloud.requests}


def test_what_is_left_of_a_run_is_listed_with_its_price(
    harness: AwsHarness, other: AwsProvider
) -> None:
    """A disk that outlived its machine bills: it is listed as remnants, at its price."""
    vm = rent(harness)
    for volume in harness.cloud.world.volumes.values():
        volume.goes_with_instance = False
    harness.cloud.world.relaunches = False
    harness.cloud.terminate_behind(instance_of(harness, vm))
    harness.advance(120)

    (found,) = other.list_all()

    assert (found.run_id, found.power) == (vm.run_id, PowerState.REMNANTS)
    assert found.id == "111122223333/us-east-1/"
    assert found.idle_usd_per_h == pytest.approx(128 * 0.08 / 730, abs=1e-6)
    assert other.observe(found).power is PowerState.REMNANTS


def test_a_group_alone_is_remnants_that_cost_nothing(
    harness: AwsHarness, other: AwsProvider
) -> None:
    """A security group that was left is listed, since it is ours, and free."""
    counter = Killer()
    harness.provider(killer=counter).create(spec())
    provider_of(harness).delete("run-a")
    at = counter.sent.index("ec2.CreateSecurityGroup") + 1
    with pytest.raises(KilledError):
        harness.provider(killer=Killer(at=at, answered=True)).create(spec(run_id="run-b"))

    (found,) = other.list_all()

    assert (found.run_id, found.power) == ("run-b", PowerState.REMNANTS)
    assert found.idle_usd_per_h == 0


def test_a_machine_that_ec2_launched_by_itself_is_listed(
    harness: AwsHarness, other: AwsProvider
) -> None:
    """A relaunched machine lacks our tags and bills: its request says whose it is."""
    vm = rent(harness)
    harness.cloud.terminate_behind(instance_of(harness, vm))
    harness.advance(180)
    (made,) = harness.cloud.machines()

    (found,) = other.list_all()

    id_ = MachineId.parse(found.id)
    assert id_ is not None
    assert (found.run_id, id_.instance, found.power) == (vm.run_id, made.id, PowerState.RUNNING)


def test_what_lists_do_not_show_yet_is_looked_up(harness: AwsHarness) -> None:
    """A machine that this computer made is listed although lists by tag lost it."""
    vm = rent(harness)
    machine = instance_of(harness, vm)
    machine.tags.clear()
    request = harness.cloud.world.request_of(machine)
    assert request is not None
    request.tags.clear()
    for one in (*harness.cloud.world.volumes.values(), *harness.cloud.world.groups.values()):
        one.tags.clear()
    for card in harness.cloud.world.interfaces.values():
        card.tags.clear()

    (found,) = provider_of(harness).list_all()

    assert (found.id, found.power) == (vm.id, PowerState.RUNNING)


def test_a_closed_region_hides_no_other(harness: AwsHarness) -> None:
    """A region that an organisation closes is left out, since nothing could be rented there."""
    vm = rent(harness)
    close_region(harness, "us-west-2")

    assert [one.id for one in provider_of(harness).list_all()] == [vm.id]


def test_a_closed_region_with_a_machine_on_record_is_an_error(harness: AwsHarness) -> None:
    """Where this computer has a machine, a refusal must not be read as "nothing there"."""
    rent(harness, zone="us-west-2a")
    close_region(harness, "us-west-2")

    with pytest.raises(NotAllowed, match="us-west-2"):
        provider_of(harness).list_all()


def test_a_record_of_another_account_is_not_looked_for(harness: AwsHarness) -> None:
    """What this computer has under another profile says nothing of the account signed in."""
    record = RunRecord.load(harness.state_dir, "run-z")
    record.ids = {"account": "444455556666", "region": "ap-east-1", "instance": "i-1"}
    record.save()

    assert provider_of(harness).list_all() == []

    assert "ap-east-1" not in {one.region for one in harness.cloud.requests}


def test_without_the_right_to_tags_each_kind_is_listed(harness: AwsHarness) -> None:
    """A policy without `DescribeTags` costs requests, and shows the same."""
    vm = rent(harness)
    harness.cloud.deny("ec2:DescribeTags")

    assert [one.id for one in provider_of(harness).list_all()] == [vm.id]


def test_nothing_readable_is_an_error_not_an_empty_list(harness: AwsHarness) -> None:
    """An account that may look nowhere is told so: an empty list would mean "nothing bills"."""
    harness.cloud.deny("ec2:DescribeTags", "ec2:DescribeInstances", "ec2:DescribeSpot*")

    with pytest.raises(NotAllowed):
        provider_of(harness).list_all()


def test_an_expired_session_is_signed_out(harness: AwsHarness) -> None:
    """Nobody signed in lists nothing, and says so."""
    provider = provider_of(harness)
    provider.list_all()
    harness.cloud.expire_credentials()

    with pytest.raises(SignedOut):
        provider.list_all()


def test_a_region_that_does_not_answer_is_transient(harness: AwsHarness) -> None:
    """One silent region is no reason to say that nothing is there: the list is asked again."""
    provider = provider_of(harness)
    harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.DROP_BEFORE, path="/ec2/sa-east-1/", times=3)
    )

    with pytest.raises(Transient):
        provider.list_all()

    assert provider.list_all() == []
