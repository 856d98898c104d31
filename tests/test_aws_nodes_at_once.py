"""Several machines made at the same time, and killed half-way: none costs another anything."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from ec2.harness import AwsHarness, aws, spec
from ec2.killing import KilledError, Killer
from support.contract import openssh_keys

from infra.provider import PowerState, Vm, VmSpec

WAIT_S = 60.0
"""For threads that do something: nobody waits so long unless something hangs."""
LATE_S = 1.0
"""How long a request is held for those of others that may never come."""
NODES = 3
KEYS = [openssh_keys()[1] for _ in range(NODES)]


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account of its own, in which no rule admits a stranger when the test is over."""
    with aws(tmp_path / "here") as harness:
        yield harness

        assert harness.foreign_rules() == []


def node(number: int, **changes: Any) -> VmSpec:
    """A request for one of three machines."""
    return spec(**{"node": number, "nodes": NODES, "host_public_key": KEYS[number], **changes})


class Held(Killer):
    """Holds each request of one operation until as many clients are about to send theirs."""

    def __init__(self, operation: str, clients: int) -> None:
        super().__init__()
        self._operation = operation
        self._barrier = threading.Barrier(clients)

    def watch(self, session: botocore.session.Session) -> None:
        """Hold the requests of a session, of every client that it makes."""
        session.register(f"before-send.ec2.{self._operation}", self._hold)

    def _hold(self, **_: Any) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):  # the others have no such request
            self._barrier.wait(LATE_S)


def create_at_once(
    harness: AwsHarness, specs: list[VmSpec], *, held: str, elsewhere: Path | None = None
) -> list[Vm]:
    """Create machines in threads, each with a provider of its own, which meet at one request.

    With `elsewhere` each of them is a computer of its own, too.
    """
    made: dict[int, Vm | Exception] = {}
    meeting = Held(held, len(specs))

    def create(at: int, wanted: VmSpec) -> None:
        state_dir = elsewhere / str(at) if elsewhere else None
        try:
            made[at] = harness.provider(state_dir=state_dir, killer=meeting).create(wanted)
        except Exception as error:  # noqa: BLE001  (raised again by whoever waits)
            made[at] = error

    threads = [threading.Thread(target=create, args=one) for one in enumerate(specs)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(WAIT_S)
    found = [made[at] for at in range(len(specs))]
    for result in found:
        if isinstance(result, Exception):
            raise result
    return [one for one in found if isinstance(one, Vm)]


@pytest.mark.parametrize(
    "held",
    [
        "DescribeSecurityGroups",
        "CreateSecurityGroup",
        "AuthorizeSecurityGroupIngress",
        "RunInstances",
    ],
)
def test_nodes_that_are_made_at_once_share_one_group(harness: AwsHarness, held: str) -> None:
    """Whichever request they meet at: one group, one rule for mates, three machines in it."""
    made = create_at_once(harness, [node(number) for number in range(NODES)], held=held)

    machines = harness.cloud.machines()
    assert [vm.node for vm in made] == [0, 1, 2]
    assert len(machines) == NODES
    assert len({tuple(one.group_ids) for one in machines}) == 1
    assert harness.shared_rules() == ["qft-run-a-1"]
    assert {vm.id for vm in harness.provider().list_run("run-a")} == {vm.id for vm in made}
    harness.provider().delete("run-a")
    assert harness.cloud.leftovers() == []


def test_nodes_of_different_generations_agree_on_one_group(harness: AwsHarness) -> None:
    """With nothing there yet, they find each other whatever generation each of them is."""
    specs = [node(0, generation=2), node(1, generation=1), node(2, generation=5)]

    create_at_once(harness, specs, held="CreateSecurityGroup")

    assert len({tuple(one.group_ids) for one in harness.cloud.machines()}) == 1
    assert len(harness.shared_rules()) == 1


@pytest.mark.parametrize("same_key", [True, False])
def test_two_computers_that_ask_for_one_node_get_one_machine(
    harness: AwsHarness, tmp_path: Path, *, same_key: bool
) -> None:
    """The token of its zone is the same for both, whatever key the second one brought."""
    create_at_once(harness, [node(0)], held="RunInstances")
    other = node(1) if same_key else node(1, host_public_key=KEYS[2])

    made = create_at_once(
        harness, [node(1), other], held="RunInstances", elsewhere=tmp_path / "computers"
    )

    assert made[0].id == made[1].id
    assert made[0].host_public_key == made[1].host_public_key
    assert len(harness.cloud.machines()) == 2


# ---- killed half-way ----


def kills(harness: AwsHarness) -> Iterator[tuple[str, str]]:
    """Kill a create of node 1 around each request that changes something, beside its mate.

    Gives the run, and the request in words.
    """
    killer = Killer()
    harness.provider().create(node(0, run_id="count"))
    harness.provider(killer=killer).create(node(1, run_id="count"))
    harness.provider().delete("count")
    names = [one.rpartition(".")[2] for one in killer.sent]
    places = [at for at, name in enumerate(names, start=1) if not name.startswith(("Desc", "Get"))]
    assert "RunInstances" in {names[at - 1] for at in places}
    for at in places:
        for answered in (False, True):
            run_id = f"{'after' if answered else 'before'}-{at}"
            harness.provider().create(node(0, run_id=run_id))
            dying = harness.provider(killer=Killer(at=at, answered=answered))
            with pytest.raises(KilledError):
                dying.create(node(1, run_id=run_id))
            yield run_id, f"killed {run_id.replace('-', ' ')} ({names[at - 1]})"


def test_a_killed_create_goes_on_beside_its_mate(harness: AwsHarness, tmp_path: Path) -> None:
    """One machine more, however often it is asked for, and from whichever computer."""
    for number, (run_id, context) in enumerate(kills(harness)):
        where = tmp_path / "elsewhere" if number % 2 else None

        vm = harness.provider(state_dir=where).create(node(1, run_id=run_id))

        found = harness.cloud.world.instances.values()
        assert sum(one.tags.get("qft-run") == run_id for one in found) == 2, context
        assert (vm.node, vm.power) == (1, PowerState.RUNNING), context
        mates = [one for one in harness.provider().list_run(run_id) if one.node == 0]
        assert [one.power for one in mates] == [PowerState.RUNNING], context
        harness.provider(state_dir=where).delete(run_id)
        assert harness.cloud.leftovers() == [], context
    assert harness.cloud.ledger.billing() == []


def test_a_killed_removal_of_one_node_goes_on(harness: AwsHarness) -> None:
    """Killed after any request that removes something, it still names the machine."""
    mate = harness.provider().create(node(0))
    killer = Killer()
    harness.provider(killer=killer).remove(harness.provider().create(node(1)))
    names = [one.rpartition(".")[2] for one in killer.sent]
    places = [at for at, one in enumerate(names, start=1) if one.startswith(("Cancel", "Term"))]
    assert len(places) >= 2
    for generation, at in enumerate(places, start=2):
        vm = harness.provider().create(node(1, generation=generation))
        dying = harness.provider(killer=Killer(at=at, answered=True))
        with pytest.raises(KilledError):
            dying.remove(vm)

        removed = harness.provider().remove(vm)

        assert vm.id in {one.id for one in removed}, names[at - 1]
        assert harness.provider().observe(vm).power is PowerState.GONE, names[at - 1]
        assert harness.provider().observe(mate).power is PowerState.RUNNING, names[at - 1]
    assert [one.tags.get("qft-node") for one in harness.cloud.machines()] == [None]
    assert harness.shared_rules() == ["qft-run-a-1"]
