"""Cap and budget of now are those at the cloud: raised, lowered, passed by the market."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from arm.harness import T4, AzureHarness, azure, spec
from arm.killing import KilledError, MortalTransport
from arm.market import SIZES
from arm.runner import CliRunner, cli_runner
from support.runs import make_project

from infra.errors import PriceAboveCap
from infra.provider import PowerState
from infra.run.budget import bill
from infra.run.journal import Kind

REGIONS = ["eastus", "westus2"]


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AzureHarness]:
    """A cloud in which a T4 costs 0.149 USD an hour."""
    with azure(tmp_path / "here") as harness:
        yield harness


@pytest.fixture
def runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    """A command line in a project under a cap of 0.25 USD an hour."""
    made = make_project(
        tmp_path / "project",
        vm={"provider": "azure", "regions": REGIONS},
        budget={"usd": 50.0, "hours": 100},
    )
    with (
        azure(tmp_path / "unused") as harness,
        cli_runner(made.folder, tmp_path / "home", harness, capsys) as runner,
    ):
        yield runner


def set_cap(cap: float) -> None:
    """Edit the run.yaml of the folder we are in."""
    path = Path("run.yaml")
    text = path.read_text()
    assert "max_price: 0.25" in text
    path.write_text(text.replace("max_price: 0.25", f"max_price: {cap}"))


def set_budget(usd: float) -> None:
    """Edit the budget in it."""
    path = Path("run.yaml")
    text = path.read_text()
    assert "usd: 50.0" in text
    path.write_text(text.replace("usd: 50.0", f"usd: {usd}"))


def cap_at_cloud(harness: AzureHarness) -> float:
    """What Azure holds for the one machine."""
    (vm,) = harness.cloud.machines()
    return float(vm.properties["billingProfile"]["maxPrice"])


def test_deallocated_machine_takes_another_cap_and_starts_under_it(harness: AzureHarness) -> None:
    """Refused under the old cap with the price of now, the machine starts under a higher one."""
    provider = harness.provider()
    vm = provider.create(spec())
    provider.deallocate(vm)
    harness.cloud.set_price(T4, "eastus", 0.30)

    with pytest.raises(PriceAboveCap) as refused:
        provider.start(vm)
    held = provider.update_max_price(vm, 0.40)
    provider.start(vm)

    assert refused.value.current_usd_per_h == 0.30
    assert (held, cap_at_cloud(harness)) == (0.40, 0.40)
    assert provider.observe(vm).power is PowerState.RUNNING


def test_running_machine_keeps_its_cap_and_that_is_reported(harness: AzureHarness) -> None:
    """Azure does not change the cap of a machine that is up; the answer is the cap in force."""
    provider = harness.provider()
    vm = provider.create(spec())

    held = provider.update_max_price(vm, 0.20)

    assert (held, cap_at_cloud(harness)) == (0.25, 0.25)
    assert provider.update_max_price(vm, 0.25) == 0.25
    assert [r.method for r in harness.cloud.requests if r.method == "PATCH"] == []


def test_cap_below_the_market_is_refused_with_the_price_of_now(harness: AzureHarness) -> None:
    """A cap that the market is above already is not taken over silently."""
    provider = harness.provider()
    vm = provider.create(spec())
    provider.deallocate(vm)

    with pytest.raises(PriceAboveCap, match=r"0\.149174"):
        provider.update_max_price(vm, 0.10)

    assert cap_at_cloud(harness) == 0.25


def test_machine_of_a_killed_create_is_not_kept_under_another_cap(harness: AzureHarness) -> None:
    """Killed after the machine was accepted and called again with a lower cap: one, under that."""
    transport = MortalTransport(harness.settings(), harness.advance)
    harness.provider(transport=transport).create(spec(run_id="count"))
    last = len(transport.sent)
    dying = MortalTransport(harness.settings(), harness.advance, at=last, answered=True)
    with pytest.raises(KilledError):
        harness.provider(transport=dying).create(spec())
    harness.advance(120)

    vm = harness.provider().create(spec(max_price_usd_per_h=0.2))

    ours = [one for one in harness.cloud.machines() if "run-a" in one.id]
    assert [one.properties["billingProfile"]["maxPrice"] for one in ours] == [0.2]
    assert harness.provider().observe(vm).power is PowerState.RUNNING


def test_raised_cap_lets_a_run_go_on_that_the_market_had_stopped(runner: CliRunner) -> None:
    """`down`, the price rises everywhere, the user raises the cap: the same machine comes up."""
    assert runner.qft("up", "--plain").code == 0
    assert runner.qft("down").code == 0
    for region in REGIONS:
        for size in SIZES.values():
            runner.harness.cloud.set_price(size.name, region, 0.30)
    set_cap(0.4)

    result = runner.qft("up", "--plain")

    assert result.code == 0, result.err
    assert cap_at_cloud(runner.harness) == 0.4
    assert len(runner.harness.cloud.world.machines_made) == 1


def test_lowered_cap_of_a_running_machine_is_reported_as_not_in_force(runner: CliRunner) -> None:
    """The user reads that Azure still holds the old cap, and what changes it."""
    assert runner.qft("up", "--plain").code == 0
    set_cap(0.2)
    runner.harness.advance(7 * 3600)

    result = runner.qft("up", "--plain")

    assert result.code == 0, result.err
    (line,) = [one for one in result.err.splitlines() if "does NOT end the bill: price cap" in one]
    assert "the machine's is 0.25 USD/h, not the 0.2 USD/h asked for" in line
    assert "qft down" in line


def test_price_that_passes_the_cap_at_a_restart_moves_the_run(runner: CliRunner) -> None:
    """Stopped, and dearer than the cap where it stands: `up` says so and rents elsewhere."""
    assert runner.qft("up", "--plain").code == 0
    assert runner.qft("down").code == 0
    for size in SIZES.values():
        runner.harness.cloud.set_price(size.name, "eastus", 0.30)

    result = runner.qft("up", "--plain")

    assert result.code == 0, result.err
    (line,) = [one for one in result.err.splitlines() if "refused: " in one]
    assert "PriceAboveCap" in line
    assert "0.3 USD/h" in line
    assert {vm.location for vm in runner.harness.cloud.machines()} == {"westus2"}


def test_price_above_the_cap_everywhere_is_waited_for(runner: CliRunner) -> None:
    """Too dear everywhere: nothing is made, the price is told, and the machine is rented later."""
    cloud = runner.harness.cloud
    for region in REGIONS:
        for size in SIZES.values():
            cloud.market.prices[size.name.lower(), region] = 0.30
    cloud.world.after(3 * 3600, cloud.market.prices.clear)

    result = runner.qft("up", "--plain")

    assert result.code == 0, result.err
    assert "costs 0.3000 USD/h now, above the cap of 0.2500" in result.err
    waited_h = (cloud.clock.now() - runner.events()[0].at_s) / 3600
    assert 3 < waited_h < 4
    assert [one for one in runner.events() if one.kind is Kind.CREATE_FAILED] == []
    assert cloud.ledger.usd("compute") < 0.149174 * (waited_h - 3) + 0.01


def test_budget_of_now_reaches_a_machine_that_runs(runner: CliRunner) -> None:
    """Lowered while the machine is up, the budget moves what ends the bill without us."""
    assert runner.qft("up", "--plain").code == 0
    set_budget(1.0)
    runner.harness.advance(60)

    result = runner.qft("up", "--plain")

    assert result.code == 0, result.err
    left_s = runner.state().safeguards_until_s - runner.harness.cloud.clock.now()
    assert 3 * 3600 < left_s < 1.0 / 0.25 * 3600
    assert "ends the bill: self-release" in result.err


def test_budget_counts_all_that_the_cloud_bills(runner: CliRunner) -> None:
    """While the machine runs its disk and address cost, too: the run's sum is the ledger's."""
    assert runner.qft("up", "--plain").code == 0
    runner.harness.advance(10 * 3600)
    assert runner.qft("down").code == 0
    runner.harness.advance(10 * 3600)

    used = bill(runner.state(), runner.harness.cloud.clock.now())

    assert used.usd == pytest.approx(runner.harness.cloud.ledger.usd(), rel=0.02)
