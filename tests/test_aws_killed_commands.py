"""`qft up`, `run` and `down --delete` on AWS, killed around any request, are done by the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from ec2 import iam
from ec2.harness import AwsHarness, aws
from ec2.killing import KilledError, Killer
from ec2.runner import CliRunner, TrainingWorkload, cli_runner
from ec2.state import ACCOUNT
from support.runs import Project, make_project

from infra.aws.permissions import role_policy, trust_policy
from infra.run.budget import bill
from infra.run.fold import fold

CHANGING = ("Run", "Create", "Authorize", "Start", "Stop", "Terminate", "Cancel", "Delete", "Put")
"""How the names of requests begin that change something: of the others, an answer may be lost."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project on AWS with one region."""
    vm = {"provider": "aws", "regions": ["us-east-1"], "max_price": 0.30}
    folder = tmp_path_factory.mktemp("killed") / "project"
    return make_project(folder, vm=vm, budget={"hours": 20, "usd": 5.0, "disk_days": 1})


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account whose administrator has made the role of Scheduler."""
    with aws(tmp_path / "unused") as harness:
        trust, policy = trust_policy(ACCOUNT), role_policy(ACCOUNT)
        iam.add_role(harness.cloud.world, "qft-scheduler", trust=trust, policy=policy)
        yield harness


class Attempts:
    """Runs of one command in homes of their own, each killed around another request."""

    def __init__(
        self,
        project: Project,
        folder: Path,
        harness: AwsHarness,
        capture: pytest.CaptureFixture[str],
        command: str,
    ) -> None:
        self.project = project
        self.folder = folder
        self.harness = harness
        self.capture = capture
        self.command = command.split()
        self.count = 0

    @contextmanager
    def runner(self) -> Iterator[CliRunner]:
        """A command line in a new home, with a machine if the command is to remove one."""
        self.count += 1
        home = self.folder / f"home{self.count}"
        workload = TrainingWorkload(self.harness, out=self.project.out, train_s=40.0)
        with cli_runner(self.project.folder, home, self.harness, self.capture, workload) as runner:
            if self.command[0] == "down":
                assert runner.qft("up", "--plain").code == 0
            yield runner

    def requests(self) -> list[str]:
        """The requests of the command when nobody kills it; nothing is left of it."""
        with self.runner() as runner:
            killer = self.harness.killer = Killer()
            done = runner.qft(*self.command)
            self.harness.killer = None
            assert done.code == 0, done.err
            runner.qft("down", "--delete")
        return killer.sent

    def check(self, at: int, *, answered: bool) -> None:
        """Kill the command at a request, repeat it, and remove everything."""
        made = len(self.harness.cloud.world.machines_made)
        paid = self.harness.cloud.ledger.usd()
        with self.runner() as runner:
            self.harness.killer = killer = Killer(at=at, answered=answered)
            # In a thread that looks for offers the kill ends the thread, not the command.
            with suppress(KilledError):
                runner.qft(*self.command)
            self.harness.killer = None
            words = f"killed {'after' if answered else 'before'} {killer.sent[-1]}, number {at}"
            self.harness.advance(20)

            again = runner.qft(*self.command)

            assert again.code == 0, f"{words}\n{again.err}"
            assert len(self.harness.cloud.machines()) == (self.command[0] == "up"), words
            gone = runner.qft("down", "--delete")
            assert gone.code == 0, f"{words}\n{gone.err}"
            spent = bill(fold(runner.events()), self.harness.now()).usd
            self.harness.advance(7200)
            assert self.harness.cloud.leftovers() == [], words
            assert self.harness.cloud.ledger.billing() == [], words
            assert len(self.harness.cloud.world.machines_made) == made + 1, words
            assert spent == pytest.approx(self.harness.cloud.ledger.usd() - paid, abs=0.01), words


COMMANDS = ["up --plain", "run --plain", "down --delete"]


@pytest.fixture
def attempts(
    request: pytest.FixtureRequest,
    project: Project,
    tmp_path: Path,
    harness: AwsHarness,
    capsys: pytest.CaptureFixture[str],
) -> Attempts:
    """Runs of the command that the test names."""
    return Attempts(project, tmp_path, harness, capsys, request.param)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the kill
@pytest.mark.parametrize("attempts", COMMANDS, indirect=True)
def test_command_killed_around_any_request_is_finished_by_itself(attempts: Attempts) -> None:
    """Killed before or after any request, the same command has one machine; removed, nothing."""
    sent = attempts.requests()
    assert len(sent) > 10
    for at in range(1, len(sent) + 1):
        attempts.check(at, answered=False)
        if sent[at - 1].rpartition(".")[2].startswith(CHANGING):
            attempts.check(at, answered=True)


@pytest.mark.parametrize("attempts", ["up --plain"], indirect=True)
def test_up_killed_after_its_order_has_one_machine(attempts: Attempts) -> None:
    """The answer that would have named the machine is lost: the next `up` finds the machine."""
    sent = attempts.requests()
    at = next(at for at, one in enumerate(sent, 1) if one.endswith("RunInstances"))
    attempts.check(at, answered=True)


@pytest.mark.parametrize("attempts", ["down --delete"], indirect=True)
def test_down_killed_after_its_termination_ends_clean(attempts: Attempts) -> None:
    """What is half removed is removed by the same command, and no more is counted than billed."""
    sent = attempts.requests()
    at = next(at for at, one in enumerate(sent, 1) if one.endswith("TerminateInstances"))
    attempts.check(at, answered=True)
