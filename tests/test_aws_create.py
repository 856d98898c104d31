"""A create on EC2 ends with one machine as asked for, or with nothing that bills."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ec2.cloud import Ec2Cloud
from ec2.furnishing import add_images, add_network
from ec2.harness import HOST_PRIVATE, AwsHarness, aws, spec

from infra.aws.errors import NoDefaultVpcError
from infra.errors import (
    BadRequest,
    NoCapacity,
    NotAllowed,
    OverQuota,
    PriceAboveCap,
    ProviderError,
    Rejected,
    SignedOut,
)
from infra.offer import Want
from infra.provider import PowerState


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account with room for every machine of the test."""
    with aws(tmp_path / "here") as harness:
        yield harness


def run_records(harness: AwsHarness) -> list[Path]:
    """The records of runs, without what is shared by all."""
    return sorted(harness.state_dir.glob("run-*.json"))


def check_nothing_is_left(harness: AwsHarness) -> None:
    """Nothing bills, nothing can come back, and no record of a run stays."""
    assert harness.cloud.leftovers() == []
    assert harness.cloud.ledger.billing() == []
    assert run_records(harness) == []


def blocked(harness: AwsHarness, zone: str) -> str:
    """Why the T4 in a zone cannot be rented now; empty if it can."""
    offers = harness.provider().offers(Want(gpu="T4", regions=[zone[:-1]]))
    return next(one.blocked_by for one in offers if one.zone == zone and one.size == "g4dn.xlarge")


def test_machine_is_made_as_requested(harness: AwsHarness) -> None:
    """Persistent, stopped by an interruption, under the cap, in its zone, with an end."""
    until_s = harness.now() + 3600

    vm = harness.provider().create(spec(until_s=until_s))

    (machine,), (request,) = harness.cloud.machines(), harness.cloud.spot_requests()
    assert (vm.power, vm.zone, vm.host) == (PowerState.RUNNING, "us-east-1a", machine.public_ip)
    assert (vm.metadata_api, vm.note) == ("aws", "")
    assert (request.type, request.behavior, request.cap) == ("persistent", "stop", 0.30)
    assert request.valid_until_s == pytest.approx(until_s + 3600, abs=1)


def test_only_this_computer_reaches_the_machine(harness: AwsHarness) -> None:
    """One group in the machine's network lets the caller's address through to port 22."""
    harness.provider().create(spec())

    (machine,) = harness.cloud.machines()
    (group_id,) = machine.group_ids
    group = harness.cloud.world.groups[group_id]
    assert (group.name, group.vpc_id) == ("qft-run-a-1", machine.vpc_id)
    (answer,) = (
        harness.provider()
        .context.clients.call(
            "ec2", "us-east-1", "describe_security_groups", doing="look", GroupIds=[group_id]
        )
        .get("SecurityGroups", [])
    )
    (rule,) = answer["IpPermissions"]
    assert (rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) == ("tcp", 22, 22)
    assert [one["CidrIp"] for one in rule["IpRanges"]] == ["203.0.113.7/32"]


def test_everything_that_is_made_carries_our_tag(harness: AwsHarness) -> None:
    """Machine, request, disk, interface and group are found by the run with every file lost."""
    harness.provider().create(spec())

    world = harness.cloud.world
    groups = [one for one in world.groups.values() if one.name != "default"]
    for some in (
        world.instances.values(),
        world.requests.values(),
        world.volumes.values(),
        world.interfaces.values(),
        groups,
    ):
        assert [one.tags["qft-run"] for one in some] == ["run-a"]


def test_host_key_does_not_stay_on_this_computer(harness: AwsHarness) -> None:
    """The exact request holds the throwaway host key; it goes when EC2 has answered."""
    harness.provider().create(spec())

    (record,) = run_records(harness)
    assert HOST_PRIVATE.splitlines()[1] not in record.read_text()
    assert stat.S_IMODE(record.stat().st_mode) == 0o600


def test_image_is_the_one_that_aws_publishes(harness: AwsHarness) -> None:
    """The deep-learning base image of the region, and Ubuntu where that was chosen."""
    world = harness.cloud.world
    names = {}
    for image in ("", "ubuntu"):
        harness.changes = {"image": image}
        harness.provider().create(spec())
        (machine,) = harness.cloud.machines()
        names[image] = world.images[machine.image_id].name
        harness.provider().delete("run-a")

    assert names[""].startswith("Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04)")
    assert names["ubuntu"].startswith("ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64")


