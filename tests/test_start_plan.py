"""A plan is kept when a run begins, once, and never keeps it from beginning."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.runs import Project, make_project

from commands.runs.config import load
from commands.runs.home import run_folder
from commands.runs.planning import start_plan
from commands.runs.planning.costs import cost_of_job
from commands.runs.planning.job_estimate import JobEstimate, JobPart
from commands.runs.planning.planned import Planned, read_planned
from commands.runs.planning.ranking import JobOffer
from commands.runs.planning.start_plan import planned_of
from commands.runs.request import RunRequest
from commands.runs.session import open_session
from infra.errors import NoCapacity
from infra.offer import Offer
from infra.run.budget import Budget
from infra.run.journal import Journal, Kind
from infra.run.plan import Goal
from trainer.estimate.span import Span

OFFER = Offer(
    provider="azure", region="westus2", size="NC4as_T4_v3", gpu="T4", spot_usd_per_h=0.20,
    idle_usd_per_h=0.02,
)  # fmt: skip
JOB = JobEstimate(
    card="T4",
    card_bytes=15.8e9,
    memory_bytes=Span(low=6e9, likely=7e9, high=8e9),
    fits=True,
    parts=(
        JobPart(name="rent", hours=Span.exactly(0.5), billed=False),
        JobPart(name="train", hours=Span.within_factor(2.0, 2.0)),
    ),
)
PRICED = JobOffer(
    offer=OFFER, job=JOB, cost=cost_of_job(OFFER, JOB, cap=0.25, budget=Budget(usd=5.0))
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that is in order, on a computer without a card."""
    made = make_project(tmp_path / "project")
    monkeypatch.setenv("QFT_HOME", str(made.home))
    monkeypatch.setattr(start_plan, "has_card", lambda: False)
    return made


def begin(project: Project, **options: Any) -> list[str]:
    """Open the run as a command does, fail at once, and return the messages."""
    messages: list[str] = []
    console: Any = SimpleNamespace(log=messages.append, progress=None, report=None)
    request = RunRequest(loaded=load(project.config), home=project.home, console=console)
    with pytest.raises(OSError, match="no luck"), open_session(replace(request, **options)):
        raise OSError("no luck")
    return messages


def kept(project: Project) -> Planned | None:
    """The plan in the record of the run."""
    return read_planned(run_folder(project.home, "tiny"))


def edit(project: Project, old: str, new: str) -> None:
    """Change the run.yaml."""
    text = project.config.read_text()
    assert old in text
    project.config.write_text(text.replace(old, new))


def test_a_rehearsal_is_planned_for_this_computer(project: Project) -> None:
    """Memory, hours and simulated dollars are those of the processor that will train."""
    assert begin(project) == []
    planned = kept(project)

    assert planned is not None
    assert planned.card == "this computer"
    assert planned.memory_bytes is not None
    assert planned.hours["train"].low < planned.hours["train"].high
    assert planned.usd["compute"].likely > 0
    assert planned.usd_per_h == pytest.approx(0.15, abs=0.05)


def test_a_resumed_run_keeps_the_plan_with_which_it_began(project: Project) -> None:
    """A second command makes no new plan, unless run.yaml was changed before anything trained."""
    edit(project, "steps: 250", "steps: 250\n  samples: 0")  # as many for more steps
    begin(project)
    first = kept(project)
    begin(project)
    second = kept(project)
    edit(project, "steps: 250", "steps: 2500")
    begin(project)
    changed = kept(project)

    assert first is not None
    assert first == second
    assert changed is not None
    assert changed.hours["train"].likely == pytest.approx(10 * first.hours["train"].likely)


def test_a_run_that_trained_keeps_its_plan_through_any_change(project: Project) -> None:
    """Once something was trained, its plan is history, whatever --allow-change lets through."""
    begin(project)
    first = kept(project)
    journal = Journal(run_folder(project.home, "tiny").journal, clock=lambda: 2e9)
    journal.append(Kind.PROGRESS, step=5, steps=250)
    edit(project, "steps: 250", "steps: 2500")
    begin(project, allow_change=("train.steps",))

    assert kept(project) == first


def test_a_run_that_begins_afresh_is_planned_anew(project: Project) -> None:
    """The old plan is set aside with the record that it belongs to."""
    begin(project, page_offer=PRICED)
    begin(project, fresh=True)
    folder = run_folder(project.home, "tiny")
    (aside,) = folder.root.glob("before-*/plan.json")

    planned = kept(project)

    assert json.loads(aside.read_text())["card"] == "T4"
    assert planned is not None
    assert planned.card == "this computer"


def test_the_plan_of_a_page_is_the_one_that_is_kept(project: Project) -> None:
    """What was shown and agreed to is kept as it was, and no provider is asked again."""
    begin(project, page_offer=PRICED)
    planned = kept(project)

    assert planned is not None
    assert PRICED.cost is not None
    assert (planned.card, planned.place, planned.usd_per_h) == ("T4", "NC4as_T4_v3 in westus2", 0.2)
    assert planned.memory_bytes == JOB.memory_bytes
    assert planned.hours == {part.name: part.hours for part in JOB.parts}
    assert planned.usd == {"compute": PRICED.cost.compute, "disk": PRICED.cost.disk}


@pytest.mark.parametrize(
    "error", [NoCapacity("nobody answers"), ValueError("odd"), OSError("disk full")]
)
def test_a_plan_that_cannot_be_made_stops_no_run(
    project: Project, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Prices that nobody gives are a note; the run begins, and an old plan does not stay."""
    begin(project)
    edit(project, "steps: 250", "steps: 251")

    def fail(*_all: object) -> None:
        raise error

    monkeypatch.setattr(start_plan, "first_offer", fail)
    messages = begin(project)

    assert messages[-1] == f"note: no plan is kept to compare the run with: {error}"
    assert kept(project) is None


def test_an_unknown_base_leaves_a_run_without_a_plan(project: Project) -> None:
    """Of an architecture that nobody knows nothing is planned, and nothing is said about it."""
    unknown = JobOffer(offer=OFFER, job=JobEstimate(card="T4", card_bytes=1.0, problem="unknown"))

    assert planned_of(unknown, at_s=1.0) is None
    assert planned_of(JobOffer(offer=OFFER), at_s=1.0) is None
    assert begin(project, page_offer=unknown) == []
    assert kept(project) is None


def test_fetching_plans_nothing(project: Project) -> None:
    """A command that only brings results home makes no plan of a training."""
    begin(project, goal=Goal.FETCH)

    assert kept(project) is None


def test_an_own_machine_has_no_price(project: Project) -> None:
    """What costs nothing has hours and memory, and no dollars."""
    own = JobOffer(offer=replace(OFFER, spot_usd_per_h=0.0), job=JOB)
    planned = planned_of(own, at_s=1.0)

    assert planned is not None
    assert (planned.place, planned.usd_per_h, planned.usd) == ("", None, {})
    assert planned.hours
