"""The report begins with what was achieved, shows answers as they are, and stays small and safe."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import page_runs
from support.pages import Page, read

from trainer.pages import charts, html, report
from trainer.pages.browse import BYTES_MAX, IMPROVED_MAX, TEXT_MAX, WRONG_MAX, answer_parts
from trainer.pages.run_files import build_report

FACTS: dict[str, Any] = {
    "evictions": [{"step": 45}], "usd": 0.041, "hours": 0.117, "machine": "T4 in westus2",
}  # fmt: skip
KINDS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "label": page_runs.classifier,
    "text": lambda: page_runs.answers("text"),
    "chat": lambda: page_runs.answers("chat"),
    "code": page_runs.programs,
    "loss": page_runs.losses,
}


def page_of(run_dir: Path, facts: dict[str, Any] | None = None) -> Page:
    """The parsed page of a run; it must be whole."""
    return read(report.as_page(build_report(run_dir, facts), run_dir, name="run"))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_scoring_has_bars_answers_and_a_headline(kind: str, tmp_path: Path) -> None:
    """From the top: headline, before and after, what it got wrong, curves, the run, the config."""
    run_dir = page_runs.write_run(tmp_path / "run", KINDS[kind]())
    page = page_of(run_dir, FACTS)

    assert "→" in page.text.partition("Before and after")[0]
    assert "for 4 cents in 7 min, one eviction survived" in page.text
    assert "cannot be shown" not in page.text
    assert page.headings[:2] == ["Before and after", "What it got wrong"]
    assert "Learning" in page.headings
    assert page.headings[-1] == "Config and versions"
    assert "fine-tuned" in page.text
    assert {"Gradient norm", "GPU memory", "GPU use"} < set(page.plots)
    assert ("What it still knows" in page.headings) == (kind in {"text", "chat"})


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_a_row_says_is_obeyed(kind: str, tmp_path: Path) -> None:
    """One script runs, whose hash the policy has; no markup, handler or address is a row's."""
    run_dir = page_runs.write_run(tmp_path / "run", KINDS[kind]())
    page = page_of(run_dir, FACTS | {"machine": "</script><script>x()</script>\u202e"})
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()

    assert page.scripts == [html.chart_script()]
    assert page.foreign == []
    assert f"script-src 'sha256-{digest}';" in page.policy
    assert "default-src 'none'" in page.policy
    assert not set(page.text) & set("\u202e\u2066\u200b\ufeff\x00\x1b\ud800")
    assert all(json.loads(one)["lines"] for one in page.data)


def test_characters_that_cannot_be_seen_are_spelt_out() -> None:
    """Marks that turn writing round, controls and half characters get a sign; letters stay."""
    assert html.shown("a\u202eb") == 'a<span class="sign">U+202E</span>b'
    assert html.signs("\x00\ud800\u2028\u2066") == "[U+0000][U+D800][U+2028][U+2066]"
    assert html.signs("é 漢字 \U0001f468\u200d\U0001f469 שלום\t") == (
        "é 漢字 \U0001f468\u200d\U0001f469 שלום\t"
    )
    assert html.shown("1\r\n2\r3 <") == "1\n2\n3 &lt;"


@given(text=st.text(max_size=200))
@settings(max_examples=50)
def test_any_text_stays_text(text: str) -> None:
    """Whatever is written, a browser reads it back as that text with its signs, and no tag."""
    page = read(str(html.paragraph(text)))

    assert page.text == html.signs(text)


def documents(scores: list[tuple[float, float]], text: str = "x") -> list[dict[str, Any]]:
    """The results of both stages with these scores."""
    return [
        {
            "details": {
                "documents": [
                    {
                        "row": at + 1,
                        "prompt": text,
                        "gold": text,
                        "free": text,
                        "score": pair[stage],
                    }
                    for at, pair in enumerate(scores)
                ]
            }
        }
        for stage in (0, 1)
    ]


def test_wrong_and_improved_answers_are_chosen_and_the_rest_is_counted() -> None:
    """The lowest scores and the largest gains come first; beyond the limits rows are counted."""
    scores = [(0.0, 0.1 + at / 1000) for at in range(100)] + [(0.5, 1.0)] * 3
    parts = [str(part) for part in answer_parts(*documents(scores), file="eval-after.json")]
    wrong, improved = (part for part in parts if "<details><summary>" in part)

    assert "3 of 103 answers are wholly right." in parts[0]
    assert wrong.count('class="row"') == WRONG_MAX
    assert wrong.index("row 1, score 0.000 → 0.100") < wrong.index("row 2, score")
    assert "40 more in eval-after.json" in wrong
    assert improved.count('class="row"') == IMPROVED_MAX
    assert improved.index("row 101, score 0.500 → 1.000") < improved.index("row 100, score")
    assert "83 more in eval-after.json" in improved


