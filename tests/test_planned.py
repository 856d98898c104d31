"""The plan of a run is kept beside its journal, and read back as a stranger's word."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands.runs.home import RunFolder
from commands.runs.planning.job_estimate import JobEstimate, JobPart
from commands.runs.planning.planned import Planned, read_planned, write_planned
from trainer.estimate.span import Span

PLANNED = Planned(
    at_s=1.0e9,
    card="T4",
    place="Standard_NC4as_T4_v3 in westus2",
    usd_per_h=0.15,
    memory_bytes=Span(low=6e9, likely=7e9, high=8e9),
    hours={"train": Span(low=1.0, likely=2.0, high=4.0)},
    usd={"compute": Span.within_factor(0.3, 2.0)},
)


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """What `write_planned` wrote is what `read_planned` returns."""
    folder = RunFolder(root=tmp_path)

    write_planned(folder, PLANNED)

    assert read_planned(folder) == PLANNED


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"at_s": "then"}', '{"at_s": 1, "hours": 3}'])
def test_a_plan_that_cannot_be_read_is_no_error(tmp_path: Path, content: str) -> None:
    """A file that is no plan leaves the run without one, or without the figures that are none."""
    folder = RunFolder(root=tmp_path)
    folder.plan.write_text(content, encoding="utf-8")

    found = read_planned(folder)

    assert found is None or found.hours == {}


def test_the_hours_of_a_job_are_those_of_its_parts() -> None:
    """Parts add up, and those without a rented machine are left out of the billed hours."""
    rent = JobPart(name="rent", hours=Span.exactly(0.5), billed=False)
    train = JobPart(name="train", hours=Span(low=1.0, likely=2.0, high=4.0))
    job = JobEstimate(card="T4", card_bytes=15.8e9, parts=(rent, train))

    assert job.hours == Span(low=1.5, likely=2.5, high=4.5)
    assert job.billed_hours == Span(low=1.0, likely=2.0, high=4.0)
