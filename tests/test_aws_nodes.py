"""Several machines of one run on EC2: one network, one group, and each removed by itself."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ec2 import alarms, schedules
from ec2.contract import Patient, add_rehearsals
from ec2.harness import T4, AwsHarness, aws, spec
from ec2.iam import add_role
from support.contract import Harness, openssh_keys
from support.nodes_contract import NodesContract

from infra.aws.permissions import rent_policy, role_policy, safeguards_policy, trust_policy
from infra.aws.provider import AwsProvider
from infra.aws.settings import SCHEDULE_ROLE
from infra.errors import NoCapacity, OverQuota
from infra.offer import Want
from infra.provider import PowerState, Vm, VmSpec

ACCOUNT = "111122223333"
HOUR_S = 3600.0


class TestAwsNodes(NodesContract):
    """The suite that every provider passes whose runs can have several machines."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[Harness]:
        """An account of its own; whatever happened in it, its machines are closed to strangers."""
        with aws(tmp_path) as harness:
            add_rehearsals(harness)
            yield Patient(harness)

            assert harness.foreign_rules() == []


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account of its own, in which no rule admits a stranger when the test is over."""
    with aws(tmp_path / "here") as harness:
        yield harness

        assert harness.foreign_rules() == []


KEYS = [openssh_keys()[1] for _ in range(4)]


def node(number: int, **changes: Any) -> VmSpec:
    """A request for one of three machines, each with a host key of its own."""
    return spec(**{"node": number, "nodes": 3, "host_public_key": KEYS[number], **changes})


def create(harness: AwsHarness, *numbers: int, **changes: Any) -> list[Vm]:
    """Some machines of the run, each made by a provider of its own."""
    return [harness.provider().create(node(number, **changes)) for number in numbers]


def bodies(harness: AwsHarness, *operations: str) -> list[dict[str, Any]]:
    """The parameters of these calls so far, without the ids that EC2 gave to what they name."""
    found = [dict(one.parameters) for name in operations for one in harness.cloud.calls(name)]
    for one in found:
        for card in one.get("NetworkInterfaces", []):
            card.pop("Groups")
        one.pop("GroupId", None)
    return found


def test_node_0_is_requested_like_the_only_machine_of_a_run(tmp_path: Path) -> None:
    """Its group, its tags, its token and its order are the same, one rule is added to them."""
    made = []
    for count in (1, 3):
        with aws(tmp_path / str(count)) as harness:
            harness.provider().create(node(0, nodes=count))
            names = ("CreateSecurityGroup", "RunInstances")
            made.append(bodies(harness, *names))
            rules = bodies(harness, "AuthorizeSecurityGroupIngress")
            made.append(rules[:1])
            assert len(rules) == (1 if count == 1 else 2)
            assert harness.foreign_rules() == []

    assert made[0] == made[2]
    assert made[1] == made[3]


def test_every_node_joins_the_subnet_and_the_group_of_node_0(harness: AwsHarness) -> None:
    """Whatever zone a request names; of its own it has disk, spot request, tags and token."""
    (first,) = create(harness, 0)
    others = create(harness, 1, 2, zone="us-east-1b")

    machines = harness.cloud.machines()
    world = harness.cloud.world
    assert {one.zone for one in (first, *others)} == {first.zone}
    assert len({one.subnet_id for one in machines}) == 1
    assert len({tuple(one.group_ids) for one in machines}) == 1
    assert len({one.request_id for one in machines}) == 3
    assert len({one.volume_id for one in machines}) == 3
    assert len({one.parameters["ClientToken"] for one in machines}) == 3
    assert [one.tags.get("qft-node") for one in machines] == [None, "1", "2"]
    for store in (world.requests, world.volumes, world.interfaces):
        assert [one.tags.get("qft-node") for one in store.values()] == [None, "1", "2"]
    (group,) = [one for one in world.groups.values() if one.name != "default"]
    assert "qft-node" not in group.tags
    subnet = ipaddress.ip_network(world.subnets[machines[0].subnet_id].cidr)
    for vm in (first, *others):
        assert ipaddress.ip_address(vm.private_host) in subnet


def test_one_rule_lets_mates_in_and_is_added_once(harness: AwsHarness) -> None:
    """Created again, started, looked at from elsewhere: the group keeps SSH and that rule."""
    create(harness, 0, 1, 2)
    vm = create(harness, 0, 1, 2)[2]
    harness.provider().deallocate(vm)
    harness.advance(120)

    harness.provider().start(vm)

    (group,) = [one for one in harness.cloud.world.groups.values() if one.name != "default"]
    assert harness.shared_rules() == [group.name]
    assert len(group.ingress) == 2


def test_a_run_with_one_machine_opens_nothing_to_mates(harness: AwsHarness) -> None:
    """It has no such rule, and no private address that anybody would use."""
    vm = harness.provider().create(spec())

    assert harness.shared_rules() == []
    assert (vm.private_host, harness.provider().observe(vm).private_host) == ("", "")
    assert [one.private_host for one in harness.provider().list_all()] == [""]


def test_a_run_that_grows_is_opened_to_mates(harness: AwsHarness) -> None:
    """A machine of the third generation that was made alone is joined in its own group."""
    first = harness.provider().create(spec(generation=3))

    (second,) = create(harness, 1)

    machines = harness.cloud.machines()
    assert machines[0].group_ids == machines[1].group_ids
    assert harness.shared_rules() == ["qft-run-a-3"]
    again = harness.provider().create(spec(generation=3, nodes=3))
    assert (again.id, again.node) == (first.id, 0)
    found = {harness.provider().observe(one).private_host for one in (again, second)}
    assert found == {one.private_ip for one in machines}


def test_a_node_that_exists_gets_the_rule_before_it_has_mates(harness: AwsHarness) -> None:
    """Asked for as one of several, the only machine is found, and its group opened."""
    harness.provider().create(spec())

    vm = harness.provider().create(spec(nodes=3))

    assert harness.shared_rules() == ["qft-run-a-1"]
    assert vm.private_host == harness.cloud.machines()[0].private_ip


def test_other_computers_learn_all_of_several_machines(harness: AwsHarness, tmp_path: Path) -> None:
    """From tags alone: the node, the key and the private address of each."""
    made = create(harness, 0, 1, 2)
    elsewhere = harness.provider(state_dir=tmp_path / "elsewhere")

    listed = sorted(elsewhere.list_run("run-a"), key=lambda vm: vm.node)

    assert [vm.id for vm in listed] == [vm.id for vm in made]
    assert [vm.host_public_key for vm in listed] == KEYS[:3]
    assert [vm.private_host for vm in listed] == [vm.private_host for vm in made]
    seen = [elsewhere.observe(vm) for vm in listed]
    assert [one.private_host for one in seen] == [vm.private_host for vm in made]


def test_a_private_address_costs_no_request(harness: AwsHarness) -> None:
    """A look at a node that runs is the one request that a look at a single machine is."""
    (vm,) = create(harness, 1)
    provider = harness.provider()
    provider.observe(vm)
    before = len(harness.cloud.requests)

    assert provider.observe(vm).private_host

    assert [one.operation for one in harness.cloud.requests[before:]] == ["DescribeInstances"]


# ---- a node that cannot be had ----


def left_of(harness: AwsHarness, number: int) -> list[str]:
    """What there is of a node beside terminated instances and closed requests."""
    world = harness.cloud.world
    rows = [*harness.cloud.machines(), *harness.cloud.spot_requests(), *world.volumes.values()]
    return [one.id for one in rows if one.tags.get("qft-node", "0") == str(number)]


def test_a_zone_with_room_for_two_refuses_the_third(harness: AwsHarness) -> None:
    """Two of three machines go on; of the third nothing is left, and later it joins them."""
    harness.cloud.market.limit("us-east-1a", 2)
    made = create(harness, 0, 1)

    with pytest.raises(NoCapacity):
        create(harness, 2)

    assert left_of(harness, 2) == []
    assert [harness.provider().observe(vm).power for vm in made] == [PowerState.RUNNING] * 2
    harness.cloud.market.empty("us-east-1a")
    create(harness, 2)
    assert len({tuple(one.group_ids) for one in harness.cloud.machines()}) == 1
    assert harness.shared_rules() == ["qft-run-a-1"]


def test_a_quota_that_is_used_up_refuses_the_third(harness: AwsHarness) -> None:
    """The refusal names the quota; the mates and what they share stay."""
    harness.cloud.market.spot_vcpus = 8
    made = create(harness, 0, 1)

    with pytest.raises(OverQuota, match="leaves 0 of 4 vCPUs"):
        create(harness, 2)

    assert left_of(harness, 2) == []
    assert {vm.id for vm in harness.provider().list_run("run-a")} == {vm.id for vm in made}
    assert harness.shared_rules() == ["qft-run-a-1"]


def test_a_first_node_without_room_keeps_the_group_of_its_mates(harness: AwsHarness) -> None:
    """Others may be about to use it; it is free, and the end of the run removes it."""
    harness.set_capacity("us-east-1", free=False)
    for number in range(3):
        with pytest.raises(NoCapacity):
            create(harness, number)

    assert harness.shared_rules() == ["qft-run-a-1"]
    create(harness, 0, 1, 2, region="us-west-2", zone="us-west-2a")
    harness.provider().delete("run-a")
    assert harness.cloud.leftovers() == []


def test_a_request_that_one_node_left_open_is_its_own(harness: AwsHarness) -> None:
    """Mates were made in the same second and zone: what is cancelled is none of theirs."""
    harness.cloud.world.leaves_requests = True
    made = create(harness, 0, 1)
    harness.cloud.market.limit("us-east-1a", 2)
    with pytest.raises(NoCapacity):
        create(harness, 2)
    harness.advance(30)

    harness.provider().cancel_refused("run-a")

    live = {one.tags.get("qft-node", "0") for one in harness.cloud.spot_requests()}
    assert live == {"0", "1"}
    assert [harness.provider().observe(vm).power for vm in made] == [PowerState.RUNNING] * 2


@pytest.mark.parametrize(
    ("vcpus", "blocked"),
    [
        (12, ""),
        (11, "the spot quota of us-east-1 admits 2 of 3 machines: it leaves 11 of 12 vCPUs needed"),
        (0, "the spot quota of us-east-1 admits 0 of 3 machines: it leaves 0 of 12 vCPUs needed"),
    ],
)
def test_an_offer_is_blocked_unless_its_quota_covers_all_machines(
    harness: AwsHarness, vcpus: int, blocked: str
) -> None:
    """An offer is blocked where fewer machines fit than the run needs, and says how many do."""
    harness.cloud.market.spot_vcpus = vcpus

    found = harness.provider().offers(Want(gpu="T4", nodes=3, regions=["us-east-1"]))

    offers = [one for one in found if one.size == T4 and one.zone == "us-east-1a"]
    assert [one.blocked_by.partition(" (")[0] for one in offers] == [blocked]
    assert [one.quota_left for one in offers] == [vcpus // 4]
    checks = {one.name: one for one in harness.provider().checks(Want(gpu="T4", nodes=3))}
    quota = checks["spot quota in us-east-1"]
    assert (quota.ok, "3 × g4dn.xlarge need 12" in quota.detail) == (not blocked, True)


# ---- the end of one machine, and of all ----


def with_safeguards(harness: AwsHarness) -> None:
    """Give the account the role of EventBridge Scheduler."""
    role = role_policy(ACCOUNT)
    add_role(harness.cloud.world, SCHEDULE_ROLE, trust=trust_policy(ACCOUNT), policy=role)


def schedule_names(harness: AwsHarness) -> list[str]:
    """The schedules that exist, by their names alone."""
    return sorted(one.rpartition("/")[2] for one in schedules.names(harness.cloud.world))


def test_each_node_has_schedules_that_go_with_it(harness: AwsHarness) -> None:
    """Their names say which node they end, and node 0's are those of a single machine."""
    with_safeguards(harness)
    made = create(harness, 0, 1, 2, until_s=harness.now() + 5 * HOUR_S)
    names = ["qft-run-a.1.stop", "qft-run-a.n1.1.stop", "qft-run-a.n2.1.stop"]
    assert schedule_names(harness) == names

    for gone in (1, 0):
        removed = harness.provider().remove(made[gone])
        assert [one.id.rpartition("/")[2] for one in removed if "schedule" in one.kind] == [
            names[gone]
        ]

    assert schedule_names(harness) == names[2:]
    harness.provider().delete("run-a")
    assert harness.cloud.leftovers() == []


