"""The spot cloud on this computer plays several machines of a run, in a network of their own."""

from __future__ import annotations

import ipaddress
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from support.contract import Harness, make_spec, running, wait_for
from support.local_cloud import LocalHarness
from support.nodes_contract import RUN, NodesContract, node_spec, three
from support.peer_machines import Peers, look

from infra.config import LocalTable
from infra.errors import BadRequest, NoCapacity
from infra.local import network
from infra.local.provider import LocalSettings
from infra.offer import Want
from infra.provider import PowerState, StopReason, Vm

SILENCE_S = 1.0


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[LocalHarness]:
    """A fresh cloud whose evictions come without notice."""
    cloud = LocalHarness(tmp_path / "local", LocalSettings(notice_s=0))
    yield cloud
    cloud.close()


class TestLocalNodes(NodesContract):
    """LocalProvider joins the contract of several machines."""

    @pytest.fixture
    def harness(self, cloud: LocalHarness) -> Harness:
        """The fresh cloud."""
        return cloud


def files_of(cloud: LocalHarness, name: str) -> set[str]:
    """The names of what is in a machine's directory."""
    return {path.name for path in (cloud.root / "vms" / name).iterdir()}


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that will be so."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- directories and records ----


def test_a_run_with_one_machine_has_no_word_of_several(cloud: LocalHarness) -> None:
    """Its files, records and reports are those from before there could be several."""
    vm, _ = running(cloud)

    assert files_of(cloud, RUN) == {
        "disk",
        "guest.json",
        "guest.lock",
        "guest.log",
        "host_key",
        "orders.json",
        "spec.json",
        "vm.json",
    }
    record = json.loads((cloud.root / "vms" / RUN / "vm.json").read_text())
    assert not {"node", "private_host"} & set(record["vm"])
    assert "private_host" not in (cloud.root / "vms" / RUN / "guest.json").read_text()
    assert (vm.node, cloud.provider().observe(vm).private_host) == (0, "")
    assert "node" not in look(cloud, vm).to_json()


def test_each_node_has_a_directory_of_its_own(cloud: LocalHarness) -> None:
    """Node 0 lives where the machine of a run with one lives, the others beside it."""
    made = three(cloud)

    names = {path.name for path in (cloud.root / "vms").iterdir()}
    assert names == {RUN, f"{RUN}.n1", f"{RUN}.n2"}
    record = json.loads((cloud.root / "vms" / f"{RUN}.n2" / "vm.json").read_text())
    assert (record["vm"]["node"], record["vm"]["id"]) == (2, made[2].id)


def test_a_node_says_its_own_name_in_its_metadata(cloud: LocalHarness) -> None:
    """An eviction that is announced names one machine, not its run."""
    three(cloud)

    specs = [cloud.root / "vms" / name / "spec.json" for name in (RUN, f"{RUN}.n1", f"{RUN}.n2")]
    assert [json.loads(one.read_text())["name"] for one in specs] == [RUN, f"{RUN}.n1", f"{RUN}.n2"]


@pytest.mark.parametrize("node", [-1, 200])
def test_there_is_no_such_node(cloud: LocalHarness, node: int) -> None:
    """A number for which there is no address is refused before anything is made."""
    spec = replace(node_spec(cloud, 0), node=node)

    with pytest.raises(BadRequest, match="0 to 199"):
        cloud.provider().create(spec)

    assert not cloud.root.exists()


def test_a_machine_of_an_earlier_generation_removes_nothing(cloud: LocalHarness) -> None:
    """Whoever still holds the value of a removed node does not remove its successor."""
    old = cloud.provider().create(node_spec(cloud, 1))
    cloud.provider().remove(old)
    new = cloud.provider().create(replace(node_spec(cloud, 1), generation=2))

    assert cloud.provider().remove(old) == []

    wait_for(cloud, new, PowerState.RUNNING)


def test_a_half_made_node_is_listed_and_removed(cloud: LocalHarness) -> None:
    """What a create that was killed at once has left is named by its run and node."""
    kept = cloud.provider().create(node_spec(cloud, 0))
    (cloud.root / "vms" / f"{RUN}.n1" / "disk").mkdir(parents=True)
    (found,) = [vm for vm in cloud.provider().list_run(RUN) if vm.power is PowerState.REMNANTS]

    removed = cloud.provider().remove(found)

    assert found.node == 1
    assert [one.kind for one in removed] == ["disk"]
    assert [vm.id for vm in cloud.provider().list_all()] == [kept.id]


