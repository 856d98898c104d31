"""A first hour that EC2 ends itself costs no compute: the run's receipt says so, too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ec2.harness import aws
from ec2.runner import CliRunner, cli_runner
from ec2.spot_lifecycle import BY_PRICE, EXPERIMENT, NO_CAPACITY
from support.runs import make_project

from infra.run.billing_spans import Span, waive_compute
from infra.run.budget import bill

HOUR_S = 3600.0
SPAN = Span(start_s=100.0, end_s=200.0, usd_per_h=1.0, compute=True)


@pytest.fixture
def runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    """A project that rents in one region of AWS."""
    vm = {"provider": "aws", "regions": ["us-east-1"], "max_price": 0.30}
    project = make_project(tmp_path / "project", vm=vm, budget={"hours": 20})
    with (
        aws(tmp_path / "state") as harness,
        cli_runner(project.folder, project.home, harness, capsys) as runner,
    ):
        yield runner


def usd_of_receipt(runner: CliRunner) -> float:
    """What the run has cost by its journal."""
    return bill(runner.state(), runner.harness.now()).usd


@pytest.mark.parametrize(
    ("ran_s", "kind", "is_free"),
    [
        (0.5 * HOUR_S, NO_CAPACITY, True),
        (0.9 * HOUR_S, BY_PRICE, True),
        (0.9 * HOUR_S, EXPERIMENT, False),
        (1.1 * HOUR_S, NO_CAPACITY, False),
    ],
)
def test_receipt_has_what_ec2_bills_of_an_interrupted_start(
    runner: CliRunner, ran_s: float, kind: str, *, is_free: bool
) -> None:
    """Interrupted within the hour it is free but for disk and address; the next start bills."""
    cloud, advance = runner.harness.cloud, runner.harness.advance
    assert runner.qft("up", "--plain").code == 0
    (machine,) = cloud.machines()
    advance(ran_s)
    cloud.interrupt(machine, notice_s=0, kind=kind)
    advance(120)
    again = runner.qft("up", "--plain")
    assert again.code == 0, again.err
    advance(600)
    gone = runner.qft("down", "--delete")

    assert gone.code == 0, gone.err
    usd = cloud.ledger.usd()
    assert usd_of_receipt(runner) == pytest.approx(usd, abs=0.003)
    assert (usd < 0.25 * ran_s / HOUR_S * 0.5 + 0.05) is is_free


def test_a_machine_that_is_released_while_ec2_takes_it_costs_no_compute(runner: CliRunner) -> None:
    """`qft down` after the notice leaves it to EC2, and the receipt says what that saves."""
    cloud = runner.harness.cloud
    assert runner.qft("up", "--plain").code == 0
    (machine,) = cloud.machines()
    runner.harness.advance(0.5 * HOUR_S)
    cloud.interrupt(machine)

    done = runner.qft("down", "--now")

    assert done.code == 0, done.err
    assert machine.reason_code == "Server.SpotInstanceShutdown"
    assert cloud.ledger.usd("compute") == 0
    assert usd_of_receipt(runner) == pytest.approx(cloud.ledger.usd(), abs=0.003)
    assert runner.qft("down", "--delete").code == 0


@pytest.mark.parametrize(
    ("from_s", "to_s", "free"),
    [(100, 200, [(100, 200)]), (50, 150, [(100, 150)]), (150, 300, [(150, 200)]), (200, 300, [])],
)
def test_only_compute_between_the_two_times_is_free(
    from_s: float, to_s: float, free: list[tuple[float, float]]
) -> None:
    """The hours stay as they were, whole; what was there beside the compute still costs."""
    spans = waive_compute((SPAN,), from_s=from_s, to_s=to_s, usd_per_h=0.02)

    assert [(one.start_s, one.end_s) for one in spans if one.usd_per_h == 0.02] == free
    assert sum((one.end_s or 0) - one.start_s for one in spans) == 100
    assert all(one.compute for one in spans)
