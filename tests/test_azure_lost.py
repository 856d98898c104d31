"""A group that lost its tag is listed, said to bill, released by id, and cleared piece by piece."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from arm.harness import AzureHarness, azure, spec
from arm.runner import CliRunner, cli_runner
from arm.world import Resource
from support.runs import make_project

from infra.errors import NotAllowed
from infra.provider import PowerState

GROUP = "qft-run-a"


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


def untag_group(harness: AzureHarness, **tags: str) -> None:
    """Somebody writes other tags on every group of ours."""
    for group in harness.cloud.world.groups.values():
        group.tags = dict(tags)


def pieces(harness: AzureHarness) -> list[Resource]:
    """Everything in the cloud that is no group."""
    harness.cloud.world.run_due()
    return list(harness.cloud.world.resources.values())


def stranger(harness: AzureHarness) -> Resource:
    """A disk of somebody else in our group, tagged as people tag."""
    group = next(iter(harness.cloud.world.groups.values())).name
    made = Resource(
        id=f"/subscriptions/x/resourceGroups/{group}/providers/Microsoft.Compute/disks/theirs",
        type="Microsoft.Compute/disks",
        group=group,
        location="eastus",
        tags={"owner": "somebody"},
        properties={"provisioningState": "Succeeded"},
    )
    return harness.cloud.world.add(made)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize("tags", [{}, {"owner": "finance"}, {"qft-run": "another"}])
def test_untagged_group_is_listed_and_cleared(
    harness: AzureHarness, tmp_path: Path, tags: dict[str, str], where: str
) -> None:
    """Seen from the computer that made it, or by its parts' tags from any other, it is removed."""
    untag_group(harness, **tags)
    provider = harness.provider(state_dir=tmp_path / where)

    (listed,) = provider.list_all()
    removed = provider.delete("run-a")

    assert (listed.run_id, listed.power) == ("run-a", PowerState.RUNNING)
    assert {"virtual machine", "disk", "public IP"} <= {one.kind for one in removed}
    assert pieces(harness) == []
    assert harness.cloud.ledger.billing() == []
    harness.advance(200)
    harness.cloud.world.run_due()
    kept = [one.name for one in harness.cloud.world.groups.values()]
    assert kept == ([] if where == "here" else [GROUP])  # empty, and costs nothing


def test_what_is_not_ours_in_it_is_not_touched(harness: AzureHarness) -> None:
    """A stranger's disk stays, and so does the group around it."""
    theirs = stranger(harness)
    untag_group(harness)

    harness.provider().delete("run-a")
    harness.advance(200)

    assert pieces(harness) == [theirs]
    assert list(harness.cloud.world.groups) == [GROUP]


def test_machine_without_any_tag_is_released_and_reported_not_removed(
    harness: AzureHarness,
) -> None:
    """With every tag gone it is listed from memory; removing it is for whoever may say so."""
    untag_group(harness)
    for one in pieces(harness):
        one.tags = {}

    (listed,) = harness.provider().list_all()
    with pytest.raises(NotAllowed, match="does not carry our tag") as caught:
        harness.provider().delete("run-a")

    assert (listed.power, listed.size) == (PowerState.RUNNING, "Standard_NC4as_T4_v3")
    assert harness.cloud.ledger.billing("compute") == []
    assert len(harness.cloud.machines()) == 1
    assert "goes on billing" in str(caught.value)
    assert "qft-run" in caught.value.hint


def test_group_that_was_never_ours_is_not_touched(harness: AzureHarness, tmp_path: Path) -> None:
    """A group of our name with nothing of ours in it is left alone, machine and all."""
    untag_group(harness)
    for one in pieces(harness):
        one.tags = {}
    before = [one.id for one in pieces(harness)]

    with pytest.raises(NotAllowed, match="not touched"):
        harness.provider(state_dir=tmp_path / "elsewhere").delete("run-a")

    assert [one.id for one in pieces(harness)] == before
    assert harness.cloud.ledger.billing("compute") != []


def test_pieces_without_tags_go_with_their_tagged_group(harness: AzureHarness) -> None:
    """Parts that lost their tags are known by name inside a group that is ours."""
    for one in pieces(harness):
        one.tags = {}

    assert harness.provider().delete("run-a") != []

    assert harness.cloud.leftovers() == []


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_tags_in_other_letters_are_the_same_tags(
    harness: AzureHarness, tmp_path: Path, where: str
) -> None:
    """A policy that rewrites `qft-run` as `Qft-Run` hides nothing."""
    for group in harness.cloud.world.groups.values():
        group.tags = {name.title(): value for name, value in group.tags.items()}
    for one in pieces(harness):
        one.tags = {name.upper(): value for name, value in one.tags.items()}
    provider = harness.provider(state_dir=tmp_path / where)

    (listed,) = provider.list_all()
    provider.delete("run-a")

    assert (listed.run_id, listed.region, listed.generation) == ("run-a", "eastus", 1)
    assert harness.cloud.leftovers() == []


def test_remnants_in_an_untagged_group_are_remnants(harness: AzureHarness) -> None:
    """With the machine deleted by somebody, what still bills is listed and can be removed."""
    (vm,) = harness.cloud.machines()
    harness.cloud.world.drop(vm)
    untag_group(harness)

    (listed,) = harness.provider().list_all()
    harness.provider().delete("run-a")

    assert listed.power is PowerState.REMNANTS
    assert harness.cloud.ledger.billing() == []


@pytest.mark.parametrize("lost", ["nothing", "memory", "journal", "both"])
def test_commands_find_release_and_remove_it(runner: CliRunner, lost: str) -> None:
    """`ls`, `down` and `down --delete` do their work whatever record was lost with the tag."""
    untag_group(runner.harness)
    run = runner.state().run_id
    if lost in {"memory", "both"}:
        shutil.rmtree(runner.home / "azure")
    if lost in {"journal", "both"}:
        shutil.rmtree(runner.home / "runs")

    (shown,) = json.loads(runner.qft("ls", "--all", "--json").out)
    down = runner.qft("down", "--all")
    released = runner.harness.cloud.ledger.billing("compute")
    gone = runner.qft("down", "--all", "--delete")

    assert (shown["run_id"], shown["bills_compute"]) == (run, True)
    assert (down.code, released) == (0, [])
    assert gone.code == 0, gone.err
    assert runner.harness.cloud.ledger.billing() == []


def test_journal_alone_finds_a_machine_without_any_tag(runner: CliRunner) -> None:
    """With our memory of Azure lost and no tag anywhere, the journal has the id."""
    untag_group(runner.harness)
    for one in pieces(runner.harness):
        one.tags = {}
    shutil.rmtree(runner.home / "azure")
    name = runner.state().name

    (shown,) = json.loads(runner.qft("ls", "--all", "--json").out)
    status = json.loads(runner.qft("status", name, "--json").out)
    down = runner.qft("down", name)

    assert shown["bills_compute"] is True
    assert status["usd_per_h_now"] > 0
    assert (down.code, runner.harness.cloud.ledger.billing("compute")) == (0, [])
    assert "still there" in down.out
