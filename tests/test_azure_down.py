"""What `down` leaves is priced, nothing hides from it, and a switch is set from the start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from arm import Disruption, DisruptionKind
from arm.harness import T4, AzureHarness, azure, spec
from arm.replies import ArmError, Reply
from arm.runner import CliRunner, cli_runner
from arm.world import SUBSCRIPTION
from support.runs import make_project

from commands import ls
from commands.runs.all_providers import providers_to_ask
from infra.azure import AzureProvider
from infra.errors import NotAllowed, OverQuota
from infra.offer import Want
from infra.provider import PowerState

HOUR_S = 3600.0
OTHER = "99999999-1111-2222-3333-444444444444"


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AzureHarness]:
    """A cloud that keeps the bill."""
    with azure(tmp_path / "here") as harness:
        yield harness


@pytest.fixture
def runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    """A command line in a project on Azure."""
    vm = {"provider": "azure", "regions": ["eastus"], "disk_gb": 256}
    made = make_project(tmp_path / "project", vm=vm)
    with (
        azure(tmp_path / "unused") as harness,
        cli_runner(made.folder, tmp_path / "home", harness, capsys) as runner,
    ):
        yield runner


def test_disk_is_priced_by_its_size_though_every_local_file_is_lost(runner: CliRunner) -> None:
    """Released from the tags alone, the machine's disk and address have their price per hour."""
    assert runner.qft("up", "--plain").code == 0
    shutil.rmtree(runner.home)

    result = runner.qft("down", "--all")

    assert result.code == 0, result.err
    idle = 256 * 9.6 / 128 / 730 + 0.005
    assert f"${idle:.4f}/h for the disk and address" in result.out
    assert runner.harness.cloud.ledger.billing("compute") == []


def test_remnants_are_not_called_nothing(runner: CliRunner) -> None:
    """A disk or address without a machine is still there, has a price, and goes with --delete."""
    assert runner.qft("up", "--plain").code == 0
    (vm,) = runner.harness.cloud.machines()
    arm = runner.harness.provider().context.arm
    names = (vm.group, vm.name)
    arm.begin("x", arm.compute.virtual_machines.begin_delete, *names).wait(wait_s=300)
    shutil.rmtree(runner.home)

    kept = runner.qft("down", "--all")
    gone = runner.qft("down", "--all", "--delete")

    assert "(remnants)" in kept.out
    assert "nothing of" not in kept.out
    assert (kept.code, gone.code) == (0, 0)
    assert runner.harness.cloud.leftovers() == []


def test_one_machine_that_cannot_go_does_not_keep_the_others(runner: CliRunner) -> None:
    """Under a lock it is at least deallocated, told with exit 3, and the next one is removed."""
    for run_id in ("locked-1", "free-1"):
        runner.harness.provider().create(spec(run_id=run_id))
    reply = Reply(status=409, body=ArmError(409, "ScopeLocked", "There is a lock.").body)
    path = r"/resourcegroups/qft-locked-1$"
    runner.harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.ANSWER, method="DELETE", path=path, reply=reply, times=99)
    )

    result = runner.qft("down", "--all", "--delete")

    again = runner.qft("down", "--all", "--delete", "--json")

    assert (result.code, again.code) == (3, 3)
    assert "locked-1: " in result.err
    assert "locked-1: " in again.err
    (locked,) = json.loads(again.out)
    assert "ScopeLocked" in locked["trouble"]
    assert "its compute is released, its disk and address still bill" in result.err
    assert {vm.group for vm in runner.harness.cloud.machines()} == {"qft-locked-1"}
    assert runner.harness.cloud.ledger.billing("compute") == []


