"""Killed before or after any single request, a create leaves what can be finished or removed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from arm.disruptions import Disruption
from ec2.disruptions import dropped, empty_answer, internal_error, proxy_page, throttled
from ec2.furnishing import add_images
from ec2.harness import AwsHarness, aws, spec
from ec2.killing import KilledError, Killer

from infra.errors import Transient
from infra.provider import PowerState, VmSpec


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account with room for every machine of the test."""
    with aws(tmp_path / "here") as harness:
        yield harness


CHANGING = ("Run", "Create", "Authorize", "Put", "Update")
"""How the names of requests begin that change something: of the others, an answer may be lost."""
ORDER = "/ec2/.*/RunInstances"
REQUESTS_MIN = 12
"""No create makes fewer: a look, image, network, group, the order, the checks."""


def died(harness: AwsHarness, run_id: str, *, at: int, answered: bool) -> str:
    """Create until request number `at`, the last one; its name, empty if there are fewer."""
    killer = Killer(at=at, answered=answered)
    try:
        harness.provider(killer=killer).create(wanted(harness, run_id))
    except KilledError:
        return killer.sent[-1].rpartition(".")[2]
    return ""


def wanted(harness: AwsHarness, run_id: str) -> VmSpec:
    """A machine with safeguards, the same one each time that a run is asked for it."""
    return spec(run_id=run_id, until_s=harness.now() // 86400 * 86400 + 2 * 86400)


def kills(harness: AwsHarness) -> Iterator[tuple[str, str]]:
    """Kill a create before each of its requests, and after each that changes something.

    Gives the run, and the request in words.
    """
    for at in count(1):
        name = died(harness, f"before-{at}", at=at, answered=False)
        if not name:
            break
        yield f"before-{at}", f"killed before {name}, number {at}"
        if name.startswith(CHANGING):
            died(harness, f"after-{at}", at=at, answered=True)
            yield f"after-{at}", f"killed after {name}, number {at}"
    assert at > REQUESTS_MIN
    harness.provider().delete(f"before-{at}")


def changing_kills(harness: AwsHarness) -> Iterator[tuple[str, str]]:
    """Kill a create after each of its requests that changes something, and before the order.

    Gives the same as `kills`.
    """
    killer = Killer()
    harness.provider(killer=killer).create(wanted(harness, "count"))
    harness.provider().delete("count")
    names = [one.rpartition(".")[2] for one in killer.sent]
    places = [at for at, name in enumerate(names, start=1) if name.startswith(CHANGING)]
    assert "RunInstances" in {names[at - 1] for at in places}
    for at in places:
        for answered in (False, True) if names[at - 1] == "RunInstances" else (True,):
            when = "after" if answered else "before"
            assert died(harness, f"{when}-{at}", at=at, answered=answered) == names[at - 1]
            yield f"{when}-{at}", f"killed {when} {names[at - 1]}, number {at}"


def machines_made(harness: AwsHarness, run_id: str) -> int:
    """How many machines EC2 ever launched for a run."""
    found = harness.cloud.world.instances.values()
    return sum(one.tags.get("qft-run") == run_id for one in found)


def check_create_goes_on(
    harness: AwsHarness, elsewhere: Path, killed: Iterator[tuple[str, str]]
) -> None:
    """Create again after each kill: one machine, and no other was made; then remove it.

    Half of the second creates find the first one's record, half come from another computer.
    """
    for number, (run_id, context) in enumerate(killed):
        where = elsewhere if number % 2 else None

        vm = harness.provider(state_dir=where).create(wanted(harness, run_id))

        assert machines_made(harness, run_id) == 1, context
        assert (vm.power, bool(vm.host)) == (PowerState.RUNNING, True), context
        harness.provider(state_dir=where).delete(run_id)
        assert harness.cloud.leftovers() == [], context
    assert harness.cloud.ledger.billing() == []


def test_create_goes_on_after_a_kill_around_every_change(
    harness: AwsHarness, tmp_path: Path
) -> None:
    """Create, killed where it changes something, then called again, ends with one machine."""
    check_create_goes_on(harness, tmp_path / "elsewhere", changing_kills(harness))


@pytest.mark.slow
def test_create_goes_on_after_a_kill_at_every_request(harness: AwsHarness, tmp_path: Path) -> None:
    """Create, killed anywhere, then called again, ends with one machine and made no other."""
    check_create_goes_on(harness, tmp_path / "elsewhere", kills(harness))


@pytest.mark.slow
def test_delete_clears_up_after_a_create_killed_at_every_request(harness: AwsHarness) -> None:
    """Delete, after a create killed anywhere, leaves nothing that bills or could come back."""
    for run_id, context in kills(harness):
        harness.provider().delete(run_id)

        harness.advance(3600)
        assert harness.cloud.leftovers() == [], context
    assert harness.cloud.ledger.billing() == []


@pytest.mark.slow
def test_another_computer_clears_up_after_a_killed_create(
    harness: AwsHarness, tmp_path: Path
) -> None:
    """What a create made before it was killed is found with its record lost."""
    for _, context in changing_kills(harness):
        harness.advance(10)
        there = harness.provider(state_dir=tmp_path / "elsewhere")

        for vm in there.list_all():
            there.delete(vm.run_id)

        assert harness.cloud.leftovers() == [], context
    assert harness.cloud.ledger.billing() == []


@pytest.mark.parametrize("order", ["create", "delete"])
def test_answer_that_never_came_is_followed_up(harness: AwsHarness, order: str) -> None:
    """The request whose answer was lost made a machine that no list shows yet: it is not lost."""
    killer = Killer()
    harness.provider(killer=killer).create(wanted(harness, "count"))
    harness.provider().delete("count")
    at = next(at for at, one in enumerate(killer.sent, start=1) if one.endswith("RunInstances"))
    assert died(harness, "run-a", at=at, answered=True) == "RunInstances"

    if order == "create":
        vm = harness.provider().create(wanted(harness, "run-a"))
        (machine,) = harness.cloud.machines()
        assert vm.id.endswith(machine.id)
    harness.provider().delete("run-a")

    harness.advance(3600)
    assert harness.cloud.leftovers() == []
    assert machines_made(harness, "run-a") <= 1


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"zone": "us-east-1b"}, True),
        ({"zone": "us-west-2a"}, True),
        ({"max_price_usd_per_h": 0.4}, False),
        ({"generation": 2}, False),
    ],
    ids=["zone", "region", "cap", "generation"],
)
def test_create_with_another_spec_after_a_lost_answer_has_one_machine(
    harness: AwsHarness,
    changes: dict[str, Any],
    same: bool,  # noqa: FBT001  (of pytest)
) -> None:
    """What was asked for before the kill is found first: it serves, or it is removed."""
    killer = Killer()
    harness.provider(killer=killer).create(spec(run_id="count"))
    harness.provider().delete("count")
    at = next(at for at, one in enumerate(killer.sent, start=1) if one.endswith("RunInstances"))
    with pytest.raises(KilledError):
        harness.provider(killer=Killer(at=at, answered=True)).create(spec())

    vm = harness.provider().create(spec(**changes))

    (machine,) = harness.cloud.machines()
    (request,) = harness.cloud.spot_requests()
    assert vm.id.endswith(machine.id)
    assert request.instance_id == machine.id
    assert (len(harness.cloud.world.machines_made) == 2) == same  # that of `count` is one of them
    harness.provider().delete("run-a")
    harness.advance(3600)
    assert harness.cloud.leftovers() == []