def test_each_node_has_an_alarm_where_nothing_can_be_scheduled(harness: AwsHarness) -> None:
    """One alarm for each machine, and removing one leaves those of its mates."""
    made = create(harness, 0, 1, until_s=harness.now() + 5 * HOUR_S)

    harness.provider().remove(made[0])

    (name,) = alarms.names(harness.cloud.world)
    assert name.rpartition(":")[2] == "qft-run-a.n1.1.limit"


def test_a_removed_node_leaves_no_disk_and_no_request(harness: AwsHarness) -> None:
    """Its instance, its spot request and its volume go; a second removal finds nothing."""
    made = create(harness, 0, 1, 2)

    removed = harness.provider().remove(made[1])

    kinds = sorted(one.kind for one in removed)
    assert kinds == ["disk", "spot request", "virtual machine"]
    assert left_of(harness, 1) == []
    assert all(left_of(harness, one) for one in (0, 2))
    assert harness.provider().remove(made[1]) == []
    assert harness.shared_rules() == ["qft-run-a-1"]


def test_a_machine_that_was_replaced_cannot_take_its_successor_along(harness: AwsHarness) -> None:
    """Removing generation 1 of a node again leaves generation 2 of it alone."""
    made = create(harness, 0, 1)
    harness.provider().remove(made[1])
    (second,) = create(harness, 1, generation=2)

    assert harness.provider().remove(made[1]) == []

    assert harness.provider().observe(second).power is PowerState.RUNNING
    assert len(harness.provider().list_run("run-a")) == 2


