"""A run over the simulated Azure and the simulated AWS: the real command line and both SDKs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from arm.harness import AzureHarness, azure
from arm.runner import CommandLine
from arm.runner import ObedientWorkload as AzureWorkload
from ec2.harness import AwsHarness, aws
from ec2.runner import ObedientWorkload as AwsWorkload
from support.runs import make_project
from support.two_clouds import in_step, maker

from commands import down
from commands.runs import release_run, session
from commands.runs.planning import make_page
from infra.aws.registration import AwsRegistration
from infra.azure.registration import AzureRegistration
from infra.provider import Vm
from infra.run.budget import bill, bills_by_provider
from infra.run.fold import fold
from infra.run.workload import JobView

ROOT = Path(__file__).resolve().parent.parent
REGIONS = ["eastus", "westus2", "us-east-1"]


@dataclass
class BothWorkloads:
    """A machine's inside that answers as soon as its own cloud says that it runs."""

    azure: AzureWorkload
    aws: AwsWorkload

    def _of(self, vm: Vm) -> AzureWorkload | AwsWorkload:
        return self.azure if vm.provider == "azure" else self.aws

    def home_step(self) -> int:
        """Nothing has come home."""
        return 0

    def connect(self, vm: Vm) -> None:
        """Answer if it runs."""
        self._of(vm).connect(vm)

    def prepare(self, vm: Vm) -> None:
        """Nothing to do."""
        self._of(vm).prepare(vm)

    def job_status(self, vm: Vm) -> JobView:
        """No trainer runs."""
        return self._of(vm).job_status(vm)

    def make_host_key(self, vm: Vm) -> str:
        """The machine's next host key: the one it has."""
        return vm.host_public_key

    def use_host_key(self, vm: Vm, public_key: str) -> None:
        """Nothing to do."""

    def set_time_limit(self, vm: Vm, until_s: float) -> None:
        """Nothing watches here."""

    def save_and_pull(self, vm: Vm) -> None:
        """Nothing was trained."""

    def disconnect(self) -> None:
        """Nothing is kept open."""


@dataclass(frozen=True, kw_only=True)
class TwoClouds(CommandLine):
    """A command line between two clouds whose time is one."""

    azure: AzureHarness
    aws: AwsHarness
    folder: Path

    def advance(self, seconds: float) -> None:
        """Let time pass in both."""
        self.aws.advance(seconds)

    def fill_azure(self) -> None:
        """Evict the machine on Azure without notice, and leave no room in its regions."""
        (machine,) = self.azure.cloud.machines()
        self.azure.cloud.evict(machine, notice_s=0)
        for region in ("eastus", "westus2"):
            self.azure.set_capacity(region, free=False)
        self.advance(1)

    def usd(self) -> float:
        """What both clouds have on their ledgers."""
        return self.azure.cloud.ledger.usd() + self.aws.cloud.ledger.usd()


@pytest.fixture
def both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[TwoClouds]:
    """A project that may rent on either cloud, Azure's T4 being the cheaper one."""
    vm = {"provider": ["azure", "aws"], "regions": REGIONS, "max_price": 0.30}
    made = make_project(tmp_path / "project", vm=vm, budget={"hours": 20})
    home = tmp_path / "home"
    with ExitStack() as stack:
        one = stack.enter_context(azure(tmp_path / "a"))
        two = stack.enter_context(aws(tmp_path / "b"))
        in_step(one, two)
        clock = SimpleNamespace(
            time=two.now, sleep=two.advance, monotonic=two.now,
            strftime=time.strftime, gmtime=time.gmtime,
        )  # fmt: skip
        workload = BothWorkloads(azure=AzureWorkload(one), aws=AwsWorkload(two))
        for registration, harness in ((AzureRegistration, one), (AwsRegistration, two)):
            stack.enter_context(mock.patch.object(registration, "make", maker(harness)))
        for module in (session, make_page, down, release_run):
            stack.enter_context(mock.patch.object(module, "time", clock))
        stack.enter_context(mock.patch.object(session, "build_workload", return_value=workload))
        stack.enter_context(mock.patch.dict("os.environ", {"QFT_HOME": str(home)}))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.chdir(made.folder)
        yield TwoClouds(home=home, capture=capsys, azure=one, aws=two, folder=made.folder)


def begin(both: TwoClouds) -> None:
    """`qft up` ends with a machine."""
    up = both.qft("up", "--plain")
    assert up.code == 0, up.err


