"""How long a disk outlives its budget is the user's choice, and reaches whoever can remove it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from support.fakecloud import FakeCloud, Story, World

from commands.runs.config import load
from commands.runs.planning.pricing import budget_of
from commands.runs.request import RunRequest
from commands.runs.session import Session
from infra.azure.auto_shutdown import disk_stays
from infra.config import BudgetTable
from infra.provider import Safeguard, Vm, VmSpec
from infra.run.budget import Budget
from infra.run.fold import fold
from infra.run.journal import Kind, read
from infra.run.plan import Goal, RunPlan

LATEST_S = 2_000_000.0
CONFIG = {
    "name": "tiny",
    "model": {"id": "somebody/something"},
    "data": {"train": "rows.jsonl", "prompt": "{text}", "completion": "{answer}"},
    "train": {"steps": 1},
}


@dataclass
class RecordingCloud(FakeCloud):
    """A cloud that keeps what it was asked to hold machines to."""

    disk_days: list[float | None] = field(default_factory=list)
    latest_limit_s: float | None = LATEST_S

    def create(self, spec: VmSpec) -> Vm:
        """Make the machine."""
        self.disk_days.append(spec.disk_days)
        return super().create(spec)

    def set_safeguards(
        self,
        vm: Vm,  # noqa: ARG002  (the seam names it)
        *,
        until_s: float,  # noqa: ARG002
        disk_days: float | None = None,
    ) -> list[Safeguard]:
        """Hold the machine to it."""
        self.disk_days.append(disk_days)
        return [
            Safeguard(name="cap", is_set=True, detail="holds"),
            Safeguard(
                name="request", is_set=True, detail="ends", latest_limit_s=self.latest_limit_s
            ),
        ]


def run_up(path: Path, *, disk_days: float | None) -> Story:
    """A run to its end in a cloud that has safeguards."""
    story = Story(path)
    story.cloud = RecordingCloud(world=story.world)
    story.work.cloud = story.cloud
    budget = Budget(usd=5.0, disk_days=disk_days)
    story.plan = RunPlan(goal=Goal.UP, budget=budget, has_safeguards=True)
    story.go()
    return story


@pytest.mark.parametrize("disk_days", [None, 2.0])
def test_budget_reaches_the_cloud_with_the_machine_and_with_its_safeguards(
    tmp_path: Path, disk_days: float | None
) -> None:
    """The cloud hears of the days when the machine is made, and again when it answers."""
    story = run_up(tmp_path / "journal.jsonl", disk_days=disk_days)

    assert isinstance(story.cloud, RecordingCloud)
    assert story.cloud.disk_days == [disk_days, disk_days]


def test_latest_limit_of_a_machine_is_on_record(tmp_path: Path) -> None:
    """The limit that a machine cannot outlast stands in the journal, until there is another one."""
    story = run_up(tmp_path / "journal.jsonl", disk_days=None)

    events = read(tmp_path / "journal.jsonl")
    assert fold(events).latest_limit_s == LATEST_S
    (made,) = [one for one in events if one.kind is Kind.CREATE_ACCEPTED]
    assert fold([*events, made]).latest_limit_s is None
    assert story.cloud.created == 1


def test_run_yaml_says_how_long_the_disk_stays(tmp_path: Path) -> None:
    """`budget.disk_days` counts for the plan and for the run; without it nothing is removed."""
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(CONFIG | {"budget": {"disk_days": 3}}))
    loaded = load(path)
    console: Any = SimpleNamespace(log=print, progress=None, report=None)
    request = RunRequest(loaded=loaded, home=tmp_path, console=console)
    unused: Any = None
    session = Session(
        request=request,
        journal=unused,
        provider=FakeCloud(world=World()),
        workloads=(),
        supervisor=unused,
    )

    assert budget_of(loaded).disk_days == 3
    assert session.plan.budget.disk_days == 3
    assert BudgetTable().disk_days is None


@pytest.mark.parametrize("days", [-1, 400, float("inf")])
def test_days_that_cannot_be_are_refused(days: float) -> None:
    """A negative number of days, or more than a year of them, is a mistake."""
    with pytest.raises(ValidationError, match="disk_days"):
        BudgetTable(disk_days=days)


def test_azure_says_that_it_removes_no_disk() -> None:
    """Where nothing can remove a disk by itself, whoever set the days is told so."""
    (lack,) = disk_stays(2.0)

    assert not lack.is_set
    assert "no effect" in lack.detail
    assert disk_stays(None) == []
