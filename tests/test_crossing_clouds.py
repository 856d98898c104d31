"""A run from Azure to AWS with real machines: the command line, both SDKs, SSH, trainer, bill."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from arm import LocalHypervisor
from arm.harness import AzureHarness, azure
from arm.market import SIZES
from arm.runner import CommandLine
from ec2.guests import Ec2Guests
from ec2.harness import AwsHarness, aws
from support.runs import Project, make_project
from support.two_clouds import in_step, maker

from commands import down
from commands.runs import release_run, session
from commands.runs.planning import make_page
from infra.aws.registration import AwsRegistration
from infra.azure.registration import AzureRegistration
from infra.run.journal import Kind
from infra.run.plan import Policy

LOG = logging.getLogger(__name__)
PACE = 40.0
"""How much faster the clouds' time runs than that of the machines, while the run waits."""
STEPS = 400
POLICY = Policy(poll_s=20.0, silent_max_s=7200.0, unreachable_wait_s=3600.0, boot_wait_s=7200.0)
"""The patience of a run whose machines live slower than its clouds, by `PACE`."""


@dataclass
class Evictions:
    """Takes the run's machines: one place after the other, each for good, but for the last."""

    azure: AzureHarness
    aws: AwsHarness
    folder: Path
    """Where the machines are."""
    taken: list[str] = field(default_factory=list)
    """From which places, in order."""

    def take_due(self) -> None:
        """Take what has come far enough."""
        if not self.taken and self.is_at("eastus", 60):
            self.take_azure("eastus", notice_s=30)
        elif len(self.taken) == 1 and self.is_at("westus2", 140):
            self.take_azure("westus2", notice_s=0)
        elif len(self.taken) == 2:
            for machine in self.aws.cloud.machines():
                if machine.state == "running" and self.step(machine.id) >= 200:
                    self.taken.append(machine.region)
                    self.aws.cloud.interrupt(machine, notice_s=60)

    def is_at(self, region: str, step: int) -> bool:
        """Whether the machine in a region of Azure has come so far."""
        here = [one for one in self.azure.cloud.machines() if one.location == region]
        return any(self.step(one.name) >= step for one in here)

    def take_azure(self, region: str, *, notice_s: float) -> None:
        """Evict the machine there, and leave no room in the region."""
        self.taken.append(region)
        for size in SIZES:
            self.azure.cloud.market.sold_out[size, region] = "AllocationFailed"
        (machine,) = self.azure.cloud.machines()
        self.azure.cloud.evict(machine, notice_s=notice_s)

    def step(self, name: str) -> int:
        """How far the trainer on a machine is."""
        for status in self.folder.glob(f"*/{name}/disk/qft/*/run/status.json"):
            return int(json.loads(status.read_text()).get("step") or 0)
        return 0


@dataclass(frozen=True, kw_only=True)
class Crossing(CommandLine):
    """A command line between two clouds with real machines."""

    project: Project
    azure: AzureHarness
    aws: AwsHarness
    evictions: Evictions


@pytest.fixture
def crossing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Crossing]:
    """A project that may rent on either cloud, Azure's two regions being the cheaper ones."""
    regions = ["eastus", "westus2", "us-east-1"]
    vm = {"provider": ["azure", "aws"], "regions": regions, "max_price": 0.30}
    project = make_project(
        tmp_path / "project", vm=vm, budget={"hours": 20}, train={"steps": STEPS}
    )
    guests = tmp_path / "guests"
    azure_guests = LocalHypervisor(guests / "azure", pace=PACE)
    aws_guests = Ec2Guests(guests / "aws", pace=PACE)
    with ExitStack() as stack:
        one = stack.enter_context(azure(tmp_path / "a", hypervisor=azure_guests))
        two = stack.enter_context(aws(tmp_path / "b", hypervisor=aws_guests))
        in_step(one, two)
        evictions = Evictions(azure=one, aws=two, folder=guests)

        def sleep(seconds: float) -> None:
            two.advance(seconds)
            time.sleep(seconds / PACE)
            evictions.take_due()

        clock = SimpleNamespace(
            time=two.now, sleep=sleep, monotonic=two.now,
            strftime=time.strftime, gmtime=time.gmtime,
        )  # fmt: skip
        for registration, harness in ((AzureRegistration, one), (AwsRegistration, two)):
            stack.enter_context(mock.patch.object(registration, "make", maker(harness)))
        for module in (session, make_page, down, release_run):
            stack.enter_context(mock.patch.object(module, "time", clock))
        stack.enter_context(mock.patch.object(session, "policy_of", return_value=POLICY))
        stack.enter_context(mock.patch.dict("os.environ", project.environment()))
        stack.enter_context(pytest.MonkeyPatch.context()).chdir(project.folder)
        yield Crossing(
            home=project.home,
            capture=capsys,
            project=project,
            azure=one,
            aws=two,
            evictions=evictions,
        )


def undisturbed(project: Project, folder: Path) -> Project:
    """The same training in one go, on a machine that this computer plays."""
    shutil.copytree(project.folder / "model", folder / "model")
    alone = make_project(folder, train={"steps": STEPS})
    done = alone.qft("run", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    return alone


@pytest.mark.slow
def test_a_run_loses_both_regions_of_azure_and_ends_on_aws(
    crossing: Crossing, tmp_path: Path
) -> None:
    """The adapter is bit for bit that of an undisturbed run, and one receipt has both ledgers.

    Taken with notice and moved, taken without and moved to the other cloud, interrupted there in
    what is the first hour on any but a very slow computer, which EC2 does not bill. Nothing is left
    of it, and nothing bills.
    """
    began_s = time.monotonic()
    done = crossing.qft("run", "--json", "--plain")
    LOG.info("ran for %.0f s", time.monotonic() - began_s)

    assert done.code == 0, done.err[-5000:]
    receipt: dict[str, Any] = json.loads(done.out)
    ledgers = {
        "azure": crossing.azure.cloud.ledger.usd(),
        "aws": crossing.aws.cloud.ledger.usd(),
    }
    LOG.info("receipt %s of %s, ledgers %s", receipt["usd"], receipt["providers"], ledgers)
    stops = [event.data for event in crossing.events() if event.kind is Kind.STOP_SEEN]
    assert crossing.evictions.taken == ["eastus", "westus2", "us-east-1"]
    charges, interrupted = crossing.aws.cloud.ledger.charges, crossing.aws.cloud.world.machines_made
    billed = ("compute", interrupted[0]) in {(one.kind, one.id) for one in charges}
    assert ["waived_since_s" in one for one in stops] == [False, False, not billed]
    assert receipt["evictions"] == 3
    assert receipt["usd"] == pytest.approx(sum(ledgers.values()), abs=0.005)
    assert {one["provider"]: one["usd"] for one in receipt["providers"]} == pytest.approx(
        ledgers, abs=0.005
    )
    alone = undisturbed(crossing.project, tmp_path / "alone")
    LOG.info("adapter %s", hashlib.sha256(crossing.project.tensors()).hexdigest())
    LOG.info("alone %s", hashlib.sha256(alone.tensors()).hexdigest())
    assert crossing.project.tensors() == alone.tensors()
    assert crossing.project.losses() == alone.losses()
    assert json.loads(crossing.qft("ls", "--all", "--json").out) == []
    gone = crossing.qft("down", "--all", "--delete")
    assert gone.code == 0, gone.err
    for harness in (crossing.azure, crossing.aws):
        assert (harness.cloud.leftovers(), harness.cloud.ledger.billing()) == ([], [])
