"""Stories of a run on AWS: each ends with its exit code, the ledger's cents and nothing left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ec2.disruptions import throttled, unreadable_page
from ec2.harness import aws
from ec2.resources import Instance
from ec2.runner import CliRunner, TrainingWorkload, cli_runner
from support.runs import Project, make_project

from infra.run.budget import bill
from infra.run.fold import fold

HOUR_S = 3600.0
SLOW = pytest.mark.slow
EAST, WEST = "us-east-1", "us-west-2"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project on AWS with two regions."""
    vm = {"provider": "aws", "regions": [EAST, WEST], "max_price": 0.30}
    folder = tmp_path_factory.mktemp("stories") / "project"
    return make_project(folder, vm=vm, budget={"hours": 40, "usd": 20.0})


@pytest.fixture
def runner(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[CliRunner]:
    """A command line in the project."""
    with (
        aws(tmp_path / "unused") as harness,
        cli_runner(
            project.folder,
            tmp_path / "home",
            harness,
            capsys,
            TrainingWorkload(harness, out=project.out, train_s=1800.0),
        ) as runner,
    ):
        harness.changes = {"polling_s": 20.0}
        yield runner


def up(runner: CliRunner) -> str:
    """`qft up` ends with a machine; what it wrote."""
    done = runner.qft("up", "--plain")
    assert done.code == 0, done.err
    assert len(runner.harness.cloud.machines()) == 1
    assert len(runner.harness.cloud.spot_requests()) == 1
    assert machine(runner).state == "running"
    return done.err


def machine(runner: CliRunner) -> Instance:
    """The only machine that there is."""
    (found,) = runner.harness.cloud.machines()
    return found


def usd(runner: CliRunner) -> float:
    """What the run has cost by its journal."""
    return bill(fold(runner.events()), runner.harness.now()).usd


def end(runner: CliRunner, *, unseen_s: float = 0.0) -> None:
    """`qft down --delete` ends well: nothing is left, now or hours later, and the bill is right.

    For `unseen_s` the machine was down while nobody watched: no list of EC2 says since when, so
    that time is counted as if it had run.
    """
    gone = runner.qft("down", "--delete")
    assert gone.code == 0, gone.err
    assert runner.harness.cloud.leftovers() == []
    cents = usd(runner) - runner.harness.cloud.ledger.usd()
    assert -0.01 < cents < 0.01 + unseen_s / HOUR_S * 0.20
    runner.harness.advance(6 * HOUR_S)
    assert runner.harness.cloud.leftovers() == []
    assert runner.harness.cloud.ledger.billing() == []


# ---- interruptions ----


@pytest.mark.parametrize(
    "notice_s", [pytest.param(0.0, marks=SLOW), 120.0], ids=["without notice", "with notice"]
)
def test_interrupted_machine_is_taken_over_when_ec2_restarts_it(
    runner: CliRunner, notice_s: float
) -> None:
    """Its zone full, the run waits or moves; with room again it is one machine, evicted once."""
    up(runner)
    first = machine(runner).id
    runner.harness.advance(2 * HOUR_S)
    runner.harness.cloud.interrupt(machine(runner), notice_s=notice_s)
    runner.harness.advance(notice_s + 400)

    up(runner)

    assert machine(runner).id == first
    assert runner.state().evictions == 1
    end(runner, unseen_s=400)


@pytest.mark.parametrize(
    "notice_s", [0.0, pytest.param(120.0, marks=SLOW)], ids=["without notice", "with notice"]
)
def test_interrupted_first_hour_costs_nothing(runner: CliRunner, notice_s: float) -> None:
    """EC2 does not bill a first hour that it cuts short, and neither does the receipt."""
    up(runner)
    runner.harness.advance(1800)
    first = machine(runner)
    runner.harness.cloud.market.fill(first.zone)
    runner.harness.cloud.interrupt(first, notice_s=notice_s)
    runner.harness.advance(notice_s + 90)

    up(runner)

    assert (machine(runner).id != first.id, runner.state().evictions) == (True, 1)
    assert usd(runner) < 0.02
    end(runner)


@SLOW
def test_price_interruption_moves_to_a_cheaper_zone(runner: CliRunner) -> None:
    """The price of its zone rises above the cap: the run goes on elsewhere."""
    up(runner)
    runner.harness.advance(2 * HOUR_S)
    zone = machine(runner).zone
    runner.harness.cloud.set_price("g4dn.xlarge", zone, 0.45, notice_s=0)
    runner.harness.advance(120)

    words = up(runner)

    assert machine(runner).zone != zone
    assert "price" in words
    assert runner.state().evictions == 1
    end(runner)


@SLOW
@pytest.mark.parametrize("whole_region", [False, True], ids=["zone", "region"])
def test_capacity_gone_moves_the_run_on(runner: CliRunner, whole_region: bool) -> None:  # noqa: FBT001  (of pytest)
    """Interrupted, and no room where it was: the next zone is taken, or the next region."""
    up(runner)
    runner.harness.advance(2 * HOUR_S)
    before = machine(runner)
    if whole_region:
        runner.harness.set_capacity(EAST, free=False)
    else:
        runner.harness.cloud.market.fill(before.zone)
    runner.harness.cloud.interrupt(before, notice_s=0)
    runner.harness.advance(120)

    up(runner)

    assert machine(runner).zone != before.zone
    assert (machine(runner).region == WEST) is whole_region
    assert runner.state().evictions == 1
    runner.harness.set_capacity(EAST, free=True)
    runner.harness.advance(HOUR_S)
    assert len(runner.harness.cloud.machines()) == 1
    end(runner)


@pytest.mark.parametrize("price", [None, pytest.param(0.45, marks=SLOW)], ids=["capacity", "price"])
def test_run_that_is_interrupted_while_it_trains_ends_with_its_adapter(
    runner: CliRunner, price: float | None
) -> None:
    """Watched all the time: evicted, moved, trained, fetched and removed by one command."""
    cloud = runner.harness.cloud

    def take() -> None:
        one = machine(runner)
        cloud.market.fill(one.zone)
        if price is None:
            cloud.interrupt(one)
        else:
            cloud.set_price(one.size, one.zone, price, notice_s=0)

    cloud.world.after(1200.0, take)

    done = runner.qft("run", "--plain")

    assert done.code == 0, done.err
    assert runner.state().evictions == 1
    assert len(cloud.world.machines_made) == 2
    assert cloud.leftovers() == []
    assert usd(runner) == pytest.approx(cloud.ledger.usd(), abs=0.01)
    end(runner)


# ---- what EC2 does by itself ----


@pytest.mark.parametrize(
    "tagged", [False, pytest.param(True, marks=SLOW)], ids=["untagged", "tagged"]
)
def test_relaunched_machine_is_removed_counted_and_replaced(
    runner: CliRunner,
    tagged: bool,  # noqa: FBT001  (of pytest)
) -> None:
    """Terminated in the console without its request: what EC2 launches is no machine of the run."""
    runner.harness.cloud.world.relaunch_tagged = tagged
    up(runner)
    runner.harness.advance(HOUR_S)
    runner.harness.cloud.terminate_behind(machine(runner))
    runner.harness.advance(2 * HOUR_S)
    other = machine(runner).id

    up(runner)

    assert machine(runner).id != other
    end(runner)


def test_restart_while_the_laptop_sleeps_is_taken_over_and_counted(runner: CliRunner) -> None:
    """Interrupted, restarted an hour later, hours alone: they count from the launch of EC2."""
    up(runner)
    runner.harness.advance(HOUR_S + 600)
    first = machine(runner)
    runner.harness.cloud.market.fill(first.zone)
    runner.harness.cloud.interrupt(first)
    runner.harness.advance(HOUR_S)
    runner.harness.cloud.market.empty(first.zone)
    runner.harness.advance(5 * HOUR_S)

    up(runner)

    assert machine(runner).id == first.id
    assert (machine(runner).launches, runner.state().evictions) == (2, 1)
    end(runner, unseen_s=HOUR_S)


@SLOW
def test_many_restarts_in_one_night_are_one_machine_in_the_morning(runner: CliRunner) -> None:
    """Interrupted and restarted three times unseen; what is counted is at least what EC2 bills."""
    up(runner)
    first = machine(runner)
    for _ in range(3):
        runner.harness.advance(2 * HOUR_S)
        runner.harness.cloud.interrupt(first)
        runner.harness.advance(1200)

    up(runner)

    assert (machine(runner).id, machine(runner).launches) == (first.id, 4)
    end(runner, unseen_s=3 * 400)


# ---- stops and starts ----


def test_start_right_after_a_stop_waits_for_the_request(runner: CliRunner) -> None:
    """`down`, then `up` at once: `IncorrectSpotRequestState` for 40 s is waited for, not told."""
    up(runner)
    first = machine(runner).id
    runner.harness.advance(HOUR_S)
    assert runner.qft("down").code == 0

    words = up(runner)

    assert machine(runner).id == first
    assert "IncorrectSpotRequestState" not in words
    assert runner.state().evictions == 0
    end(runner)


@SLOW
def test_stop_of_seven_minutes_bills_none_of_them(runner: CliRunner) -> None:
    """The deep-learning image takes 7 minutes to stop: `down` waits, and they are not counted."""
    runner.harness.cloud.world.timing.stop_s = 470.0
    up(runner)
    runner.harness.advance(HOUR_S)

    down = runner.qft("down")

    assert down.code == 0, down.err
    assert machine(runner).state == "stopped"
    assert usd(runner) == pytest.approx(runner.harness.cloud.ledger.usd(), abs=0.01)
    up(runner)
    end(runner)


@SLOW
def test_busy_security_group_is_waited_for(runner: CliRunner) -> None:
    """The network card outlives the machine by nine minutes: `down --delete` waits for it."""
    runner.harness.cloud.world.timing.interface_s = 540.0
    up(runner)
    runner.harness.advance(HOUR_S)
    began_s = runner.harness.now()

    gone = runner.qft("down", "--delete")

    assert gone.code == 0, gone.err
    assert runner.harness.now() - began_s > 540.0
    end(runner)


@SLOW
def test_security_group_that_stays_busy_is_named_and_removed_by_the_same_command(
    runner: CliRunner,
) -> None:
    """After half an hour it is named with the command that goes on; compute has long ended."""
    runner.harness.cloud.world.timing.interface_s = 2400.0
    up(runner)
    runner.harness.advance(HOUR_S)

    gone = runner.qft("down", "--delete")

    assert gone.code == 3, gone.err
    assert "security group" in gone.err
    assert "qft down --delete" in gone.err
    assert not [one for one in runner.harness.cloud.ledger.billing() if "compute" in one]
    end(runner)


# ---- refusals of accounts ----


def test_quota_of_zero_is_refused_with_the_figure(runner: CliRunner) -> None:
    """A new account: exit 3, the figure in vCPUs, the link of the region, and nothing made."""
    runner.harness.cloud.market.spot_vcpus = 0

    refusal = runner.qft("up", "--plain")

    assert refusal.code == 3
    assert "0 of 4" in refusal.err
    assert (
        f"https://{EAST}.console.aws.amazon.com/servicequotas/home/services/ec2/quotas/L-3819A6DF"
        in refusal.err
    )
    assert runner.harness.cloud.world.machines_made == []
    end(runner)


@SLOW
def test_quota_that_only_the_launch_reports_is_shown_the_same(runner: CliRunner) -> None:
    """Without the right to read quotas, EC2's own refusal leads to the same words."""
    runner.harness.cloud.market.spot_vcpus = 0
    runner.harness.cloud.deny("servicequotas:*")

    refusal = runner.qft("up", "--plain")

    assert refusal.code == 3
    assert "L-3819A6DF" in refusal.err
    assert runner.harness.cloud.world.machines_made == []
    end(runner)


def test_sso_that_expires_in_mid_run_is_shown_and_gone_on_with(runner: CliRunner) -> None:
    """Signed out, a command says how to sign in; the next one has the same machine."""
    up(runner)
    first = machine(runner).id
    runner.harness.advance(HOUR_S)
    runner.harness.cloud.expire_credentials()

    refusal, down = runner.qft("up", "--plain"), runner.qft("down")

    assert (refusal.code, down.code) == (3, 3)
    for one in (refusal, down):
        assert "aws sso login" in one.err
    runner.harness.cloud.renew_credentials()
    up(runner)
    assert machine(runner).id == first
    end(runner)


@SLOW
def test_sso_that_expires_while_a_run_is_watched_does_not_end_it(runner: CliRunner) -> None:
    """The machine is followed over SSH; signed in again, the same command ends as if never cut."""
    world = runner.harness.cloud.world
    world.after(600.0, runner.harness.cloud.expire_credentials)
    world.after(1200.0, runner.harness.cloud.renew_credentials)

    done = runner.qft("run", "--plain")

    assert done.code == 0, done.err
    assert "aws sso login" in done.err
    assert len(world.machines_made) == 1
    end(runner)


@SLOW
def test_noise_on_the_line_costs_nothing_but_time(runner: CliRunner) -> None:
    """Throttled calls and pages that nobody can parse, at every call: one machine, one bill."""
    names = "Run|DescribeInstances|DescribeSpot|CreateSecurity|Start|Stop|Terminate|Cancel|Delete"
    for name in names.split("|"):
        runner.harness.cloud.disruptions.add(throttled(call=f"/ec2/.*/{name}", times=2))
        runner.harness.cloud.disruptions.add(unreadable_page(call=f"/ec2/.*/{name}", times=2))
    up(runner)
    runner.harness.advance(HOUR_S)
    down = runner.qft("down")
    assert down.code == 0, down.err
    up(runner)

    assert len(runner.harness.cloud.world.machines_made) == 1
    end(runner)


@SLOW
def test_refused_create_that_left_a_request_open_is_cleared(runner: CliRunner) -> None:
    """What EC2 refuses and yet keeps open is cancelled: no machine comes from it hours later."""
    runner.harness.cloud.world.leaves_requests = True
    runner.harness.set_capacity(EAST, free=False)

    up(runner)

    runner.harness.set_capacity(EAST, free=True)
    runner.harness.advance(3 * HOUR_S)
    assert machine(runner).region == WEST
    assert len(runner.harness.cloud.spot_requests()) == 1
    end(runner)


def test_no_default_vpc_is_shown_with_the_command_that_makes_one(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 3 with `aws ec2 create-default-vpc --region …`, and nothing made."""
    with (
        aws(tmp_path / "unused", default_vpc=False) as harness,
        cli_runner(project.folder, tmp_path / "home", harness, capsys) as runner,
    ):
        refusal = runner.qft("up", "--plain")

        assert refusal.code == 3
        assert f"aws ec2 create-default-vpc --region {EAST}" in refusal.err
        end(runner)