# ---- private addresses ----


def test_addresses_of_a_run_are_one_network(cloud: LocalHarness) -> None:
    """Node i is number 10 + i of three numbers that only this run has, and keeps its address."""
    made = three(cloud)
    found = [cloud.provider().observe(vm).private_host for vm in made]

    cloud.provider().deallocate(made[1])
    off = cloud.provider().observe(made[1])
    cloud.provider().start(made[1])
    wait_for(cloud, made[1], PowerState.RUNNING)

    (own,) = {address.rpartition(".")[0] for address in found}
    assert [address.rpartition(".")[2] for address in found] == ["10", "11", "12"]
    assert not own.startswith(("127.0.", "127.255."))
    assert off.private_host == ""
    assert (
        cloud.provider().observe(made[1]).private_host
        == found[1]
        == look(cloud, made[1]).private_host
    )


def test_two_runs_share_no_address(cloud: LocalHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose first choice is another's takes the next one."""
    monkeypatch.setattr(network, "_networks", lambda _key: iter(["127.7.7", "127.7.8"]))

    runs = [[replace(node_spec(cloud, node), run_id=run) for node in range(2)] for run in "ab"]
    made = [[cloud.provider().create(spec) for spec in specs] for specs in runs]

    for vm in made[0] + made[1]:
        wait_for(cloud, vm, PowerState.RUNNING)
    found = [cloud.provider().observe(vm).private_host for vm in made[0] + made[1]]
    assert found == ["127.7.7.10", "127.7.7.11", "127.7.8.10", "127.7.8.11"]


def test_choice_of_a_network_is_the_same_every_time() -> None:
    """It depends on the key alone, is a loopback network, and never that of 127.0."""
    chosen = [network.choose_network(f"run-{number}", taken=()) for number in range(2000)]

    assert chosen == [network.choose_network(f"run-{number}", taken=()) for number in range(2000)]
    assert len(set(chosen)) > 1900
    for one in chosen:
        address = ipaddress.IPv4Address(network.address_of(one, 199))
        assert address.is_loopback
        assert address not in ipaddress.ip_network("127.0.0.0/16")
    assert network.choose_network("run-1", taken=[chosen[1]]) != chosen[1]


def test_a_machine_made_alone_gets_an_address_when_others_join(cloud: LocalHarness) -> None:
    """A run that grows asks node 0 nothing, and finds it at a private address, still up."""
    first, _ = running(cloud)
    before = cloud.provider().observe(first)

    cloud.provider().create(node_spec(cloud, 1))

    wait_until(lambda: bool(cloud.provider().observe(first).private_host))
    after = cloud.provider().observe(first)
    assert after.private_host.endswith(".10")
    assert (after.since, after.port) == (before.since, before.port)
    with socket.create_connection((after.private_host, after.port), timeout=120) as connection:
        assert connection.recv(8) == b"SSH-2.0-"


# ---- evictions by script, silence ----


@pytest.mark.parametrize(
    ("script", "evicted"), [([0.3], [0]), ([[], [0.3]], [1]), ([[0.3], [], [0.3]], [0, 2])]
)
def test_a_script_names_the_machines_that_it_evicts(
    cloud: LocalHarness, script: list[float | list[float]], evicted: list[int]
) -> None:
    """A list is about node 0; in a list of lists each node has its own."""
    cloud.settings = LocalSettings(notice_s=0, evict_after_s=script)
    made = [cloud.provider().create(node_spec(cloud, node)) for node in range(3)]

    for vm in made:
        state = PowerState.DEALLOCATED if vm.node in evicted else PowerState.RUNNING
        wait_for(cloud, vm, state)
    time.sleep(0.6)

    seen = [cloud.provider().observe(vm) for vm in made]
    reasons = [StopReason.EVICTED if node in evicted else None for node in range(3)]
    assert [one.stop_reason for one in seen] == reasons


def test_the_table_takes_a_script_for_each_machine() -> None:
    """Numbers, or lists of them; a mixture could mean either and is refused."""
    table = LocalTable.model_validate({"evict_after_s": [[60], [], [30, 20]]})

    assert table.evict_after_s == [[60], [], [30, 20]]
    assert table.timed_evictions == [60, 30, 20]
    assert LocalTable.model_validate({"evict_after_s": [60, 30]}).timed_evictions == [60, 30]
    with pytest.raises(ValidationError, match="not both"):
        LocalTable.model_validate({"evict_after_s": [60, [30]]})
    with pytest.raises(ValidationError, match="greater than 0"):
        LocalTable.model_validate({"evict_after_s": [[60], [0]]})


def answers(vm: Vm) -> bool:
    """Whether the machine's SSH server says its first word within a second."""
    try:
        with socket.create_connection((vm.host, vm.port), timeout=SILENCE_S) as connection:
            return bool(connection.recv(8))
    except OSError:
        return False


def test_a_silent_machine_is_on_and_answers_nobody(cloud: LocalHarness) -> None:
    """Nothing of it runs, it still bills, its peers go on; then it goes on where it was."""
    peers = Peers(cloud)
    peers.authorize("")
    counting = "while :; do echo >> ticks; sleep 0.05; done"
    peers.run(peers.ssh(f"setsid sh -c '{counting}' < /dev/null > /dev/null 2>&1 &"))
    ticks = peers.homes[1] / "ticks"
    wait_until(lambda: ticks.exists() and ticks.stat().st_size > 2)
    machine = peers.machines[1]

    cloud.provider().silence(machine)

    count = ticks.stat().st_size
    assert not answers(machine)
    assert ticks.stat().st_size == count
    assert cloud.provider().observe(machine).power is PowerState.RUNNING
    assert answers(peers.machines[0])
    cloud.provider().awaken(machine)
    assert answers(machine)
    wait_until(lambda: ticks.stat().st_size > count)


@pytest.mark.parametrize("act", ["deallocate", "remove"])
def test_a_silent_machine_can_be_ended(cloud: LocalHarness, act: str) -> None:
    """Stopped processes die, too; after a release it starts again and answers."""
    vm, _ = running(cloud)
    cloud.provider().silence(vm)

    getattr(cloud.provider(), act)(vm)

    if act == "remove":
        assert cloud.provider().list_all() == []
        return
    cloud.provider().start(vm)
    wait_for(cloud, vm, PowerState.RUNNING)
    assert answers(look(cloud, vm))


# ---- how many a region has ----


def test_a_region_has_as_many_machines_as_the_market_says(cloud: LocalHarness) -> None:
    """The third of three is refused, until one of the two is off; an evicted one waits, too."""
    cloud.set_machines("local-1", 2)
    made = [cloud.provider().create(node_spec(cloud, node)) for node in range(2)]
    other = replace(node_spec(cloud, 2), nodes=3)

    with pytest.raises(NoCapacity, match="2 in all"):
        cloud.provider().create(other)
    assert [vm.id for vm in made] == [
        cloud.provider().create(node_spec(cloud, node)).id for node in range(2)
    ]
    (offer,) = cloud.provider().offers(Want(regions=["local-1"]))
    assert offer.blocked_by == "no capacity"
    cloud.provider().deallocate(made[0])
    cloud.provider().create(other)
    with pytest.raises(NoCapacity):
        cloud.provider().start(made[0])


def test_a_region_with_too_few_machines_is_blocked(cloud: LocalHarness) -> None:
    """A run that cannot do without two is offered no region that never has them."""
    cloud.set_machines("local-1", 1)

    offers = cloud.provider().offers(Want(nodes=2))

    found = {one.region: one.blocked_by for one in offers}
    assert found == {"local-2": "", "local-1": "capacity for 1 of 2 machines"}
    assert offers[0].region == "local-2"


@pytest.mark.parametrize("count", [-1, True, 1.5, "2"])
def test_a_market_with_no_count_is_refused(cloud: LocalHarness, count: object) -> None:
    """What is no number of machines is named with the file."""
    cloud.set_machines("local-1", count)

    with pytest.raises(BadRequest, match="machines"):
        cloud.provider().offers(Want())


def test_other_regions_do_not_count(cloud: LocalHarness) -> None:
    """What runs in one region takes nothing of another."""
    cloud.set_machines("local-2", 1)
    cloud.provider().create(node_spec(cloud, 0))

    vm = cloud.provider().create(make_spec(cloud.provider(), "other", region="local-2"))

    wait_for(cloud, vm, PowerState.RUNNING)