def test_image_is_found_without_the_right_to_read_parameters(harness: AwsHarness) -> None:
    """Where Systems Manager may not be asked, the newest image of AWS's own account is taken."""
    add_images(harness.cloud.world, "us-east-1", "24.04", date="20261106")
    harness.cloud.deny("ssm:GetParameter")

    harness.provider().create(spec())

    (machine,) = harness.cloud.machines()
    assert harness.cloud.world.images[machine.image_id].name.endswith("20261106")


def test_image_that_the_region_lacks_is_an_error(harness: AwsHarness) -> None:
    """An id of another region stops the run before anything is made, with the setting to change."""
    harness.changes = {"image": "ami-0123456789abcdef0"}

    with pytest.raises(NotAllowed, match="ami-0123456789abcdef0") as caught:
        harness.provider().create(spec())

    assert "vm.aws.image" in caught.value.hint
    assert harness.cloud.calls("RunInstances") == []
    check_nothing_is_left(harness)


def test_disk_is_made_as_big_as_the_image_needs(harness: AwsHarness) -> None:
    """A disk of 30 GB becomes one of 75, at its price, and the note says so."""
    vm = harness.provider().create(spec(disk_gb=30))

    (volume,) = harness.cloud.world.volumes.values()
    assert volume.size_gb == 75
    assert "75 GB instead of 30" in vm.note
    assert vm.idle_usd_per_h == pytest.approx(75 * 0.08 / 730, abs=1e-6)


# ---- networks that cannot serve ----


def test_region_without_a_default_network_is_an_error(tmp_path: Path) -> None:
    """The command that makes one is the hint, and nothing was made."""
    with (
        aws(tmp_path / "here", default_vpc=False) as harness,
        pytest.raises(NoDefaultVpcError, match="us-east-1 has no default VPC") as caught,
    ):
        harness.provider().create(spec())

    assert "aws ec2 create-default-vpc --region us-east-1" in caught.value.hint


def test_network_without_a_way_in_is_an_error_before_renting(harness: AwsHarness) -> None:
    """A subnet whose routes lead to no internet gateway would only be waited for in vain."""
    for table in harness.cloud.world.tables.values():
        table.gateway_id = ""

    with pytest.raises(NotAllowed, match="no internet gateway") as caught:
        harness.provider().create(spec())

    assert "aws ec2 create-route --region us-east-1" in caught.value.hint
    assert harness.cloud.calls("RunInstances") == []
    check_nothing_is_left(harness)


def test_subnet_of_the_users_choice_is_taken(tmp_path: Path) -> None:
    """An account without default networks rents in the subnet that `vm.aws.subnet` names."""
    with aws(tmp_path / "here", default_vpc=False) as harness:
        vpc = add_network(harness.cloud.world, "us-east-1")
        subnets = [one for one in harness.cloud.world.subnets.values() if one.vpc_id == vpc.id]
        harness.changes = {"subnet": subnets[1].id}

        vm = harness.provider().create(spec(zone=subnets[1].zone))

        (machine,) = harness.cloud.machines()
        assert (vm.zone, machine.subnet_id) == (subnets[1].zone, subnets[1].id)
        assert vm.host
        for elsewhere in (subnets[0].zone, "us-west-2a"):
            with pytest.raises(Rejected, match=subnets[1].id):
                harness.provider().create(spec(run_id="run-b", zone=elsewhere))


# ---- refusals ----


QUOTA = ("us-east-1", "L-3819A6DF")
DEATH = ("Server.InsufficientInstanceCapacity", "There is no capacity")
BAD_KEY = ("Client.InternalError", "Client error on launch")
Twist = Callable[[Ec2Cloud], object]
REFUSALS: list[tuple[str, Twist, type[ProviderError]]] = [
    ("no capacity", lambda cloud: cloud.market.fill("us-east-1a"), NoCapacity),
    ("price", lambda cloud: cloud.set_price("g4dn.xlarge", "us-east-1a", 0.5), PriceAboveCap),
    ("quota", lambda cloud: cloud.market.quotas.update({QUOTA: 0.0}), OverQuota),
    ("no right", lambda cloud: cloud.deny("ec2:RunInstances"), NotAllowed),
    ("no service role", lambda cloud: cloud.forget_spot_role(), NotAllowed),
    ("new account", lambda cloud: setattr(cloud.world, "pending_verification", True), NotAllowed),
    ("dies", lambda cloud: setattr(cloud.world, "pending_death", DEATH), NoCapacity),
    ("bad key", lambda cloud: setattr(cloud.world, "pending_death", BAD_KEY), NotAllowed),
]


