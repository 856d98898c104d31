"""The bill of a machine on AWS ends although nothing of ours lives: the simulated clouds act."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore import xform_name
from ec2 import alarms, iam, schedules
from ec2.harness import AwsHarness, aws, spec
from ec2.killing import KilledError, Killer
from ec2.resources import Instance
from ec2.state import ACCOUNT

from infra.aws.permissions import role_commands, role_policy, trust_policy
from infra.provider import PowerState, StopReason, Vm

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
MINUTES_15_S = 900.0
LIMIT_S = 2 * HOUR_S
ROLE = "qft-scheduler"


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account whose administrator has made the role of Scheduler."""
    with aws(tmp_path) as harness:
        add_role(harness)
        yield harness


def add_role(harness: AwsHarness) -> None:
    """Make the role, long ago."""
    world = harness.cloud.world
    iam.add_role(world, ROLE, trust=trust_policy(ACCOUNT), policy=role_policy(ACCOUNT))


def rent(harness: AwsHarness, *, disk_days: float | None = None) -> tuple[Vm, float]:
    """A machine with a limit two hours ahead, and that limit; nothing of ours lives after it."""
    until_s = harness.now() + LIMIT_S
    vm = harness.provider().create(spec(until_s=until_s, disk_days=disk_days))
    return vm, until_s


def machine(harness: AwsHarness) -> Instance:
    """The only machine that exists."""
    (found,) = harness.cloud.machines()
    return found


def advance_to(harness: AwsHarness, at_s: float) -> None:
    """Let time pass until then, a few minutes at once."""
    while harness.now() < at_s:
        harness.advance(min(300.0, at_s - harness.now()))


def schedule_names(harness: AwsHarness) -> list[str]:
    """The last parts of the names of all schedules."""
    return [one.rpartition(".")[2] for one in schedules.names(harness.cloud.world)]


def test_printed_lines_make_the_role_by_which_the_machine_is_stopped(tmp_path: Path) -> None:
    """Pasted into a shell, what doctor prints is all that Scheduler needs, seconds later."""
    with aws(tmp_path) as harness:
        clients = harness.clients()
        for line in role_commands(ACCOUNT):
            _, service, operation, *rest = shlex.split(line)
            names = ("".join(part.title() for part in one[2:].split("-")) for one in rest[::2])
            parameters: dict[str, Any] = dict(zip(names, rest[1::2], strict=True))
            call = xform_name("".join(part.title() for part in operation.split("-")))
            clients.call(service, "us-east-1", call, doing="make the role", **parameters)
        clients.close()
        _, until_s = rent(harness)
        assert schedule_names(harness) == ["stop"]

        advance_to(harness, until_s + 120)

        assert machine(harness).state in {"stopping", "stopped"}
        assert machine(harness).reason_code == "Client.UserInitiatedShutdown"


def test_machine_is_stopped_at_its_limit_and_keeps_its_disk(harness: AwsHarness) -> None:
    """Two days later compute bills nothing, the disk does, and no schedule is left."""
    _, until_s = rent(harness)

    advance_to(harness, until_s - 60)
    assert machine(harness).state == "running"
    advance_to(harness, until_s + 2 * DAY_S)

    billed = harness.cloud.ledger.billing()
    assert all(not line.startswith("compute") for line in billed)
    assert any(line.startswith("disk") or "vol-" in line for line in billed), billed
    assert schedule_names(harness) == []


@pytest.mark.parametrize("before_s", [5.0, 60.0, 240.0])
def test_machine_that_ec2_restarts_after_its_limit_ends_within_15_minutes(
    harness: AwsHarness, before_s: float
) -> None:
    """Interrupted just before the limit, and started again three minutes after it: it ends."""
    _, until_s = rent(harness)
    advance_to(harness, until_s - before_s)
    harness.cloud.world.timing.restart_s = before_s + 180
    harness.cloud.interrupt(machine(harness), notice_s=0)
    advance_to(harness, until_s + 300)
    assert machine(harness).state == "running"
    assert machine(harness).launches == 2

    advance_to(harness, until_s + 180 + MINUTES_15_S + 60)

    assert machine(harness).state in {"stopping", "stopped"}
    advance_to(harness, until_s + DAY_S)
    assert all(not line.startswith("compute") for line in harness.cloud.ledger.billing())


def test_disk_days_leave_nothing_that_bills(harness: AwsHarness) -> None:
    """A day after the limit the request is cancelled, the machine and its disk are gone."""
    _, until_s = rent(harness, disk_days=1)
    assert sorted(schedule_names(harness)) == ["cancel", "stop", "terminate"]

    advance_to(harness, until_s + DAY_S - 300)
    assert machine(harness).state == "stopped"
    advance_to(harness, until_s + DAY_S + HOUR_S)

    assert harness.cloud.machines() == []
    assert harness.cloud.spot_requests() == []
    assert harness.cloud.ledger.billing() == []
    assert schedule_names(harness) == []


