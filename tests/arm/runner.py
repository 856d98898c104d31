"""The real command line in this process, on the simulated cloud's clock; machines obey."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

import cli
from arm.harness import AzureHarness
from commands import down
from commands.runs import release_run, session
from commands.runs.planning import make_page
from infra.azure.registration import AzureRegistration
from infra.provider import Vm
from infra.run.fold import fold
from infra.run.journal import Event, read
from infra.run.state import RunState
from infra.run.workload import HostUnreachable, JobPhase, JobView


@dataclass(frozen=True, kw_only=True)
class CliResult:
    """What one command printed, and how it ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """`qft` in a project's folder. Everything is real but time and the inside of the machine."""

    home: Path
    capture: pytest.CaptureFixture[str]

    def qft(self, *arguments: str) -> CliResult:
        """Run one command to its end; SystemExit is how it ends."""
        self.capture.readouterr()
        with mock.patch.object(sys, "argv", ["qft", *arguments]):
            try:
                cli.main()
            except SystemExit as ended:
                code = ended.code
        caught = self.capture.readouterr()
        assert isinstance(code, int)
        return CliResult(code=code, out=caught.out, err=caught.err)

    def events(self) -> list[Event]:
        """What the journal of the one run says."""
        (journal,) = (self.home / "runs").glob("*/journal.jsonl")
        return read(journal)

    def state(self) -> RunState:
        """The run as its journal tells it."""
        return fold(self.events())


@dataclass(frozen=True, kw_only=True)
class CliRunner(CommandLine):
    """A command line in the simulated Azure."""

    harness: AzureHarness


@contextmanager
def cli_runner(
    folder: Path, home: Path, harness: AzureHarness, capture: pytest.CaptureFixture[str]
) -> Iterator[CliRunner]:
    """A command line whose waits take simulated time."""
    clock = SimpleNamespace(
        time=harness.cloud.clock.now,
        sleep=harness.advance,
        monotonic=harness.cloud.clock.now,
        strftime=time.strftime,
        gmtime=time.gmtime,
    )
    with (
        mock.patch.dict("os.environ", {"QFT_HOME": str(home)}),
        mock.patch.object(
            AzureRegistration,
            "make",
            lambda _self, _vm, state_dir, _environment: harness.provider(state_dir=state_dir),
        ),
        mock.patch.object(session, "time", clock),
        mock.patch.object(make_page, "time", clock),
        mock.patch.object(down, "time", clock),
        mock.patch.object(release_run, "time", clock),
        mock.patch.object(session, "build_workload", return_value=ObedientWorkload(harness)),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.chdir(folder)
        yield CliRunner(home=home, harness=harness, capture=capture)


@dataclass
class ObedientWorkload:
    """A machine's inside that answers as soon as the machine runs."""

    harness: AzureHarness

    def home_step(self) -> int:
        """Nothing has come home."""
        return 0

    def connect(self, vm: Vm) -> None:
        """Answer if the cloud says that it runs."""
        power_by_id = {one.id.lower(): one.hidden["power"] for one in self.harness.cloud.machines()}
        if power_by_id.get(vm.id.lower()) != "running":
            raise HostUnreachable("no answer")

    def prepare(self, vm: Vm) -> None:
        """Nothing to do."""
        self.connect(vm)

    def job_status(self, vm: Vm) -> JobView:
        """No trainer runs."""
        self.connect(vm)
        return JobView(phase=JobPhase.ABSENT)

    def set_time_limit(self, vm: Vm, until_s: float) -> None:
        """Nothing watches here."""

    def disconnect(self) -> None:
        """Nothing is kept open."""
