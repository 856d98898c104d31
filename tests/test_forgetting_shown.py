"""What was measured of forgetting is said in words, on the page and by `qft eval`."""

from __future__ import annotations

from typing import Any

import pytest

from commands.eval import Scores
from commands.ui.wrap import output_width
from trainer.pages.forgetting import forgetting_parts
from trainer.scoring.forgetting.summary import forgetting_lines

BEFORE: dict[str, Any] = {
    "version": 1,
    "knowledge": {"value": 0.3, "low": 0.2, "high": 0.43, "n": 60, "at_chance": True},
    "drift": {"set": "x", "tokens": 7000, "continuations": []},
    "general": {"figures": {"perplexity": {"value": 20.5, "low": 18.0, "high": 23.0}}},
}
AFTER: dict[str, Any] = {
    "version": 1,
    "knowledge": {"value": 0.6, "low": 0.47, "high": 0.71, "n": 60, "at_chance": False},
    "drift": {"value": 0.0123, "low": 0.0088, "high": 0.0161, "n": 64, "tokens": 7000},
    "general": {"figures": {"perplexity": {"value": 22.5, "low": 20.0, "high": 25.0}}},
    "change": {
        "knowledge": {"value": 0.3, "low": 0.1, "high": 0.5},
        "general": {"perplexity": {"value": 2.0, "low": 1.5, "high": 2.5}},
    },
}


def score(forgetting: object) -> dict[str, Any]:
    """Return a score that holds this of forgetting."""
    return {"details": {"forgetting": forgetting}}


def test_the_lines_have_before_after_and_change() -> None:
    """Every part has its figures with intervals, and chance is said where the interval holds it."""
    lines = [line.replace("\u00a0", " ") for line in forgetting_lines(score(BEFORE), score(AFTER))]

    assert lines[:3] == [
        (
            "general questions right: 0.300 (0.200 to 0.430), n=60 → 0.600 (0.470 to 0.710), n=60; "
            "change +0.300 (+0.100 to +0.500)"
        ),
        "drift from the base, nats per token: 0.0123 (0.0088 to 0.0161)",
        (
            "perplexity of your general rows: 20.5 (18.0 to 23.0) → 22.5 (20.0 to 25.0); "
            "change +2.000 (+1.500 to +2.500)"
        ),
    ]
    assert lines[3].startswith("Before training the questions are answered at chance")
    assert lines[4].startswith("The drift estimates KL(base || fine-tuned) on 7,000 tokens")
    assert len(lines) == 5


def test_qft_eval_prints_the_lines_and_has_them_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand below the scores, broken at spaces, and only where there are any."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = forgetting_lines(score(BEFORE), score(AFTER))
    shown = Scores(run="r", before=None, after=None, forgetting=lines)
    printed = shown.lines()

    assert printed[2:4] == ["", "general questions right: 0.300 (0.200 to 0.430), n=60 →"]
    assert all(len(line) <= output_width() for line in printed)
    assert shown.to_json()["forgetting"] == lines
    assert "forgetting" not in Scores(run="r", before=None, after=None).to_json()


def test_the_page_shows_the_same_and_blames_nobody() -> None:
    """The section has a table, and says what a drift is and is not."""
    html = "".join(forgetting_parts(score(BEFORE), score(AFTER))).replace("\u00a0", " ")

    assert "<td>0.0123 (0.0088 to 0.0161)</td>" in html
    assert "by itself that is no fault" in html


def test_what_could_not_be_measured_says_why() -> None:
    """A reason stands in place of the figure; it is text, whatever it holds."""
    after = {**AFTER, "drift": {"missing": "no <cache>\x1b[31m here"}}
    lines = forgetting_lines(score(BEFORE), score(after))

    assert lines[-1] == "No drift after training: no <cache> [31m here."


@pytest.mark.parametrize(
    "forged",
    [
        None,
        7,
        [],
        {"knowledge": "high", "drift": {"value": "nan"}},
        {"knowledge": {"value": True, "low": 0, "high": 1}, "change": []},
        {"drift": {"value": 1e400, "low": 0, "high": 1}},
    ],
)
def test_figures_that_are_none_are_not_shown(forged: object) -> None:
    """What a machine sent in their place shows nothing, and nothing fails."""
    assert forgetting_lines({}, score(forged)) == []
    assert forgetting_parts(None, score(forged)) == []


def test_a_run_before_its_training_shows_what_there_is() -> None:
    """With the first score alone, the questions are told and no change."""
    (line, *notes) = forgetting_lines(score({"knowledge": BEFORE["knowledge"]}), {})

    assert line.replace("\u00a0", " ") == "general questions right: 0.300 (0.200 to 0.430), n=60"
    assert len(notes) == 1
