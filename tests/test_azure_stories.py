"""Stories of the first dollar: each ends with the documented exit code and an empty ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from arm import Disruption, DisruptionKind, vm_power
from arm.harness import azure
from arm.replies import ArmError, Request
from arm.runner import CliRunner, ObedientWorkload, cli_runner
from support.runs import make_project

from infra.durable import append_line
from infra.provider import Vm
from infra.run import journal as journals
from infra.run.budget import bill
from infra.run.journal import Kind
from infra.run.workload import HostUnreachable

CODES = ["AllocationFailed", "OverconstrainedAllocationRequest", "OperationNotAllowed"]


@pytest.fixture
def runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    """A command line in a project on Azure with two regions."""
    vm = {"provider": "azure", "regions": ["eastus", "westus2"]}
    made = make_project(tmp_path / "project", vm=vm)
    with (
        azure(tmp_path / "unused") as harness,
        cli_runner(made.folder, tmp_path / "home", harness, capsys) as runner,
    ):
        yield runner


def end(runner: CliRunner) -> None:
    """`qft down --delete` ends well, with nothing left that bills."""
    gone = runner.qft("down", "--delete")
    assert gone.code == 0, gone.err
    assert runner.harness.cloud.leftovers() == []
    assert runner.harness.cloud.ledger.billing() == []


def sell_out(runner: CliRunner, code: str, *, after_s: float) -> None:
    """Let everything in the first region be accepted, and refused that much later."""
    market = runner.harness.cloud.market
    for size in ("standard_nc4as_t4_v3", "standard_nc8as_t4_v3", "standard_nc16as_t4_v3"):
        market.sold_out[size, "eastus"] = code
    market.fail_s = after_s


def evict(runner: CliRunner) -> None:
    """Take the machine away without notice."""
    (machine,) = runner.harness.cloud.machines()
    runner.harness.cloud.evict(machine, notice_s=0)
    runner.harness.advance(1)


@pytest.mark.parametrize("after_s", [80.0, 400.0])
@pytest.mark.parametrize("code", CODES)
def test_start_that_is_refused_late_moves_the_run_on(
    runner: CliRunner, code: str, after_s: float
) -> None:
    """Evicted once, refused late, then rented elsewhere: one eviction, and not twenty-one."""
    assert runner.qft("up", "--plain").code == 0
    evict(runner)
    sell_out(runner, code, after_s=after_s)

    up = runner.qft("up", "--plain")

    state = runner.state()
    assert up.code == 0, up.err
    assert (state.evictions, state.vm is not None and state.vm.region) == (1, "westus2")
    assert [one.kind for one in runner.events()].count(Kind.START_ACCEPTED) == 1
    end(runner)


@pytest.mark.parametrize("code", CODES)
def test_create_that_is_refused_late_moves_the_run_on(runner: CliRunner, code: str) -> None:
    """Accepted and failed after minutes, the next region is taken, and no eviction counted."""
    sell_out(runner, code, after_s=200)

    up = runner.qft("up", "--plain")

    state = runner.state()
    assert up.code == 0, up.err
    assert (state.evictions, state.vm is not None and state.vm.region) == (0, "westus2")
    end(runner)


def test_start_refused_while_nobody_looked_is_found_afterwards(runner: CliRunner) -> None:
    """Killed right after the order and typed again an hour later: refused all the same."""
    assert runner.qft("up", "--plain").code == 0
    evict(runner)
    sell_out(runner, "AllocationFailed", after_s=400)

    def die(request: Request, done: bool) -> None:  # noqa: FBT001  (the server's call)
        if done and request.path.lower().endswith("/start"):
            raise_soon.append(True)

    raise_soon: list[bool] = []
    runner.harness.cloud.server.watcher = die
    advance = runner.harness.advance

    def killed(seconds: float) -> None:
        advance(seconds)
        if raise_soon:
            raise KeyboardInterrupt

    with mock.patch.object(runner.harness, "advance", killed):
        assert runner.qft("up", "--plain").code == 130
    runner.harness.cloud.server.watcher = None
    runner.harness.advance(3600)

    up = runner.qft("up", "--plain")

    assert up.code == 0, up.err
    assert runner.state().evictions == 1
    end(runner)


@pytest.mark.parametrize("code", ["Conflict", "AnotherOperationInProgress", "OperationNotAllowed"])
def test_conflict_on_a_write_passes(runner: CliRunner, code: str) -> None:
    """What a busy object answers is asked again, when starting, releasing and removing."""
    assert runner.qft("up", "--plain").code == 0
    words = "Another operation is in progress."
    headers = {} if code != "Conflict" else {"Retry-After": "1"}
    reply = replace(ArmError(409, code, words).reply(), headers=headers)
    for method, path in (("POST", "/deallocate$"), ("POST", "/start$"), ("DELETE", "/qft-")):
        runner.harness.cloud.disruptions.add(
            Disruption(kind=DisruptionKind.ANSWER, method=method, path=path, reply=reply, times=2)
        )

    down, up = runner.qft("down"), runner.qft("up", "--plain")

    assert (down.code, up.code) == (0, 0), down.err + up.err
    end(runner)


def test_machine_that_somebody_deletes_is_cleared(runner: CliRunner) -> None:
    """Deleted in the portal while nobody drove: the next command rents anew, and ends clean."""
    assert runner.qft("up", "--plain").code == 0
    (machine,) = runner.harness.cloud.machines()
    runner.harness.cloud.world.event(
        machine, "Microsoft.Compute/virtualMachines/delete", caller="a@b.example"
    )
    runner.harness.cloud.world.drop(machine)
    runner.harness.advance(300)

    up = runner.qft("up", "--plain")

    assert up.code == 0, up.err
    assert len(runner.harness.cloud.machines()) == 1
    end(runner)


class Deleted(ObedientWorkload):
    """Its machine is deleted by somebody during the first set-up."""

    done = False

    def prepare(self, vm: Vm) -> None:
        """Lose the machine, once."""
        if not self.done:
            self.done = True
            (machine,) = self.harness.cloud.machines()
            world = self.harness.cloud.world
            world.event(machine, "Microsoft.Compute/virtualMachines/delete", caller="a@b.example")
            vm_power.hypervisor_of(world).remove(machine)
            world.drop(machine)
            self.harness.advance(150)
            raise HostUnreachable("the machine is gone")
        super().prepare(vm)


def test_machine_that_somebody_deletes_during_set_up_ends_the_run(runner: CliRunner) -> None:
    """The log names a person: nothing is rented anew, exit 130, and nothing is left."""
    with mock.patch("commands.runs.session.build_workload", return_value=Deleted(runner.harness)):
        up = runner.qft("up", "--plain")

    assert up.code == 130, up.err
    assert runner.harness.cloud.ledger.billing() == []
    end(runner)


def test_bill_is_the_ledgers_on_a_slow_control_plane(runner: CliRunner) -> None:
    """Every end is told a minute late; what is counted is what the cloud counts."""
    runner.harness.cloud.world.report_lag_s = 58.0
    assert runner.qft("up", "--plain").code == 0
    runner.harness.advance(1800)
    assert runner.qft("down").code == 0
    runner.harness.advance(600)
    assert runner.qft("up", "--plain").code == 0
    runner.harness.advance(900)
    end(runner)

    ledger = runner.harness.cloud.ledger
    hours = sum(one.hours for one in ledger.charges if one.kind == "compute")
    counted = bill(runner.state(), runner.harness.now()).compute_h
    assert counted * 3600 == pytest.approx(hours * 3600, abs=8)


class Dead(BaseException):
    """SIGKILL: nothing of ours may catch it."""


def test_killed_before_each_write_it_ends_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dead before or after any line of the journal, `down --delete` leaves an empty ledger."""
    write = append_line
    made = make_project(tmp_path / "project", vm={"provider": "azure", "regions": ["eastus"]})
    with azure(tmp_path / "unused") as harness:
        at, lines = 0, 99
        while at < 2 * lines:
            at += 1
            count = 0

            def dying(path: Path, line: str, at: int = at) -> None:
                nonlocal count
                count += 1
                if count == (at + 1) // 2 and at % 2:
                    raise Dead
                write(path, line)
                if count == (at + 1) // 2:
                    raise Dead

            home = tmp_path / f"home{at}"
            with cli_runner(made.folder, home, harness, capsys) as runner:
                with mock.patch.object(journals, "append_line", dying):
                    try:
                        code = runner.qft("up", "--plain").code
                    except Dead:
                        code = -9
                if code == 0:  # it was over before that line
                    lines = count
                gone = runner.qft("down", "--all", "--delete")

            assert gone.code == 0, f"{at}: {gone.err}"
            assert harness.cloud.leftovers() == [], at
            assert harness.cloud.ledger.billing() == [], at
        assert lines >= 6