def test_long_texts_are_cut_and_the_rest_is_counted() -> None:
    """Of a million characters two thousand are shown, of each text."""
    parts = answer_parts(*documents([(0.0, 0.0)], "y" * 1_000_000), file="f")
    text = "".join(parts)

    assert "y" * TEXT_MAX in text
    assert "y" * (TEXT_MAX + 1) not in text
    assert "(998,000 more characters)" in text


@pytest.mark.parametrize(
    "broken",
    [
        None, 5, {}, {"documents": 3}, {"documents": [1, None, {}, {"row": "1", "score": 1}]},
        {"documents": [{"row": 1, "score": float("nan")}, {"row": 2, "score": "x"}]},
        {"documents": [{"row": 1, "score": 0.5, "prompt": 7, "gold": {"a": [1]}, "notes": 3}]},
    ],
)  # fmt: skip
def test_documents_of_any_form_cost_no_more_than_themselves(broken: Any, tmp_path: Path) -> None:
    """Missing keys, wrong types and numbers that are none leave a page with all other sections."""
    before, after = page_runs.answers("text")
    after["details"] = broken
    run_dir = page_runs.write_run(tmp_path / "run", [before, after], steps=20)
    page = page_of(run_dir, FACTS)

    assert "Learning" in page.headings
    assert "Config and versions" in page.headings


def test_a_long_run_with_many_rows_is_a_page_under_a_megabyte(tmp_path: Path) -> None:
    """20,000 steps and 5,000 rows of long texts in letters of several bytes fit."""
    before, after = page_runs.classifier(rows=5000)
    wrong = [one for one in after["details"]["documents"] if one["score"] == 0][:100]
    for one in wrong:
        one["prompt"] = "漢<\x00" * 2000
        one["free"] = one["bound"] = '"' * 5000
    run_dir = page_runs.write_run(tmp_path / "run", [before, after], steps=20_000)
    text = report.as_page(build_report(run_dir, FACTS), run_dir, name="run")
    page = read(text)
    curves = [line for one in page.data for line in json.loads(one)["lines"]]

    assert len(text.encode()) < 1_000_000
    assert BYTES_MAX < 500_000
    assert max(len(line["x"]) for line in curves) <= 1000
    assert "more in eval-after.json" in page.text


def test_hundreds_of_labels_do_not_fill_the_page(tmp_path: Path) -> None:
    """Of 400 labels the commonest are shown, and where the others are."""
    results = page_runs.classifier()
    labels = [f"label {at}" for at in range(400)]
    for one in results:
        heads = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "answered": 1}
        one["details"] |= {"labels": labels}
        one["details"]["bound"] |= {
            "per_label": {name: {**heads, "support": at} for at, name in enumerate(labels)},
            "confusion": [[1] * 401 for _ in labels],
        }
    run_dir = page_runs.write_run(tmp_path / "run", results, steps=20)
    text = report.as_page(build_report(run_dir), run_dir, name="run")

    assert len(text) < 400_000
    assert "300 more labels, with fewer rows, in eval-after.json." in text
    assert "label 399" in text
    assert "label 299<" not in text


def test_a_thinned_curve_keeps_its_extremes_and_its_last_point() -> None:
    """A spike of one step in 20,000 is still drawn, and the values under the pointer are real."""
    points = [(float(at), 1.0 + at / 1e6) for at in range(1, 20_001)]
    points[12_345] = (12_346.0, 50.0)
    points[777] = (778.0, -3.0)
    plot = charts.line_plot("loss", [charts.Line(name="l", points=points)], x="step", y="loss")
    (line,) = json.loads(read(str(plot)).data[0])["lines"]
    shown = list(zip(line["x"], line["y"], strict=True))

    assert len(shown) <= 1000
    assert (12_346, 50) in shown
    assert (778, -3) in shown
    assert shown[-1] == (20_000, 1.02)
    assert line["x"] == sorted(line["x"])


def test_thousands_of_evictions_and_endless_names_do_not_fill_the_page(tmp_path: Path) -> None:
    """Lines that would cover one another are one, and names are cut, whoever wrote them."""
    results = page_runs.classifier()
    for one in results:
        one["metric"] = "m" * 1_000_000
        one["details"]["baselines"] = {"b" * 1_000_000: {"figures": {"x": {"value": 1}}}}
        one["details"]["labels"] = ["l" * 200_000, *page_runs.LABELS[1:]]
        one["details"]["bound"]["per_label"]["l" * 200_000] = (
            one["details"]["bound"]["per_label"]["negative"]
        )  # fmt: skip
    run_dir = page_runs.write_run(tmp_path / "run", results, steps=200)
    facts = {"evictions": [{"step": at / 50} for at in range(10_000)]}
    text = report.as_page(build_report(run_dir, facts), run_dir, name="n" * 1_000_000)

    assert len(text) < 1_000_000
    assert "cannot be shown" not in text
    assert "10,000 evictions survived" in text


