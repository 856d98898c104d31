"""Azure rents several machines for one run: one group, one network, one rule in its firewall."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from arm.contract import Patient
from arm.harness import T4, AzureHarness, azure, spec
from arm.killing import KilledError, MortalTransport
from support.contract import Harness
from support.nodes_contract import NodesContract

from infra.azure import AzureProvider
from infra.errors import BadRequest, NoCapacity, OverQuota, ProviderError
from infra.offer import Want
from infra.provider import PowerState, Vm, VmSpec
from infra.renting.run_record import RunRecord, records, records_of_nodes
from infra.timestamps import parse_utc_s

HOSTS = [f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHost{n}host qft" for n in range(9)]


class TestAzureNodes(NodesContract):
    """The suite that every provider passes whose runs can have several machines."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[Harness]:
        """A cloud of its own for each test."""
        with azure(tmp_path) as harness:
            yield Patient(harness)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AzureHarness]:
    """A cloud with room for every machine of the test."""
    with azure(tmp_path / "here") as harness:
        yield harness


def node(number: int, generation: int = 1, **changes: object) -> VmSpec:
    """A request for one of three machines."""
    base = spec(generation=generation, host_public_key=HOSTS[number], **changes)
    return replace(base, node=number, nodes=3)


def three(harness: AzureHarness) -> list[Vm]:
    """Three machines that run."""
    made = [harness.provider().create(node(number)) for number in range(3)]
    harness.advance(120)
    return made


def names(harness: AzureHarness, word: str = "") -> list[str]:
    """The names of all that exists, of what contains a word if one is given."""
    found = [id_.rpartition("/")[2] for id_ in harness.cloud.leftovers()]
    return [one for one in found if word in one]


def test_machines_share_one_network_and_have_the_rest_of_their_own(harness: AzureHarness) -> None:
    """Node 0 is called as the machine of a run with one; everything tells whose it is."""
    three(harness)

    assert names(harness, "nsg") == ["qft-run-a-1-nsg"]
    assert names(harness, "vnet") == ["qft-run-a-1-vnet"]
    machines = ["qft-run-a-1", "qft-run-a-node1-1", "qft-run-a-node2-1"]
    for end in ("", "-nic", "-ip", "-disk"):
        assert {f"{one}{end}" for one in machines} <= set(names(harness))
    tags = {
        one.name: one.tags.get("qft-node")
        for one in harness.cloud.world.resources.values()
        if not one.type.endswith("/disks")
    }
    assert {name: tag for name, tag in tags.items() if tag} == {
        f"qft-run-a-node{number}-1{end}": str(number)
        for number in (1, 2)
        for end in ("", "-nic", "-ip")
    }


def test_nobody_but_mates_reaches_a_port_of_the_group(harness: AzureHarness) -> None:
    """One rule admits SSH from here, whatever happens to the machines; mates reach every port."""
    made = three(harness)
    provider = harness.provider()
    provider.remove(made[0])
    again = provider.create(node(0, 2))
    provider.deallocate(made[1])
    harness.cloud.caller = "198.51.100.20"
    harness.provider(state_dir=harness.state_dir / "elsewhere").start(made[1])
    harness.advance(60)

    assert harness.inbound_rules() == [("198.51.100.20/32", "22")]
    for vm in (again, made[1], made[2]):
        assert harness.admits(vm, source="198.51.100.20", port=22)
        assert harness.admits(vm, source=made[2].private_host, port=29500)
        for source in ("198.51.100.20", "192.0.2.1", "10.0.0.9"):
            assert not harness.admits(vm, source=source, port=29500), source
        assert not harness.admits(vm, source="192.0.2.1", port=22)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("numbers", [(0, 1, 2), (2, 1)])