def test_a_run_moves_from_azure_to_aws_with_one_bill(both: TwoClouds) -> None:
    """Both of Azure's regions gone, it goes on at AWS; the bill is that of both ledgers."""
    begin(both)
    assert [vm.provider for vm in [both.state().vm] if vm] == ["azure"]
    both.advance(3600)
    both.fill_azure()

    moved = both.qft("up", "--plain")

    assert moved.code == 0, moved.err
    vm = both.state().vm
    assert vm is not None
    assert (vm.provider, both.azure.cloud.leftovers()) == ("aws", [])
    assert "from azure to aws" in moved.err
    both.advance(1800)
    gone = both.qft("down", "--delete")
    assert gone.code == 0, gone.err
    assert (both.aws.cloud.leftovers(), both.aws.cloud.ledger.billing()) == ([], [])
    state = fold(both.events())
    bills = bills_by_provider(state, both.aws.now())
    assert list(bills) == ["azure", "aws"]
    assert bill(state, both.aws.now()).usd == pytest.approx(both.usd(), abs=0.01)
    shown = both.qft("status", "--json")
    receipt = json.loads(shown.out)
    assert [one["provider"] for one in receipt["providers"]] == ["azure", "aws"]


def test_all_machines_of_both_clouds_are_listed_and_released(both: TwoClouds) -> None:
    """`ls --all` names both; one that cannot be asked is named, and hides nothing of the other."""
    begin(both)

    listed = both.qft("ls", "--all", "--json")
    assert (listed.code, [one["provider"] for one in json.loads(listed.out)]) == (0, ["azure"])

    both.aws.cloud.deny("ec2:*")
    half = both.qft("ls", "--all", "--json")
    assert half.code == 3
    assert [one["provider"] for one in json.loads(half.out)] == ["azure"]
    assert "aws: " in half.err
    released = both.qft("down", "--all", "--delete")
    assert released.code == 3
    assert "aws: " in released.err
    assert both.azure.cloud.leftovers() == []


def test_a_plan_has_the_offers_of_both_clouds_by_what_the_job_costs(both: TwoClouds) -> None:
    """One list, the cheapest first, each with its provider."""
    plan = json.loads(both.qft("plan", "--json").out)

    free = [one for one in plan["offers"] if not one["blocked_by"]]
    assert {one["provider"] for one in free} == {"azure", "aws"}
    assert free[0]["provider"] == "azure"
    assert plan["provider"] == "azure and aws"


def test_a_cloud_that_is_dearer_by_the_hour_alone_comes_second(both: TwoClouds) -> None:
    """With AWS's price below Azure's, the run begins there."""
    both.aws.set_price("us-east-1", 0.05)

    begin(both)

    vm = both.state().vm
    assert vm is not None
    assert (vm.provider, both.azure.cloud.machines()) == ("aws", [])


def test_aws_signed_out_leaves_azure(both: TwoClouds) -> None:
    """Nobody is signed in to AWS: the run says so when it looks for machines; Azure is rented."""
    both.aws.set_price("us-east-1", 0.05)
    with mock.patch.dict("os.environ", {"AWS_ACCESS_KEY_ID": "AKIAUNKNOWNUNKNOWN00"}):
        up = both.qft("up", "--plain")
        gone = both.qft("down", "--delete")

    assert up.code == 0, up.err
    assert "aws could not be asked" in up.err
    assert gone.code == 0, gone.err
    assert both.azure.cloud.leftovers() == []


def test_what_azure_forbids_is_rented_at_aws(both: TwoClouds) -> None:
    """What Azure forbids is not tried again there; the run goes on at AWS, and is removed there."""
    both.azure.cloud.login.forbidden = True

    begin(both)
    gone = both.qft("down", "--delete")

    assert gone.code == 0, gone.err
    assert (both.aws.cloud.leftovers(), both.aws.cloud.ledger.billing()) == ([], [])


def test_doctor_checks_both_and_one_in_order_is_enough(both: TwoClouds) -> None:
    """Every check names its provider; what one lacks is a warning while the other can rent."""
    both.aws.cloud.deny("ec2:RunInstances")

    found = json.loads(both.qft("doctor", "--json").out)

    named = {one["name"].partition(":")[0] for one in found}
    assert {"azure", "aws"} <= named
    assert not [
        one for one in found if one["name"].startswith("aws") and one["required"] and not one["ok"]
    ]


def test_a_plan_over_both_clouds_takes_less_than_three_seconds_of_cpu(both: TwoClouds) -> None:
    """What the SDKs, the catalogs and the prices of both take is bounded; imports are counted."""
    program = (
        "import sys, time; sys.argv = ['qft', 'plan', '--json']; import cli\n"
        "try:\n    cli.main()\nexcept SystemExit as ended:\n"
        "    print(time.process_time(), ended.code, file=sys.stderr)\n"
    )
    both.aws.set_price("us-east-1", 0.05)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    assert json.loads(done.stdout)["offers"]
    cpu_s = float(done.stderr.split()[-2])
    assert cpu_s < 3.0, done.stderr