def test_alarm_ends_a_machine_where_there_is_no_role(tmp_path: Path) -> None:
    """Without the role CloudWatch stops the machine soon after the limit, never before it."""
    with aws(tmp_path) as harness:
        _, until_s = rent(harness)
        assert schedule_names(harness) == []
        assert [one.rpartition(".")[2] for one in alarms.names(harness.cloud.world)] == ["limit"]

        advance_to(harness, until_s)
        assert machine(harness).state == "running"
        advance_to(harness, until_s + 15 * 60)

        assert machine(harness).state in {"stopping", "stopped"}


def test_role_that_was_made_a_moment_ago_is_waited_for(harness: AwsHarness) -> None:
    """Scheduler trusts a new role seconds later: the schedule is set within the same create."""
    iam.roles(harness.cloud.world)[ROLE].born_s = harness.now() + 30

    rent(harness)

    assert schedule_names(harness) == ["stop"]
    assert alarms.names(harness.cloud.world) == []


@pytest.mark.parametrize("lack", ["scheduler:*", "iam:PassRole", "iam:GetRole"])
def test_missing_right_leaves_an_alarm_or_is_got_around(harness: AwsHarness, lack: str) -> None:
    """Whoever may not set schedules has an alarm; the right to look at the role is not needed."""
    harness.cloud.deny(lack)

    rent(harness)

    has_schedule = lack == "iam:GetRole"
    assert bool(schedule_names(harness)) is has_schedule
    assert bool(alarms.names(harness.cloud.world)) is not has_schedule


def test_stop_at_the_limit_is_read_as_ours(harness: AwsHarness) -> None:
    """Whoever comes back sees a machine that was given back, not one that a person stopped."""
    vm, until_s = rent(harness)
    advance_to(harness, until_s + HOUR_S / 2)

    seen = harness.provider().observe(vm)

    assert seen.power is PowerState.DEALLOCATED
    assert seen.stop_reason is StopReason.RETURNED


def test_machine_started_again_is_left_alone_until_its_new_limit_is_set(
    harness: AwsHarness,
) -> None:
    """A start after the limit is not undone by the next stop; dead once more, it ends in time."""
    vm, until_s = rent(harness)
    advance_to(harness, until_s + 10 * 60)

    harness.provider().start(vm)
    started_s = harness.now()

    advance_to(harness, started_s + 25 * 60)
    assert machine(harness).state == "running"
    advance_to(harness, started_s + 50 * 60)
    assert machine(harness).state in {"stopping", "stopped"}
    assert harness.provider().observe(vm).stop_reason is StopReason.RETURNED


def test_raised_limit_moves_the_stop(harness: AwsHarness) -> None:
    """A renewal before the limit moves it, as far as the request of the machine lasts."""
    vm, until_s = rent(harness)
    advance_to(harness, until_s - HOUR_S)

    found = harness.provider().set_safeguards(vm, until_s=until_s + HOUR_S / 2)

    assert all(one.is_set for one in found if one.name in {"schedules", "spot request"})
    advance_to(harness, until_s + HOUR_S / 4)
    assert machine(harness).state == "running"
    advance_to(harness, until_s + HOUR_S)
    assert machine(harness).state in {"stopping", "stopped"}


def test_killed_at_any_request_the_same_schedules_are_set_by_the_next(
    harness: AwsHarness,
) -> None:
    """Wherever it dies, after any answer, a second call leaves each schedule once."""
    vm, until_s = rent(harness)
    held = schedules.scheduler(harness.cloud.world).schedules
    provider, counting = harness.provider(), Killer()
    harness.provider(killer=counting).set_safeguards(vm, until_s=until_s, disk_days=1)
    wanted = {name: _stable(one.body) for name, one in held.items()}
    for at in range(1, len(counting.sent) + 1):
        held.clear()
        killer = Killer(at=at, answered=True)
        with pytest.raises(KilledError):
            harness.provider(killer=killer).set_safeguards(vm, until_s=until_s, disk_days=1)

        provider.set_safeguards(vm, until_s=until_s, disk_days=1)

        assert {name: _stable(one.body) for name, one in held.items()} == wanted


def _stable(body: dict[str, Any]) -> dict[str, Any]:
    """A schedule without the token of its request."""
    return {key: value for key, value in body.items() if key != "ClientToken"}


def test_removed_run_leaves_no_schedule(harness: AwsHarness) -> None:
    """`delete` takes the schedules last, and says so."""
    rent(harness, disk_days=1)

    removed = harness.provider().delete("run-a")

    assert harness.cloud.leftovers() == []
    assert len([one for one in removed if "schedule" in one.kind]) == 3
    assert harness.provider().delete("run-a") == []


def test_schedules_of_one_machine_do_not_end_another(harness: AwsHarness) -> None:
    """Each generation has names of its own: the second machine of a run goes on."""
    vm, until_s = rent(harness)
    provider = harness.provider()
    provider.delete(vm.run_id)
    provider.create(replace(spec(until_s=until_s + DAY_S), generation=2))

    advance_to(harness, until_s + HOUR_S)

    assert machine(harness).state == "running"
