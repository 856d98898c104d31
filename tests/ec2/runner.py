"""The real command line in this process, on the simulated AWS's clock; machines obey."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from arm.runner import CommandLine

from commands import down
from commands.runs import release_run, session
from commands.runs.planning import make_page
from ec2.harness import AwsHarness
from infra.aws.naming import MachineId
from infra.aws.registration import AwsRegistration
from infra.provider import Vm
from infra.run.heartbeat import Heartbeat
from infra.run.order import Group
from infra.run.workload import HostUnreachable, JobOutcome, JobPhase, JobView
from infra.timestamps import format_utc

STEP_S = 60.0
"""How long one step of a simulated training takes."""


@dataclass(frozen=True, kw_only=True)
class CliRunner(CommandLine):
    """A command line in the simulated AWS."""

    harness: AwsHarness


@contextmanager
def cli_runner(
    folder: Path,
    home: Path,
    harness: AwsHarness,
    capture: pytest.CaptureFixture[str],
    workload: ObedientWorkload | None = None,
) -> Iterator[CliRunner]:
    """A command line whose waits take simulated time; without a `workload`, no trainer runs."""
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
        mock.patch.object(release_run, "time", clock),
        mock.patch.object(
            session, "build_workload", return_value=workload or ObedientWorkload(harness)
        ),
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


@dataclass
class TrainingWorkload(ObedientWorkload):
    """A machine on which a trainer works for ten minutes, once for each disk."""

    out: Path
    ends_s: dict[str, float] = field(default_factory=dict)
    """When the trainer of each machine is done."""
    train_s: float = 600.0

    def launch(self, vm: Vm, group: Group | None = None) -> None:  # noqa: ARG002  (one machine)
        """Start the trainer unless it runs."""
        self.connect(vm)
        self.ends_s.setdefault(vm.id, self.harness.now() + self.train_s)

    def job_status(self, vm: Vm) -> JobView:
        """The trainer's state by the clock."""
        self.connect(vm)
        if vm.id not in self.ends_s:
            return JobView(phase=JobPhase.ABSENT)
        beat = Heartbeat(updated_at=format_utc(self.harness.now()))
        left = math.ceil((self.ends_s[vm.id] - self.harness.now()) / STEP_S)
        steps = math.ceil(self.train_s / STEP_S)
        if left > 0:
            step = steps - left
            return JobView(phase=JobPhase.RUNNING, step=step, steps=steps, heartbeat=beat)
        return JobView(
            phase=JobPhase.EXITED,
            outcome=JobOutcome.DONE,
            exit_code=0,
            step=steps,
            steps=steps,
            heartbeat=beat,
        )

    def fetch(self, vm: Vm) -> str:
        """Bring an adapter home."""
        self.connect(vm)
        adapter = self.out / "adapter"
        adapter.mkdir(parents=True, exist_ok=True)
        return str(adapter)
