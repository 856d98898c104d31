"""The report tells what the run's own files say, on a page that stands alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.pages import read
from support.reports import run_dir

from trainer.__main__ import main
from trainer.pages import html, report
from trainer.pages.run_files import build_report
from trainer.pages.summary import describe_agreement

__all__ = ["run_dir"]  # a fixture of another file, found by its name here


def test_the_figures_are_those_of_the_files(run_dir: Path) -> None:
    """Steps, losses, speed, scores and the paired gain come from what the run wrote."""
    found = build_report(run_dir, {"evictions": [{"step": 12}], "usd": 0.02})

    assert (found["steps"], found["tokens"], found["tokens_per_s"]) == (30, 3000, 200.0)
    assert found["first_loss"] == pytest.approx(sum(3 / at for at in range(1, 11)) / 10)
    assert (found["before"]["value"], found["after"]["value"]) == (pytest.approx(1 / 3), 1.0)
    assert found["gain"]["value"] == pytest.approx(2 / 3)
    assert found["gain"]["low"] > 0
    assert set(found["baselines"]) == {"majority", "tfidf_regression"}
    assert found["exact"] is True
    assert "0.5 after step 20" in report.as_page(found, run_dir, name="run")


def test_the_page_shows_every_plot_and_stands_alone(run_dir: Path, tmp_path: Path) -> None:
    """Loss, throughput and calibration are drawn, evictions stand on the time line."""
    report.write(run_dir, tmp_path, {"evictions": [{"step": 12}], "usd": 0.02}, name="<run>")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = read(text)

    assert page.plots == [
        "Training loss", "Learning rate", "Throughput", "Calibration", "Calibration",
    ]  # fmt: skip
    assert page.foreign == []
    assert page.text.count("evicted") == 3
    assert page.headings == [
        "Before and after", "What it got wrong", "Learning", "The run", "Label by label",
        "Config and versions",
    ]  # fmt: skip
    assert '<table class="heat">' in text
    assert "TF-IDF + regression" in page.text
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["steps"] == 30


def test_times_are_readable_and_what_is_unknown_has_no_line(run_dir: Path) -> None:
    """Spans read as people say them; a run without validation has no line about its loss."""
    (run_dir / "adapter" / "qft.json").write_text('{"status": {}, "best": null}', encoding="utf-8")
    facts = {"hours": 0.02158, "machine": "", "usd": 0.1}
    page = read(report.as_page(build_report(run_dir, facts), run_dir, name="run"))

    assert "time rented1 min 18 s" in page.text
    assert "time in training steps15 s" in page.text
    for word in ("validation", "the same bits", "machine", "None", "unknown"):
        assert word not in page.text.partition("The run")[2].partition("Label by label")[0]


@pytest.mark.parametrize(
    ("ticks", "words"),
    [
        ([0, 5000], ["0", "5,000"]),
        ([0, 5000, 10_000, 15_000], ["0", "5k", "10k", "15k"]),
        ([14_900, 14_950, 15_000], ["14.90k", "14.95k", "15.00k"]),
        ([0, 5e5, 1e6, 1.5e6], ["0", "0.5M", "1.0M", "1.5M"]),
        ([-2e9, 0, 2e9], ["-2G", "0", "2G"]),
        ([0, 0.0002, 0.0004], ["0", "0.0002", "0.0004"]),
        ([44_900], ["44,900"]),
        ([], []),
    ],
)
def test_the_numbers_of_an_axis_are_short(ticks: list[float], words: list[str]) -> None:
    """Thousands and millions are letters, all in one unit, and neighbours differ."""
    assert html.axis_labels(ticks) == words


def test_a_fast_run_has_throughput_labels_that_fit(run_dir: Path) -> None:
    """At tens of thousands of tokens per second no number is wider than its margin."""
    path = run_dir / "metrics.jsonl"
    steps = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    fast = [step | {"tokens": 7450 + 9 * step["step"]} for step in steps]
    path.write_text("".join(json.dumps(step) + "\n" for step in fast), encoding="utf-8")
    text = report.as_page(build_report(run_dir), run_dir, name="run")
    plot = text.partition('aria-label="Throughput"')[2].partition("</figure>")[0]
    labels = re.findall(r'class="y"[^>]*>([^<]*)<', plot)

    assert [label for label in labels if len(label) > 7 or "e" in label] == []
    assert any(label.endswith("k") for label in labels)


def test_a_merged_model_is_reported_with_both_bases() -> None:
    """Which base it was merged onto is said first; without quantising there is but one."""
    found = {"held_out": True, "rows": 9, "equal": 9, "onto": "original"}
    trained = {**found, "as_trained": {"quant": "nf4", "equal": 7}}

    assert describe_agreement({**found, "as_trained": None}) == (
        "answers 9 of 9 held-out rows as the adapter does"
    )
    assert describe_agreement(trained) == (
        "answers 9 of 9 held-out rows as the adapter does on the original base, which it was "
        "merged onto, and 7 as on the nf4 base it was trained on"
    )


def test_validation_losses_are_drawn_when_there_are_any(run_dir: Path) -> None:
    """A run that looked at validation rows has a curve for them."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    changed = [json.loads(line) | {"validation_loss": 1.0 + at} for at, line in enumerate(lines)]
    path.write_text("".join(json.dumps(step) + "\n" for step in changed), encoding="utf-8")
    page = read(report.as_page(build_report(run_dir), run_dir, name="run"))

    assert page.plots[:4] == ["Training loss", "Validation loss", "Learning rate", "Throughput"]


def test_a_run_that_has_hardly_begun_has_a_report_too(tmp_path: Path) -> None:
    """Without a log or a score the page says so instead of failing."""
    assert main(["report", "--run-dir", str(tmp_path)]) == 0
    page = read((tmp_path / "report.html").read_text(encoding="utf-8"))

    assert page.plots == []
    assert "Training loss: nothing was recorded" in page.text


@pytest.mark.parametrize(
    "losses",
    [
        [1e308, 1.0], [-1.7e308, 1.7e308], [0.0, 5e-324], [1e9, 1e9 + 1e-7], [1.0, 1.0 + 3e-16],
        [3.4e38, 0.1], [0.0, 0.0], [2.5],
    ],
)  # fmt: skip
def test_any_loss_can_be_drawn(tmp_path: Path, losses: list[float]) -> None:
    """Losses at both ends of what numbers there are, or as good as equal, make a page and JSON."""
    lines = [json.dumps({"step": at, "loss": loss}) for at, loss in enumerate(losses, start=1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
    written = report.write(tmp_path, tmp_path, None, name="odd")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")

    assert written["steps"] == len(losses)
    assert "Training loss" in page
    assert "nan" not in page.partition("<body>")[2].partition("Throughput")[0]


def test_a_log_out_of_order_is_refused(tmp_path: Path) -> None:
    """A step that stands twice would be a resume gone wrong, and no curve hides it."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 2}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="step 2 stands after step 2"):
        build_report(tmp_path)