def test_cloud_that_does_not_answer_hides_no_machine_of_another(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could be listed is printed, as data too; what could not is told with exit 3."""
    runner.harness.provider().create(spec())
    unchosen = runner.harness.settings(subscription_id="")
    dead = AzureProvider(unchosen, runner.home / "azure", arm=runner.harness.provider().context.arm)
    monkeypatch.setattr(ls, "providers_to_ask", lambda *_: [dead, runner.harness.provider()])

    shown, data = runner.qft("ls", "--all"), runner.qft("ls", "--all", "--json")

    assert (shown.code, data.code) == (3, 3)
    assert "qft-run-a-1" in shown.out
    assert [one["run_id"] for one in json.loads(data.out)] == ["run-a"]
    for result in (shown, data):
        assert "azure: no Azure subscription is chosen" in result.err
        assert "az account list" in result.err


def test_machine_of_another_subscription_is_refused_not_taken_for_gone(
    harness: AzureHarness,
) -> None:
    """With another subscription chosen, every act on the run names the one to choose."""
    vm = harness.provider().create(spec())
    settings = replace(harness.settings(), subscription_id=OTHER)
    arm = harness.provider().context.arm
    elsewhere = AzureProvider(
        settings, harness.state_dir, clock=harness.cloud.clock.now, sleep=harness.advance, arm=arm
    )
    acts = (
        lambda: elsewhere.observe(vm),
        lambda: elsewhere.deallocate(vm),
        lambda: elsewhere.delete(vm.run_id),
        lambda: elsewhere.create(spec(generation=2)),
    )
    before = len(harness.cloud.requests)

    for one in acts:
        with pytest.raises(NotAllowed, match=SUBSCRIPTION) as refused:
            one()
        assert f"AZURE_SUBSCRIPTION_ID={SUBSCRIPTION}" in refused.value.hint

    assert len(harness.cloud.requests) == before


def test_listing_looks_where_this_computer_has_rented(
    harness: AzureHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another subscription chosen later hides no machine of the first one."""
    home = tmp_path / "home"
    harness.provider(state_dir=home / "azure").create(spec())
    monkeypatch.setenv("AZURE_SUBSCRIPTION_ID", OTHER)

    requests = [one for one in providers_to_ask(home) if isinstance(one, AzureProvider)]

    assert {one.context.settings.subscription_id for one in requests} == {OTHER, SUBSCRIPTION}
    for one in requests:
        one.close()


def test_safeguards_are_set_before_the_machine_is_up(harness: AzureHarness) -> None:
    """A client that dies right after renting leaves a machine that ends by itself at its limit."""
    until_s = harness.cloud.clock.now() + 5 * HOUR_S
    harness.provider().create(spec(until_s=until_s))
    paths = [r.path for r in harness.cloud.requests if r.method == "PUT"]
    kinds = [path.split("/")[-2] for path in paths]

    harness.advance(24 * HOUR_S)

    assert kinds.index("virtualMachines") < kinds.index("schedules")
    assert harness.cloud.ledger.billing("compute") == []
    assert harness.cloud.ledger.usd("compute") == pytest.approx(5 * 0.149174, rel=0.02)
    assert harness.provider().delete("run-a") != []
    assert [key for key in harness.cloud.world.roles if key.startswith("roleassign")] == []


def test_quota_that_others_use_is_not_ours(harness: AzureHarness) -> None:
    """What another deployment takes counts against the pool, in offers and when it is rented."""
    want = Want(gpu="T4", regions=["eastus"], max_price_usd_per_h=0.25)
    provider = harness.provider()
    free = next(one for one in provider.offers(want) if one.size == T4 and not one.zone)
    harness.cloud.market.others["eastus"] = 98

    with pytest.raises(OverQuota, match="LowPriorityCores"):
        provider.create(spec())
    taken = next(one for one in provider.offers(want) if one.size == T4 and not one.zone)

    assert (free.quota_left, free.blocked_by) == (25, "")
    assert taken.quota_left == 0
    assert "98 of 100 vCPUs used, 4 needed" in taken.blocked_by
    assert harness.cloud.leftovers() == []
    assert provider.observe(harness.provider().create(spec(region="westus2"))).power is (
        PowerState.RUNNING
    )