@pytest.mark.parametrize(
    ("twist", "error"), [one[1:] for one in REFUSALS], ids=[r[0] for r in REFUSALS]
)
def test_refused_create_leaves_nothing(
    harness: AwsHarness, twist: Twist, error: type[ProviderError]
) -> None:
    """Whatever refuses the machine, also if EC2 leaves the request open, nothing stays."""
    harness.cloud.world.leaves_requests = True
    twist(harness.cloud)

    with pytest.raises(error) as caught:
        harness.provider().create(spec())

    harness.provider().cancel_refused("run-a")

    assert type(caught.value) is error
    assert not caught.value.unfinished
    check_nothing_is_left(harness)
    harness.cloud.market.empty("us-east-1a")
    harness.cloud.set_price("g4dn.xlarge", "us-east-1a", 0.1)
    harness.advance(3600)
    check_nothing_is_left(harness)
    assert harness.cloud.machines() == []


def test_lack_of_capacity_blocks_its_zone_for_three_minutes(harness: AwsHarness) -> None:
    """The other zones of the region stay free to ask, and the same one is asked again soon."""
    harness.cloud.market.fill("us-east-1a")
    with pytest.raises(NoCapacity):
        harness.provider().create(spec())

    during = {zone: blocked(harness, zone) for zone in ("us-east-1a", "us-east-1b")}
    harness.advance(181)

    assert "capacity" in during["us-east-1a"]
    assert during["us-east-1b"] == ""
    assert blocked(harness, "us-east-1a") == ""


def test_zone_that_does_not_sell_the_size_blocks_only_itself(harness: AwsHarness) -> None:
    """`Unsupported` is no reason to leave a region."""
    with pytest.raises(NoCapacity, match="does not rent out"):
        harness.provider().create(spec(zone="us-east-1e"))

    assert harness.provider().create(spec(zone="us-east-1b")).zone == "us-east-1b"
    assert len(harness.cloud.machines()) == 1


def test_price_above_the_cap_names_the_price(harness: AwsHarness) -> None:
    """The price of now comes with the refusal, from EC2's own sentence."""
    harness.cloud.set_price("g4dn.xlarge", "us-east-1a", 0.4321)

    with pytest.raises(PriceAboveCap) as caught:
        harness.provider().create(spec())

    assert caught.value.current_usd_per_h == pytest.approx(0.4321)


def test_quota_is_named_in_vcpus_with_its_page(harness: AwsHarness) -> None:
    """EC2 names neither the limit nor the page; both come with the refusal."""
    harness.cloud.market.quotas["us-east-1", "L-3819A6DF"] = 0.0

    with pytest.raises(OverQuota) as caught:
        harness.provider().create(spec())

    words = str(caught.value)
    assert "0 of 4 vCPUs" in words
    assert "us-east-1.console.aws.amazon.com/servicequotas" in words
    assert caught.value.limit == 0


def test_clean_up_that_fails_is_reported_with_the_refusal(harness: AwsHarness) -> None:
    """What could not be removed is said, together with the command that removes it."""
    harness.cloud.deny("ec2:DeleteSecurityGroup")
    harness.cloud.market.fill("us-east-1a")

    with pytest.raises(NoCapacity) as caught:
        harness.provider().create(spec())

    assert caught.value.unfinished
    assert "qft down --delete" in caught.value.hint
    harness.cloud.allow("ec2:DeleteSecurityGroup")
    harness.provider().delete("run-a")
    check_nothing_is_left(harness)


# ---- what EC2 made ----


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda cloud: setattr(only_request(cloud), "behavior", "terminate"), "loses the disk"),
        (lambda cloud: setattr(only_request(cloud), "type", "one-time"), "one-time"),
        (lambda cloud: setattr(only_request(cloud), "cap", 0.526), "price cap"),
        (lambda cloud: setattr(cloud.machines()[0], "size", "g4dn.2xlarge"), "g4dn.2xlarge"),
    ],
    ids=["behaviour", "type", "cap", "size"],
)
def test_machine_that_was_not_requested_is_removed(
    harness: AwsHarness, monkeypatch: pytest.MonkeyPatch, change: Twist, words: str
) -> None:
    """A policy of the organisation may rewrite what was asked; what would cost more goes."""
    whenever(harness, monkeypatch, change)

    with pytest.raises(BadRequest, match=words):
        harness.provider().create(spec())

    check_nothing_is_left(harness)


