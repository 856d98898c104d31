"""The real command line in this process, on the simulated AWS's clock; machines obey."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from arm.runner import CommandLine

from commands import down
from commands.runs import session
from commands.runs.planning import make_page
from ec2.harness import AwsHarness
from infra.aws.naming import MachineId
from infra.aws.registration import AwsRegistration
from infra.provider import Vm
from infra.run.workload import HostUnreachable, JobPhase, JobView


@dataclass(frozen=True, kw_only=True)
class CliRunner(CommandLine):
    """A command line in the simulated AWS."""

    harness: AwsHarness


@contextmanager
def cli_runner(
    folder: Path, home: Path, harness: AwsHarness, capture: pytest.CaptureFixture[str]
) -> Iterator[CliRunner]:
    """A command line whose waits take simulated time."""
    clock = SimpleNamespace(
        time=harness.now,
        sleep=harness.advance,
        monotonic=harness.clock.now,
        strftime=time.strftime,
        gmtime=time.gmtime,
    )
    with (
        mock.patch.dict("os.environ", {"QFT_HOME": str(home)}),
        mock.patch.object(
            AwsRegistration,
            "make",
            lambda _self, _vm, state_dir, _environment: harness.provider(state_dir=state_dir),
        ),
        mock.patch.object(session, "time", clock),
        mock.patch.object(make_page, "time", clock),
        mock.patch.object(down, "time", clock),
        mock.patch.object(session, "build_workload", return_value=ObedientWorkload(harness)),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.chdir(folder)
        yield CliRunner(home=home, harness=harness, capture=capture)


@dataclass
class ObedientWorkload:
    """A machine's inside that answers as soon as EC2 says that the machine runs."""

    harness: AwsHarness

    def home_step(self) -> int:
        """Nothing has come home."""
        return 0

    def connect(self, vm: Vm) -> None:
        """Answer if the cloud says that it runs."""
        found = MachineId.parse(vm.id)
        running = {one.id for one in self.harness.cloud.machines() if one.state == "running"}
        if found is None or found.instance not in running:
            raise HostUnreachable("no answer")

    def prepare(self, vm: Vm) -> None:
        """Nothing to do."""
        self.connect(vm)

    def job_status(self, vm: Vm) -> JobView:
        """No trainer runs."""
        self.connect(vm)
        return JobView(phase=JobPhase.ABSENT)

    def make_host_key(self, vm: Vm) -> str:
        """The machine's next host key: the one that it has."""
        return vm.host_public_key

    def use_host_key(self, vm: Vm, public_key: str) -> None:
        """Answer with it from now on."""

    def set_time_limit(self, vm: Vm, until_s: float) -> None:
        """Nothing watches here."""

    def save_and_pull(self, vm: Vm) -> None:
        """Nothing was trained."""
        self.connect(vm)

    def disconnect(self) -> None:
        """Nothing is kept open."""