@pytest.mark.parametrize(
    "disruption",
    [
        throttled(call=ORDER),
        internal_error(call=ORDER),
        proxy_page(call=ORDER),
        proxy_page(call=ORDER, status=200),
        empty_answer(call=ORDER),
        dropped(call=ORDER),
        dropped(call=ORDER, done=True),
    ],
    ids=["throttled", "internal", "proxy", "unreadable", "empty", "dropped", "answer dropped"],
)
def test_order_without_a_clear_answer_is_repeated_as_it_was(
    harness: AwsHarness, disruption: Disruption
) -> None:
    """Nobody knows whether it was carried out: the same token and bytes get the one machine."""
    harness.cloud.disruptions.add(disruption)

    with pytest.raises(Transient):
        harness.provider().create(spec())
    vm = harness.provider().create(spec())

    assert vm.power is PowerState.RUNNING
    assert len(harness.cloud.world.machines_made) == 1
    orders = [one.parameters for one in harness.cloud.calls("RunInstances")]
    assert all(one == orders[0] for one in orders)


@pytest.mark.parametrize("call", ["CreateSecurityGroup", "AuthorizeSecurityGroupIngress"])
def test_lost_answer_to_a_change_of_the_group_is_not_an_error(
    harness: AwsHarness, call: str
) -> None:
    """The SDK asks again and hears that it is there already."""
    harness.cloud.disruptions.add(dropped(call=f"/ec2/.*/{call}", done=True))

    vm = harness.provider().create(spec())

    assert vm.power is PowerState.RUNNING
    assert len(harness.cloud.machines()) == 1


@pytest.mark.parametrize("withdrawn", ["withdrawn", ""])
def test_image_stays_the_one_that_was_chosen_before_the_kill(
    harness: AwsHarness, withdrawn: str
) -> None:
    """What `latest` means changes under us; the image on record is taken while there is one."""
    world = harness.cloud.world
    before = set(world.images)
    killer = Killer()
    harness.provider(killer=killer).create(spec(run_id="count"))
    (old,) = {one.image_id for one in harness.cloud.machines()}
    harness.provider().delete("count")
    at = next(at for at, one in enumerate(killer.sent, start=1) if "CreateSecurityGroup" in one)
    assert died(harness, "run-a", at=at, answered=True) == "CreateSecurityGroup"
    add_images(world, "us-east-1", "24.04", date="20261106")
    if withdrawn:
        del world.images[old]

    harness.provider().create(wanted(harness, "run-a"))

    (machine,) = harness.cloud.machines()
    assert (machine.image_id == old) == (not withdrawn)
    assert (machine.image_id in before) == (not withdrawn)
