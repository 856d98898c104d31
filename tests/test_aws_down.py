"""`qft down` on AWS says, and provides for, that EC2 restarts what it has interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from ec2 import iam
from ec2.harness import aws
from ec2.runner import CliRunner, cli_runner
from ec2.state import ACCOUNT
from support.runs import make_project

from infra.aws.permissions import role_policy, trust_policy

WARNING = "may start it again by itself"
MINUTE_S = 60.0


@pytest.fixture
def runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    """A command line in a project on AWS, whose account has the role of Scheduler."""
    vm = {"provider": "aws", "regions": ["us-east-1"]}
    made = make_project(tmp_path / "project", vm=vm)
    with (
        aws(tmp_path / "unused") as harness,
        cli_runner(made.folder, tmp_path / "home", harness, capsys) as runner,
    ):
        trust, policy = trust_policy(ACCOUNT), role_policy(ACCOUNT)
        iam.add_role(harness.cloud.world, "qft-scheduler", trust=trust, policy=policy)
        yield runner


def interrupted(runner: CliRunner) -> None:
    """Have a machine, which EC2 takes; its zone stays full."""
    assert runner.qft("up", "--plain").code == 0
    runner.harness.advance(10 * MINUTE_S)
    runner.harness.set_capacity("us-east-1", free=False)
    (machine,) = runner.harness.cloud.machines()
    runner.harness.cloud.interrupt(machine, notice_s=0)
    runner.harness.advance(10 * MINUTE_S)
    assert machine.state == "stopped"


def test_down_of_what_ec2_interrupted_stops_what_ec2_restarts(runner: CliRunner) -> None:
    """The schedules begin at once, and end within 15 minutes what EC2 starts an hour later."""
    interrupted(runner)
    (machine,) = runner.harness.cloud.machines()

    result = runner.qft("down")

    assert result.code == 0, result.err
    assert WARNING in result.out
    assert "until the schedules of the provider stop it" in result.out
    runner.harness.advance(60 * MINUTE_S)
    runner.harness.set_capacity("us-east-1", free=True)
    launches = machine.launches
    for _ in range(30):
        runner.harness.advance(MINUTE_S)
    assert machine.launches > launches
    assert machine.state == "stopped"


def test_down_from_the_tags_alone_says_it_too(runner: CliRunner, tmp_path: Path) -> None:
    """Without a record here the limit of the budget is not known: the warning names nothing."""
    interrupted(runner)
    (tmp_path / "home").rename(tmp_path / "lost")

    result = runner.qft("down", "--all", "--provider", "aws", "--json")

    assert result.code == 0, result.err
    assert [one["may_restart"] for one in json.loads(result.out)] == [True]


def test_down_of_what_runs_warns_of_nothing(runner: CliRunner) -> None:
    """EC2 restarts nothing that was stopped by its user."""
    assert runner.qft("up", "--plain").code == 0
    runner.harness.advance(10 * MINUTE_S)

    result = runner.qft("down")

    assert result.code == 0, result.err
    assert WARNING not in result.out
    assert runner.harness.cloud.ledger.billing("compute") == []