def only_request(cloud: Ec2Cloud) -> Any:
    """The spot request of the only machine."""
    (request,) = cloud.spot_requests()
    return request


def whenever(harness: AwsHarness, monkeypatch: pytest.MonkeyPatch, change: Twist) -> None:
    """Change what was made as soon as EC2 has made it."""
    launch = harness.cloud.world.launch

    def changed(instance: Any) -> None:
        launch(instance)
        change(harness.cloud)

    monkeypatch.setattr(harness.cloud.world, "launch", changed)


# ---- creates again ----


def test_changed_cap_means_another_machine(harness: AwsHarness) -> None:
    """No call changes the cap of a request: the machine is removed, and made anew under the new."""
    first = harness.provider().create(spec())

    second = harness.provider().create(spec(max_price_usd_per_h=0.4))

    assert second.id != first.id
    (request,) = harness.cloud.spot_requests()
    assert request.cap == 0.4
    assert len(harness.cloud.machines()) == 1


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_dead_machine_is_followed_by_another_under_the_next_token(
    harness: AwsHarness, tmp_path: Path, where: str
) -> None:
    """A token is spent with its machine; a machine terminated by hand is replaced once."""
    harness.provider().create(spec())
    (dead,) = harness.cloud.machines()
    harness.cloud.terminate_behind(dead)
    harness.advance(50)

    vm = harness.provider(state_dir=tmp_path / where).create(spec())

    (machine,) = harness.cloud.machines()
    assert vm.id.endswith(machine.id)
    assert machine.id != dead.id
    assert machine.tags["qft-run"] == "run-a"
    assert len(harness.cloud.spot_requests()) == 1


def test_machine_that_ec2_launched_again_is_replaced(harness: AwsHarness) -> None:
    """The untagged machine of a live request has an empty disk: it is removed, and one rented."""
    harness.provider().create(spec())
    harness.cloud.terminate_behind(harness.cloud.machines()[0])
    harness.advance(200)
    (other,) = harness.cloud.machines()
    assert other.tags == {}

    vm = harness.provider().create(spec())

    (machine,) = harness.cloud.machines()
    assert vm.id.endswith(machine.id)
    assert machine.id != other.id


def test_run_with_a_running_machine_of_another_generation_gets_that(harness: AwsHarness) -> None:
    """A second machine is never made beside one that runs."""
    harness.provider().create(spec())

    vm = harness.provider().create(spec(generation=2))

    assert vm.generation == 1
    assert len(harness.cloud.machines()) == 1


def test_stopped_machine_of_an_earlier_generation_makes_room(harness: AwsHarness) -> None:
    """What does not run of an earlier generation is removed before the next one is made."""
    first = harness.provider().create(spec())
    harness.provider().deallocate(first)

    vm = harness.provider().create(spec(generation=2))

    assert vm.generation == 2
    assert len(harness.cloud.machines()) == 1


def test_group_of_somebody_else_is_left_alone(harness: AwsHarness) -> None:
    """A security group of our name without our tag stops the run, and stays."""
    clients = harness.provider().context.clients
    clients.call(
        "ec2",
        "us-east-1",
        "create_security_group",
        doing="make a group",
        GroupName="qft-run-a-1",
        Description="mine",
    )

    with pytest.raises(NotAllowed, match="does not carry our tag"):
        harness.provider().create(spec())

    assert len(harness.cloud.leftovers()) == 1


def test_expired_sign_in_leaves_what_is_half_made(harness: AwsHarness) -> None:
    """Whoever signs in again goes on with the same machine."""
    harness.cloud.expire_credentials()
    with pytest.raises(SignedOut):
        harness.provider().create(spec())
    harness.cloud.renew_credentials()

    vm = harness.provider().create(spec())

    assert vm.power is PowerState.RUNNING
    assert len(harness.cloud.world.machines_made) == 1


@pytest.mark.parametrize("zone", ["us-east-1b", "us-west-2a"])
def test_machine_elsewhere_is_the_machine_of_the_run(harness: AwsHarness, zone: str) -> None:
    """An offer of another place does not make a second machine beside the one that runs."""
    first = harness.provider().create(spec())

    second = harness.provider().create(spec(zone=zone))

    assert (second.id, second.zone) == (first.id, "us-east-1a")
    assert len(harness.cloud.world.machines_made) == 1
