"""In a real browser the report fits a phone, is readable in both schemes, and its charts answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import page_runs
from support.browser import DevTools, browser

from trainer.pages import report

pytestmark = pytest.mark.slow

CHECKS = Path(__file__).with_name("support").joinpath("page_checks.js")
UNFOLD = "document.querySelectorAll('details').forEach((one) => { one.open = true; })"
SPAN = {"low": 0.1, "likely": 0.2, "high": 0.4}
PLAN: dict[str, Any] = {
    "planned": {
        "card": "T4", "memory_bytes": {"low": 6e9, "likely": 7e9, "high": 8e9},
        "usd": {"compute": SPAN, "disk": SPAN}, "total_hours": SPAN, "total_usd": SPAN,
    },
    "actual": {"memory_bytes": 6.3e9, "usd": {"compute": 0.2}, "total_hours": 0.3,
               "total_usd": 0.2},
    "job_parts": [
        {"part": part, "planned_hours": SPAN, "actual_hours": 0.25}
        for part in ("rent", "set-up", "train", "release")
    ],
}  # fmt: skip


def timeline(evictions: int) -> dict[str, Any]:
    """The spans of a run whose machine was taken away so often."""
    lengths = [("rent", 60.0), ("set-up", 90.0), ("load", 30.0), ("train", 300.0)]
    for _ in range(evictions):
        lengths += [("evicted", 20.0), ("rent", 60.0), ("load", 30.0), ("train", 300.0)]
    spans, at_s = [], 1.7e9
    for activity, seconds in [*lengths, ("fetch", 10.0), ("release", 5.0)]:
        spans.append(
            {"activity": activity, "begin_s": at_s, "end_s": at_s + seconds, "machine": 1,
             "compute": activity != "evicted", "usd": seconds / 36_000}
        )  # fmt: skip
        at_s += seconds
    return {"spans": spans, "own": False}


def facts(evictions: int) -> dict[str, Any]:
    """What home knows of a run with these evictions."""
    steps = [{"step": 40}, {"step": 55}, {"step": 160}][:evictions]
    return {"evictions": steps, "usd": 0.041, "hours": 0.117, "machine": "T4 in westus2",
            "plan": PLAN, "timeline": timeline(evictions)}  # fmt: skip


RUNS: dict[str, tuple[Callable[[], list[dict[str, Any]]], int]] = {
    "classifier": (page_runs.classifier, 1),
    "text": (lambda: page_runs.answers("text"), 0),
    "chat": (lambda: page_runs.answers("chat"), 1),
    "code": (page_runs.programs, 0),
    "evicted": (page_runs.classifier, 3),
}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevTools]:
    """One browser for all pages."""
    with browser(tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each run."""
    made = {}
    for name, (results, evictions) in RUNS.items():
        run_dir = page_runs.write_run(tmp_path_factory.mktemp(name), results())
        page_runs.write_samples(run_dir)
        judged = json.dumps(page_runs.judgement())
        (run_dir / "judge.json").write_text(judged, encoding="utf-8")
        report.write(run_dir, run_dir, facts(evictions), name=name)
        made[name] = run_dir / "report.html"
    return made


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", RUNS)
def test_a_page_fits_its_window_and_can_be_read(
    tab: DevTools, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    """Nothing is wider than the window, no text has a contrast below 4.5, nothing is complained of.

    That holds folded as it is opened, and with everything unfolded.
    """
    tab.open(pages[name].as_uri(), width=width, dark=scheme == "dark")
    for unfold in (False, True):
        if unfold:
            tab.ask(UNFOLD)
        found = tab.ask(CHECKS.read_text(encoding="utf-8"))

        assert found["texts"] > (400 if unfold else 100)
        assert found["weak"] == []
        assert found["overflow"] <= 0, found["wide"]
        assert found["wide"] == []
        assert found["small"] == []
    assert tab.errors == []


def test_a_page_that_cannot_be_read_would_be_noticed(tab: DevTools, pages: dict[str, Path]) -> None:
    """The check above sees pale letters, faded ones, tiny words, and a box that is too wide."""
    tab.open(pages["classifier"].as_uri(), width=390, dark=True)
    tab.ask(
        """(() => { const root = document.documentElement.style;
          root.setProperty("--dim", "#555b63");
          document.querySelector(".headline").style.opacity = ".3";
          document.querySelector(".plot > .y").style.fontSize = "9px";
          document.querySelector("#scores").style.width = "500px"; })()"""
    )
    found = tab.ask(CHECKS.read_text(encoding="utf-8"))

    assert any("held-out rows" in text for text, _ in found["weak"])
    assert any("→" in text for text, _ in found["weak"])
    assert found["overflow"] > 0
    assert found["wide"][0].startswith("SECTION")
    assert len(found["small"]) == 1


READING = "[...document.querySelectorAll('.reading')].map((one) => one.textContent).join('')"
MIDDLE = """(() => { const plot = document.querySelector('.plot');
  plot.scrollIntoView({ block: 'center' });
  const box = plot.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2]; })()"""


@pytest.mark.parametrize("width", [1280, 390])
def test_the_pointer_shows_the_values_of_a_step(
    tab: DevTools, pages: dict[str, Path], width: int
) -> None:
    """Over a chart the values of the nearest step stand above it, and go when it is left."""
    tab.open(pages["classifier"].as_uri(), width=width)
    left, top = tab.ask(MIDDLE)
    tab.move(left, top)
    shown = tab.ask(READING)
    tab.move(left, 1)
    tab.move(2, 2)

    assert shown.startswith("step 10")
    assert " · each step 0." in shown
    assert " · mean of 10 0." in shown
    assert tab.ask(READING) == ""
    assert tab.errors == []


def test_the_arrow_keys_read_a_chart_step_by_step(tab: DevTools, pages: dict[str, Path]) -> None:
    """A focused chart has a cross line that keys move, and its values are announced politely."""
    tab.open(pages["classifier"].as_uri(), width=1280)
    tab.ask("document.querySelector('.plot').focus()")
    read = []
    for key in ("ArrowRight", "ArrowRight", "End", "ArrowRight", "ArrowLeft", "Home", "Escape"):
        tab.press(key)
        read.append(tab.ask(READING).split(" · ")[0])

    assert read == ["step 1", "step 2", "step 200", "step 200", "step 199", "step 1", ""]
    assert tab.ask("document.querySelector('.reading').getAttribute('aria-live')") == "polite"
    assert tab.ask("getComputedStyle(document.querySelector('.plot')).outlineStyle") == "solid"


def test_what_is_inserted_into_the_page_does_not_run(tab: DevTools, pages: dict[str, Path]) -> None:
    """The policy of the page forbids scripts, handlers and pictures that are not its own."""
    tab.open(pages["text"].as_uri(), width=1280)
    tab.ask(
        """new Promise((done) => {
          window.ran = 0;
          const script = document.createElement("script");
          script.textContent = "window.ran += 1";
          document.body.append(script);
          const box = document.createElement("div");
          box.innerHTML = "<img src='https://example.org/x' onerror='window.ran += 1'>";
          document.body.append(box);
          setTimeout(done, 200); })"""
    )

    assert tab.ask("window.ran") == 0
    assert len(tab.errors) >= 2


def test_what_is_folded_is_printed(tab: DevTools, pages: dict[str, Path]) -> None:
    """On paper all is unfolded; the screen is as it was afterwards."""
    tab.open(pages["classifier"].as_uri(), width=1280)
    opened = "document.querySelectorAll('details[open]').length"
    before = tab.ask(opened)
    tab.ask("dispatchEvent(new Event('beforeprint'))")
    printed = tab.ask(opened)
    tab.ask("dispatchEvent(new Event('afterprint'))")

    assert printed == tab.ask("document.querySelectorAll('details').length")
    assert tab.ask(opened) == before < printed