@pytest.mark.parametrize("from_elsewhere", [False, True])
def test_a_deleted_run_says_when_each_machine_ceased_to_bill(
    harness: AwsHarness, tmp_path: Path, *, from_elsewhere: bool
) -> None:
    """One that was stopped hours ago has not billed since; records of no node stay."""
    made = create(harness, 0, 1, 2)
    harness.provider().deallocate(made[1])
    harness.advance(5 * HOUR_S)
    where = tmp_path / "elsewhere" if from_elsewhere else None

    removed = harness.provider(state_dir=where).delete("run-a")

    ends = {one.id: one.billed_until for one in removed if one.kind == "virtual machine"}
    assert set(ends) == {vm.id for vm in made}
    assert ends[made[1].id] < min(ends[made[0].id], ends[made[2].id])
    assert harness.cloud.leftovers() == []
    assert harness.cloud.ledger.billing() == []
    if not from_elsewhere:
        assert list(harness.state_dir.glob("run-a*.json")) == []


def test_a_run_that_moved_leaves_no_group_behind(harness: AwsHarness) -> None:
    """Removed one by one and made again in another region, it is deleted in both."""
    for vm in create(harness, 0, 1):
        harness.provider().remove(vm)
    assert harness.shared_rules() == ["qft-run-a-1"]
    create(harness, 0, 1, generation=2, region="us-west-2", zone="us-west-2a")

    harness.provider().delete("run-a")

    assert harness.cloud.leftovers() == []


