"""A run on several cards says so where it shows its machine, and no other run shows more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fakecloud import Story
from support.runs import Project, make_project

from commands import ls, status
from commands.runs import config_diff, session
from commands.runs.config import load
from commands.runs.home import RunFolder, run_folder
from commands.runs.node_status import Look
from commands.runs.receipt import Receipt, make_receipt
from commands.ui.errors import UsageError
from commands.ui.snapshot import take_snapshot
from infra.local.provider import LocalProvider
from infra.offer import Want
from infra.provider import Observation, PowerState, Vm
from infra.run import actions as act
from infra.run.budget import bill
from infra.run.context import TurnReport
from infra.run.decide import Seen
from infra.run.fold import fold
from infra.run.journal import Kind, read
from infra.run.plan import Goal, RunPlan
from infra.run.state import RunState


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A run on T4s that ends with its machine left up."""
    folder = run_folder(tmp_path, "run")
    folder.root.mkdir(parents=True)
    story = Story(path=folder.journal, plan=RunPlan(goal=Goal.TRAIN))
    story.cloud.card = "T4"
    return story


def receipt_of(story: Story) -> Receipt:
    """The receipt of the run now."""
    root = story.path.parent
    return make_receipt(RunFolder(root=root), root / "out", simulated=False)


def status_of(story: Story) -> status.RunStatus:
    """What `qft status` has to show of the run now."""
    return status.RunStatus(
        name="run",
        state=fold(read(story.path)),
        receipt=receipt_of(story),
        driven=False,
        look=Look(
            machine=Observation(power=PowerState.RUNNING), job=None, trouble="", signed_in=True
        ),
        now_s=story.world.now_s,
        usd=0.0,
        usd_per_h_now=0.0,
    )


def test_a_run_with_one_card_shows_and_keeps_what_it_ever_did(story: Story) -> None:
    """Neither journal nor receipt, status or their JSON have a word more."""
    story.go()

    offers = [one.data["offer"] for one in read(story.path) if one.kind is Kind.CREATE_INTENDED]
    assert [offer.get("gpu_count") for offer in offers] == [None]
    assert dict(status_of(story).lines())["machine"] == "small in a, running"
    assert "on" not in dict(receipt_of(story).lines())
    assert "machines" not in receipt_of(story).to_json()
    assert "machines" not in status_of(story).to_json()
    assert "gpu_count" not in status_of(story).to_json()["machine"]


def test_a_run_with_four_cards_says_so(story: Story) -> None:
    """In status and receipt, for people and as JSON."""
    story.cloud.card_count = 4

    story.go()

    offers = [one.data["offer"] for one in read(story.path) if one.kind is Kind.CREATE_INTENDED]
    assert [offer["gpu_count"] for offer in offers] == [4]
    assert dict(status_of(story).lines())["machine"] == "small (4 × T4) in a, running"
    assert dict(receipt_of(story).lines())["on"] == "4 × T4"
    assert receipt_of(story).to_json()["machines"] == ["4 × T4"]


def test_a_run_that_moved_to_another_number_of_cards_stays_exact(story: Story) -> None:
    """The receipt names both machines, and calls the result bit for bit."""
    lost: list[bool] = []

    def lose_once() -> None:
        if story.work.home >= 20 and not lost:
            lost.append(True)
            story.cloud.card_count = 4
            story.cloud.lose_all()
            story.world.now_s += 3600  # the offers of before are too old

    story.between = lose_once

    story.go()

    receipt = receipt_of(story)
    assert receipt.machines == ("T4", "4 × T4")
    assert dict(receipt.lines())["on"] == "T4, then 4 × T4"
    assert (receipt.exact, receipt.cards) == (True, ())
    assert dict(status_of(story).lines())["on"] == "T4, then 4 × T4"


def test_a_machine_that_was_refused_is_none_that_it_trained_on(story: Story) -> None:
    """Only what was made is named."""
    story.cloud.card_count = 4
    story.cloud.full = {"a"}

    story.go()

    assert [one.kind for one in read(story.path)].count(Kind.CREATE_FAILED) == 1
    assert receipt_of(story).machines == ("4 × T4",)


