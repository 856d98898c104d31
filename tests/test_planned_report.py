"""The report shows a plan against what the run took, as a plot and as a table."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.pages import read
from support.reports import run_dir

from trainer.pages import bars, report
from trainer.pages.run_files import build_report

__all__ = ["run_dir"]  # a fixture of another file, found by its name here


def span(low: float, likely: float, high: float) -> dict[str, float]:
    """A planned figure with its range."""
    return {"low": low, "likely": likely, "high": high}


PLAN: dict[str, Any] = {
    "planned": {
        "card": "T4",
        "memory_bytes": span(6.0e9, 7.1e9, 8.0e9),
        "usd": {"compute": span(0.7, 1.0, 1.5), "disk": span(0.1, 0.1, 0.1)},
        "total_hours": span(4.9, 6.8, 9.5),
        "total_usd": span(0.8, 1.1, 1.6),
    },
    "actual": {
        "memory_bytes": 6.3e9,
        "usd": {"compute": 0.9},
        "total_hours": 5.9,
        "total_usd": 0.9,
    },
    "job_parts": [
        {"part": "rent", "planned_hours": span(0.02, 0.05, 0.2), "actual_hours": 0.03},
        {"part": "train", "planned_hours": span(4.8, 6.5, 9.0), "actual_hours": 5.5},
        {"part": "release", "planned_hours": None, "actual_hours": 0.01},
    ],
}


def page_of(run_dir: Path, plan: Any) -> str:
    """The page of a run with that plan among its facts."""
    return report.as_page(build_report(run_dir, {"plan": plan}), run_dir, name="run")


def test_the_report_of_a_run_with_a_plan_shows_each_part(run_dir: Path) -> None:
    """Memory, time of each part, dollars and both sums stand beside what was planned of them."""
    page = read(page_of(run_dir, PLAN))

    assert page.headings[2:5] == ["Learning", "Planned and real", "The run"]
    assert "Planned and real time by part" in page.plots
    text = page.text.partition("Planned and real")[2].partition("The run")[0]
    text = text.replace("\u00a0", " ")
    for row in (
        "memory7.10 GB6.00 GB to 8.00 GB6.30 GB",
        "train6 h 30 min4 h 48 min to 9 h 00 min5 h 30 min",
        "release36 s",
        "time in all6 h 48 min4 h 54 min to 9 h 30 min5 h 54 min",
        "disk$0.10",
        "dollars in all$1.10$0.80 to $1.60$0.90",
    ):
        assert row in text


def test_report_json_has_the_figures(run_dir: Path, tmp_path: Path) -> None:
    """Programs find plan and reality among the facts, as they were given."""
    report.write(run_dir, tmp_path, {"plan": PLAN}, name="run")

    assert json.loads((tmp_path / "report.json").read_text())["facts"]["plan"] == PLAN


def test_a_run_without_a_plan_has_no_such_section(run_dir: Path) -> None:
    """The page of a run from before plans were kept is the page that it had."""
    page = report.as_page(build_report(run_dir, {"usd": 0.1}), run_dir, name="run")

    assert "Planned and real" not in page


@pytest.mark.parametrize("broken", ["planned", "actual", "job_parts"])
def test_a_plan_that_is_none_costs_its_section_only(run_dir: Path, broken: str) -> None:
    """A sentence stands where the plan cannot be shown, and the rest of the page is there."""
    for value in (None, 3, [1]):
        page = read(page_of(run_dir, {**PLAN, broken: value}))
        assert "The plan cannot be shown" in page.text
        assert "Learning" in page.headings


def test_bars_and_ranges_are_as_long_as_their_figures() -> None:
    """The real bar begins at zero, and the range ends where its figures do, on one scale."""
    ranges = [
        bars.Range(name="a", low=1.0, likely=2.0, high=4.0, real=3.0),
        bars.Range(name="b", real=6.0),
    ]
    drawing = bars.range_plot("times", ranges, x="hours").partition('<ul class="bars"')[2]
    real = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', drawing)]
    marks = re.findall(r'class="plan" x1="([\d.]+)" x2="([\d.]+)"', drawing)
    (start, end), (likely, _) = marks

    assert real[1] == pytest.approx(2 * real[0], abs=0.2)
    assert float(end) - float(start) == pytest.approx(real[0], abs=0.2)
    assert float(likely) - float(start) == pytest.approx(real[0] / 3, abs=0.2)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e-2, 1e6])
def test_runs_of_any_length_can_be_drawn(run_dir: Path, scale: float) -> None:
    """Seconds or years make a page; a run in which nothing took any time has no plot."""
    plan = copy.deepcopy(PLAN)
    for part in plan["job_parts"]:
        part["actual_hours"] *= scale
        part["planned_hours"] = None
    page = read(page_of(run_dir, plan))
    for part in plan["job_parts"]:
        part["actual_hours"] = None
    empty = read(page_of(run_dir, plan))

    assert "Planned and real time by part" in page.plots
    assert "there is nothing to show" in empty.text