def test_a_group_without_machines_is_one_remnant_of_its_run(harness: AwsHarness) -> None:
    """Its machines are gone, each of them, and what they shared is listed once."""
    made = create(harness, 0, 1)
    for vm in made:
        harness.provider().remove(vm)

    (left,) = harness.provider().list_run("run-a")

    assert (left.power, left.node, left.idle_usd_per_h) == (PowerState.REMNANTS, 0, 0.0)
    assert [harness.provider().observe(vm).power for vm in made] == [PowerState.GONE] * 2


def test_the_printed_policies_are_enough_for_several_machines(harness: AwsHarness) -> None:
    """Made, opened to each other, stopped, started, removed: with the rights of a single one."""
    with_safeguards(harness)
    harness.cloud.world.policies = [rent_policy(), safeguards_policy(ACCOUNT)]

    made = create(harness, 0, 1, 2, until_s=harness.now() + 5 * HOUR_S)
    harness.provider().deallocate(made[1])
    harness.advance(120)
    harness.provider().start(made[1])
    harness.provider().remove(made[2])
    harness.provider().delete("run-a")

    assert harness.cloud.leftovers() == []


def test_times_of_one_node_are_not_those_of_another(harness: AwsHarness) -> None:
    """A release is on record for the node that was released, whose bill ended then."""
    made = create(harness, 0, 1)
    provider: AwsProvider = harness.provider()

    provider.deallocate(made[1])

    assert provider.billed_until_s(made[0]) is None
    assert provider.billed_until_s(made[1]) is not None
    assert provider.observe(made[0]).power is PowerState.RUNNING