def test_machines_can_be_made_at_the_same_time(
    harness: AzureHarness, tmp_path: Path, numbers: tuple[int, ...], *, shared: bool
) -> None:
    """Threads with a provider each make one network, and lose none of each other's machines."""
    barrier = threading.Barrier(len(numbers))
    made: dict[int, Vm] = {}
    providers = {
        number: harness.provider(state_dir=None if shared else tmp_path / f"of-{number}")
        for number in numbers
    }

    def create(number: int) -> None:
        barrier.wait()
        made[number] = providers[number].create(node(number))

    threads = [threading.Thread(target=create, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    harness.advance(120)

    assert sorted(made) == sorted(numbers)
    assert len({vm.private_host for vm in made.values()} - {""}) == len(numbers)
    there = harness.provider(state_dir=tmp_path / "third").list_run("run-a")
    assert {vm.id for vm in there} == {vm.id for vm in made.values()}
    assert {vm.power for vm in there} == {PowerState.RUNNING}
    writes = [one.path.rpartition("/")[2] for one in harness.cloud.requests if one.method == "PUT"]
    assert writes.count("qft-run-a-1-nsg") == writes.count("qft-run-a-1-vnet") == 1


def no_room(harness: AzureHarness) -> None:
    """Let the region have room for the two machines that run."""
    harness.cloud.market.admits["eastus"] = 2


def sold_out(harness: AzureHarness) -> None:
    """Let Azure refuse the size at once."""
    harness.cloud.market.sold_out[T4.lower(), "eastus"] = "SkuNotAvailable"


def quota_used_up(harness: AzureHarness) -> None:
    """Let the quota be used up by the two machines that run."""
    harness.cloud.market.cores["eastus"] = 8


@pytest.mark.parametrize(
    ("refuse", "kind"), [(no_room, NoCapacity), (sold_out, NoCapacity), (quota_used_up, OverQuota)]
)
def test_refused_machine_leaves_nothing_of_its_own(
    harness: AzureHarness, refuse: object, kind: type[ProviderError]
) -> None:
    """A third machine that is refused is removed; group, network and mates stay as they were."""
    provider = harness.provider()
    made = [provider.create(node(number)) for number in range(2)]
    harness.advance(120)
    before, billing = names(harness), harness.cloud.ledger.billing()
    assert callable(refuse)
    refuse(harness)

    with pytest.raises(kind):
        harness.provider().create(node(2))

    assert (names(harness), harness.cloud.ledger.billing()) == (before, billing)
    assert [one.node for one in sorted(provider.list_all(), key=lambda vm: vm.node)] == [0, 1]
    assert [provider.observe(vm).power for vm in made] == [PowerState.RUNNING] * 2


def test_first_machine_that_is_refused_leaves_no_group(harness: AzureHarness) -> None:
    """Nobody else is in the group, so that another region can be tried with the same names."""
    sold_out(harness)
    with pytest.raises(NoCapacity):
        harness.provider().create(node(1))
    assert names(harness) == []

    vm = harness.provider().create(node(1, region="westus2"))

    assert (vm.region, vm.node) == ("westus2", 1)


def test_run_whose_machines_are_removed_can_move(harness: AzureHarness) -> None:
    """A network in which nobody is any more is no obstacle in another region."""
    provider = harness.provider()
    for vm in three(harness):
        provider.remove(vm)
    (left,) = provider.list_run("run-a")
    assert (left.power, harness.cloud.ledger.billing()) == (PowerState.REMNANTS, [])

    moved = [provider.create(node(number, 2, region="westus2")) for number in (1, 0)]

    assert {vm.region for vm in moved} == {"westus2"}
    assert len(provider.list_run("run-a")) == 2


def test_machine_of_another_region_is_refused(harness: AzureHarness) -> None:
    """It could not reach its mates; they, and what they share, are left alone."""
    three(harness)
    provider = harness.provider()
    before = names(harness)

    with pytest.raises(BadRequest, match="could not reach them"):
        provider.create(replace(node(3, region="westus2"), nodes=4))

    assert names(harness) == before


def test_removed_machine_takes_its_role_and_schedule_along(harness: AzureHarness) -> None:
    """Each machine has safeguards of its own, and a removal ends those of that machine only."""
    made = three(harness)
    until_s = harness.now() + 3600
    provider = harness.provider()
    for vm in made:
        found = provider.set_safeguards(vm, until_s=until_s)
        assert all(one.is_set for one in found), found

    removed = provider.remove(made[1])

    assert names(harness, "shutdown-") == [
        "shutdown-computevm-qft-run-a-1",
        "shutdown-computevm-qft-run-a-node2-1",
    ]
    scopes = {
        one["properties"]["scope"].rpartition("/")[2]
        for key, one in harness.cloud.world.roles.items()
        if key.startswith("roleassignments/")
    }
    assert scopes == {"qft-run-a-1", "qft-run-a-node2-1"}
    assert {one.kind for one in removed} == {
        *("auto-shutdown schedule", "virtual machine", "disk", "network card", "public IP"),
    }
    ended = [one.billed_until for one in removed if one.kind == "virtual machine"]
    assert (parse_utc_s(ended[0]) or 0.0) <= harness.now()


def test_orders_are_remembered_for_each_machine(harness: AzureHarness) -> None:
    """What one machine was told explains no other one's end."""
    made = three(harness)
    provider = harness.provider()
    provider.deallocate(made[1])
    harness.cloud.evict(harness.cloud.world.need(made[2].id))
    harness.advance(60)

    seen = [harness.provider().observe(vm) for vm in made]

    assert [one.power.value for one in seen] == ["running", "deallocated", "deallocated"]
    assert [str(one.stop_reason or "") for one in seen] == ["", "user", "evicted"]
    assert provider.billed_until_s(made[1]) is not None
    assert provider.billed_until_s(made[0]) is None
    assert provider.update_max_price(made[1], 0.3) == 0.3
    assert provider.update_max_price(made[0], 0.3) == 0.25


def test_quota_has_to_cover_all_machines(harness: AzureHarness) -> None:
    """An offer whose quota admits fewer machines says how many it admits."""
    harness.cloud.market.cores["eastus"] = 10
    want = Want(gpu="T4", gpu_count=1, nodes=3, regions=["eastus"])

    found = {one.size: one for one in harness.provider().offers(want)}

    assert "admits 2 of the 3 machines" in found[T4].blocked_by
    assert found[T4].quota_left == 2
    enough = harness.provider().offers(replace(want, nodes=2))
    assert not {one.size: one for one in enough}[T4].blocked_by
    checks = {one.name: one for one in harness.provider().checks(want)}
    assert not checks["spot quota in eastus"].ok
    assert checks["rights"].ok


def test_machines_are_found_and_removed_without_the_tags_of_the_group(
    harness: AzureHarness, tmp_path: Path
) -> None:
    """The tags of the machines are enough to list and to delete all of them from elsewhere."""
    three(harness)
    harness.cloud.world.groups["qft-run-a"].tags.clear()
    there = harness.provider(state_dir=tmp_path / "elsewhere")

    assert sorted(vm.node for vm in there.list_all()) == [0, 1, 2]
    there.delete("run-a")

    assert harness.cloud.ledger.billing() == []
    assert harness.cloud.machines() == []


def kill(harness: AzureHarness, at: int, *, answered: bool) -> AzureProvider:
    """A provider that dies around its request of that number."""
    transport = MortalTransport(harness.settings(), harness.advance, at=at, answered=answered)
    return harness.provider(transport=transport)


def test_create_of_a_mate_goes_on_after_a_kill_at_every_request(
    harness: AzureHarness, tmp_path: Path
) -> None:
    """Killed anywhere, then called again, here or elsewhere, it ends with one machine more."""
    provider = harness.provider()
    first = provider.create(node(0))
    transport = MortalTransport(harness.settings(), harness.advance)
    provider.remove(harness.provider(transport=transport).create(node(1)))
    before = names(harness)
    for at in range(1, len(transport.sent) + 1):
        wanted, answered = node(1, at + 1), at % 2 == 0
        with pytest.raises(KilledError):
            kill(harness, at, answered=answered).create(wanted)
        there = harness.provider(state_dir=tmp_path / f"{at}" if at % 3 else None)

        vm = there.create(wanted)

        context = f"killed around {transport.sent[at - 1]}"
        assert len(harness.cloud.machines()) == 2, context
        assert vm.private_host, context
        harness.provider().remove(vm)
        assert names(harness) == before, context
    assert provider.observe(first).power is PowerState.RUNNING


def test_removal_of_a_mate_goes_on_after_a_kill_at_every_request(harness: AzureHarness) -> None:
    """Killed anywhere, then called again, it leaves the mate, and tells what there was."""
    provider = harness.provider()
    first = provider.create(node(0))
    transport = MortalTransport(harness.settings(), harness.advance)
    harness.provider(transport=transport).remove(provider.create(node(1)))
    before = names(harness)
    for at in range(1, len(transport.sent) + 1):
        vm = provider.create(node(1, at + 1))
        with pytest.raises(KilledError):
            kill(harness, at, answered=at % 2 == 0).remove(vm)

        removed = harness.provider().remove(vm)

        context = f"killed around {transport.sent[at - 1]}"
        assert names(harness) == before, context
        assert "virtual machine" in {one.kind for one in removed} or at > 5, context
        assert [one.node for one in provider.list_run("run-a")] == [0], context
    assert provider.observe(first).power is PowerState.RUNNING


def test_records_of_one_machine_keep_each_other_s_changes(tmp_path: Path) -> None:
    """Two who hold one record lose nothing of each other's; that of an earlier machine is void.

    Each of several machines has a file of its own.
    """
    RunRecord(path=tmp_path / "run-a.json", generation=1, ids={"vm": "one"}).save()
    first, second = (RunRecord.load(tmp_path, "run-a") for _ in range(2))
    first.tokens["vm"] = "token"
    second.address = "192.0.2.1"
    first.save()
    second.save()
    both = RunRecord.load(tmp_path, "run-a")
    assert (both.tokens, both.address, both.ids) == ({"vm": "token"}, "192.0.2.1", {"vm": "one"})

    RunRecord(path=both.path, generation=2).save()
    first.address = "192.0.2.9"
    first.save()
    RunRecord.load(tmp_path, "run-a", 1).note("create", 1.0)

    assert RunRecord.load(tmp_path, "run-a").address == ""
    assert [(one.run_id, one.node) for one in records(tmp_path)] == [("run-a", 1), ("run-a", 0)]
    assert [one.requested for one in records_of_nodes(tmp_path, "run-a")] == ["create"]
