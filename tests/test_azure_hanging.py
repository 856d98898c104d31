"""Compute ends within seconds of a removal's begin, whatever becomes of the resource group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from arm import Disruption, DisruptionKind
from arm.harness import AzureHarness, azure, spec
from arm.replies import ArmError
from arm.runner import CliRunner, cli_runner
from support.runs import make_project

from infra.errors import Transient
from infra.retry import with_retries
from infra.timestamps import parse_utc_s


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AzureHarness]:
    """A cloud that keeps the bill, with one machine."""
    with azure(tmp_path / "here") as harness:
        harness.provider().create(spec())
        harness.advance(60)
        yield harness


@pytest.fixture
def runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    """A command line in a project on Azure, with a machine that is up."""
    vm = {"provider": "azure", "regions": ["eastus"]}
    made = make_project(tmp_path / "project", vm=vm)
    with (
        azure(tmp_path / "unused") as harness,
        cli_runner(made.folder, tmp_path / "home", harness, capsys) as runner,
    ):
        assert runner.qft("up", "--plain").code == 0
        yield runner


def test_hanging_group_bills_no_compute_and_is_given_up(harness: AzureHarness) -> None:
    """Released first, then a line a minute, then an end that is not waited for again."""
    harness.cloud.world.hangs_groups = True
    before, began_s, messages = harness.cloud.ledger.usd("compute"), harness.now(), list[str]()

    def delete() -> object:
        return harness.provider().delete("run-a", messages.append)

    with pytest.raises(Transient, match="given up after 30 min") as caught:
        with_retries(delete, harness.advance)

    spent = harness.cloud.ledger.usd("compute") - before
    assert spent / 0.149174 * 3600 < 60
    assert harness.now() - began_s == pytest.approx(1800, abs=60)
    assert [one for one in messages if "3 min" in one] != []
    assert 25 <= len([one for one in messages if "removing the resource group" in one]) <= 31
    assert "compute is released" in str(caught.value)
    assert "`qft down --delete`" in caught.value.hint

    harness.cloud.world.unhang()
    harness.provider().delete("run-a")

    assert harness.cloud.leftovers() == []


def test_end_of_the_compute_is_dated(harness: AzureHarness) -> None:
    """What is removed says since when it bills no compute, long before its group was gone."""
    machine = harness.cloud.machines()[0]
    removed = harness.provider().delete("run-a")

    charges = [one for one in harness.cloud.ledger.charges if one.kind == "compute"]
    ended_s = machine.born_s + sum(one.hours for one in charges) * 3600
    (vm,) = [one for one in removed if one.kind == "virtual machine"]
    assert parse_utc_s(vm.billed_until) == pytest.approx(ended_s, abs=3)
    assert harness.now() - ended_s > 60


def test_machine_that_is_being_made_is_removed_by_force(tmp_path: Path) -> None:
    """Azure deallocates no machine that it is making, so its end is asked for in another way."""
    with azure(tmp_path / "here") as harness:
        harness.changes["accept_wait_s"] = 1.0
        harness.provider().create(spec())
        harness.cloud.world.hangs_groups = True

        with pytest.raises(Transient, match="given up"):
            harness.provider().delete("run-a")

        assert harness.cloud.ledger.billing("compute") == []


@pytest.mark.parametrize("code", ["Conflict", "AnotherOperationInProgress", "OperationNotAllowed"])
def test_refused_release_does_not_keep_the_group(harness: AzureHarness, code: str) -> None:
    """Where neither way to end the compute is open just now, the group is removed all the same."""
    reply = ArmError(409, code, "Another operation is in progress.").reply()
    for method, path in (("POST", "/deallocate$"), ("DELETE", "virtualMachines/[^/]+$")):
        harness.cloud.disruptions.add(
            Disruption(kind=DisruptionKind.ANSWER, method=method, path=path, reply=reply, times=9)
        )

    harness.provider().delete("run-a")

    assert harness.cloud.leftovers() == []


def test_interrupted_removal_says_what_is_left(harness: AzureHarness) -> None:
    """Ctrl-C during the wait tells that compute is released and what to type."""
    harness.cloud.world.hangs_groups = True
    messages: list[str] = []

    def on_message(words: str) -> None:
        messages.append(words)
        if "3 min" in words:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harness.provider().delete("run-a", on_message)

    assert "the compute is released" in messages[-1]
    assert "`qft down --delete`" in messages[-1]


def test_command_gives_up_with_exit_3_and_finishes_later(runner: CliRunner) -> None:
    """The command tells each minute, then what bills and what to type; repeated, it proves."""
    runner.harness.cloud.world.hangs_groups = True

    hung = runner.qft("down", "--delete")
    compute = runner.harness.cloud.ledger.billing("compute")
    state = runner.state()
    runner.harness.cloud.world.unhang()
    done = runner.qft("down", "--delete")

    assert (hung.code, compute) == (3, [])
    assert "removing the resource group" in hung.err
    assert "disk and address bill until then" in hung.err
    assert "qft down --delete" in hung.err
    assert state.deleted is False
    assert done.code == 0, done.err
    assert runner.harness.cloud.leftovers() == []
    assert runner.state().deleted is True


def test_command_that_is_interrupted_says_what_is_left(runner: CliRunner) -> None:
    """Ctrl-C in `qft down --delete` is exit 130, with the rest of the bill told."""
    runner.harness.cloud.world.hangs_groups = True
    began_s, advance = runner.harness.now(), runner.harness.advance

    def press(seconds: float) -> None:
        advance(seconds)
        if runner.harness.now() - began_s > 200:
            raise KeyboardInterrupt

    with mock.patch.object(runner.harness, "advance", press):
        messages = runner.qft("down", "--delete")

    assert messages.code == 130
    assert "the compute is released" in messages.err