def test_evictions_that_are_close_share_their_word() -> None:
    """Two words that would cover one another on a phone are one with a number."""
    points = [(float(at), 1.0) for at in range(1, 101)]
    plot = charts.line_plot(
        "loss", [charts.Line(name="l", points=points)], x="step", y="loss",
        events={10.0: "evicted", 15.0: "evicted", 90.0: "evicted"},
    )  # fmt: skip

    assert plot.count('<line class="event"') == 3
    assert "evicted (2)" in plot
    assert plot.count("evicted") == 2


def test_the_sections_have_ids_and_make_the_page(tmp_path: Path) -> None:
    """Each section is an element with the id that it is given by, in the order of the page."""
    run_dir = page_runs.write_run(tmp_path / "run", page_runs.classifier(), steps=20)
    found = build_report(run_dir, FACTS)
    parts = report.sections(found, run_dir)
    text = report.as_page(found, run_dir, name="run")

    assert [key for key, _ in parts][:4] == ["headline", "scores", "answers", "curves"]
    assert all(part.startswith(f'<section id="{key}">') for key, part in parts)
    places = [text.index(part) for _, part in parts]
    assert places == sorted(places)


def test_what_made_the_adapter_is_folded_at_the_end(tmp_path: Path) -> None:
    """Libraries, base, rows and precision of the receipt are a table; other values are left out."""
    run_dir = page_runs.write_run(tmp_path / "run", [], steps=20)
    receipt = {
        "status": {"exact": True},
        "versions": {"torch": "2.13.0", "peft": ["no text"]},
        "precision": "bf16",
        "base": {"model": "a" * 64},
        "training": {"data.train": "b" * 64, "data.prompt": "{text}", "model.revision": "main"},
    }
    (run_dir / "adapter" / "qft.json").write_text(json.dumps(receipt), encoding="utf-8")
    found = build_report(run_dir)
    page = read(report.as_page(found, run_dir, name="run"))

    assert found["versions"] == {
        "torch": "2.13.0", "precision": "bf16", "base, revision": "main", "base, model": "a" * 64,
        "data.train, SHA-256": "b" * 64,
    }  # fmt: skip
    assert "torch2.13.0" in page.text.partition("Config and versions")[2]


def test_a_judge_has_its_own_section(tmp_path: Path) -> None:
    """Win rate with interval, counts, warning, and the pairs that the tuned answer lost."""
    run_dir = page_runs.write_run(tmp_path / "run", page_runs.answers("text"), steps=20)
    (run_dir / "judge.json").write_text(json.dumps(page_runs.judgement()), encoding="utf-8")
    page = page_of(run_dir)
    text = page.text.partition("Judged answers")[2].partition("Learning")[0]

    assert "0.667\u00a0(0.400\u00a0to\u00a00.900)" in text
    assert "the base52250%3120" in text
    assert "Against the base: this judge mostly judges the order" in text
    assert "Lost against the base (30)" in text
    assert "10 more in judge.json" in text
    assert "<script>A" in text
    assert "beU+202Ecause" in text


@pytest.mark.parametrize(
    "more",
    [
        {"tables": 5}, {"tables": {"base_tuned": {"win_rate": "1"}}}, {"documents": 7},
        {"documents": [None, {"base_tuned": {"verdict": "loss", "reasons": 4}, "tuned": 5}]},
    ],
)  # fmt: skip
def test_a_judgement_of_any_form_costs_no_more_than_itself(
    more: dict[str, Any], tmp_path: Path
) -> None:
    """A result that is not as it is written here leaves a whole page."""
    run_dir = page_runs.write_run(tmp_path / "run", [], steps=20)
    (run_dir / "judge.json").write_text(json.dumps(page_runs.judgement(**more)), encoding="utf-8")

    assert "Learning" in page_of(run_dir).headings


def test_report_json_survives_half_characters(tmp_path: Path) -> None:
    """A half of a surrogate pair in a config or a status is kept as JSON escapes it."""
    run_dir = page_runs.write_run(tmp_path / "run", [], steps=20)
    (run_dir / "config.json").write_text('{"model": {"id": "a\\ud800"}}', encoding="utf-8")
    report.write(run_dir, run_dir, None, name="\ud800")
    data = json.loads((run_dir / "report.json").read_text(encoding="utf-8"))

    assert data["config"]["model"]["id"] == "a\ud800"
    assert "[U+D800]" in (run_dir / "report.html").read_text(encoding="utf-8")