@pytest.mark.parametrize(("count", "size"), [(1, "local-gpu"), (4, "local-gpu-x4 (4 × T4)")])
def test_the_line_that_rents_names_the_cards(tmp_path: Path, count: int, size: str) -> None:
    """Beside the size, and so does the place that the live page shows."""
    (offer, *_) = LocalProvider(tmp_path).offers(Want(gpu="T4", gpu_count=count))
    report = TurnReport(
        state=replace(RunState(), offer=offer),
        seen=Seen(),
        action=act.Create(offer=offer, generation=1),
        bill=bill(RunState(), 0.0),
        now_s=0.0,
        warning="",
    )

    shown = take_snapshot(report, simulated=True)

    price = f"{offer.spot_usd_per_h:.3f}"
    assert shown.phase == f"renting {size} in local-1 at ${price}/h"
    assert shown.place == f"{size} in local-1"


def line(cards: str = "") -> ls.MachineLine:
    """A machine in a list."""
    return ls.MachineLine(
        run_id="r", provider="azure", id="x", region="a", size="s", cards=cards,
        power="running", bills_compute=True, created_at="",
    )  # fmt: skip


def test_a_list_of_machines_names_cards_where_one_has_several() -> None:
    """Without such a machine there is no column."""
    assert "cards" not in ls.to_json([line()])[0]
    assert [row["cards"] for row in ls.to_json([line(), line(cards="4 × T4")])] == ["", "4 × T4"]


def test_machines_of_a_cloud_are_listed_with_their_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their sizes say how many they have, without any record here."""
    found = [
        Vm(provider="azure", run_id="r", id="x", region="a", size="Standard_NC64as_T4_v3"),
        Vm(provider="azure", run_id="q", id="y", region="a", size="Standard_NC4as_T4_v3"),
    ]
    cloud = LocalProvider(tmp_path)
    cloud.list_all = lambda: found  # type: ignore[method-assign]
    monkeypatch.setenv("QFT_HOME", str(tmp_path))
    monkeypatch.setattr(ls, "providers_to_ask", lambda _home, _name: [cloud])

    lines, error = ls.machines()

    assert ([one.cards for one in lines], error) == (["4 × T4", ""], None)


# ---- a change of run.yaml ----


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project that is in order."""
    return make_project(tmp_path / "project")


def with_gpus(project: Project, count: int) -> None:
    """Let run.yaml ask for so many cards."""
    text = project.config.read_text()
    table = "vm:\n"
    assert table in text
    project.config.write_text(text.replace(table, f"{table}  gpus: {count}\n", 1))


def test_number_of_cards_may_change_within_a_run(project: Project) -> None:
    """It is no other training, and a machine that the run has stays its machine."""
    before = load(project.config)
    saved = session._saved(before, ())
    vm = Vm(provider=before.config.vm.providers[0], run_id="r", id="x", region="a", size="s")
    state = replace(RunState(), vm=vm, step=10, generation=1)
    with_gpus(project, 4)
    after = load(project.config)

    assert (before.config.vm.gpus, after.config.vm.gpus) == (1, 4)
    assert config_diff.changes(after, saved, ()) == {}
    config_diff.require_same_machine(after, saved, state)  # does not raise


def test_a_run_from_before_there_were_several_cards_goes_on(project: Project) -> None:
    """Its saved config lacks the key, which means one card."""
    loaded = load(project.config)
    saved = session._saved(loaded, ())
    table: dict[str, Any] = saved["config"]
    del table["vm"]["gpus"]
    with_gpus(project, 2)

    assert config_diff.changes(load(project.config), saved, ()) == {}


def test_more_cards_than_a_vendor_has_are_refused_where_run_yaml_is_read(
    project: Project,
) -> None:
    """Before anybody is asked, and with the most that there are."""
    with_gpus(project, 5)
    text = project.config.read_text()
    assert "provider: local" in text
    azure = text.replace("provider: local", "provider: azure\n  max_price: 3.0", 1)
    project.config.write_text(azure)

    with pytest.raises(UsageError) as caught:
        load(project.config)

    assert any("no machine with 5 × T4, only up to 4" in one for one in caught.value.problems)
