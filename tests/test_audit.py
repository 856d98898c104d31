"""The audit shows what will be learnt, from the very tokens, and warns of what spoils a result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.audits import MOODS, audited
from support.pages import read
from support.tiny import make_config, make_model, make_rows, write_config

from trainer.__main__ import main
from trainer.pages import html
from trainer.pages.audit import as_page, as_text


def test_the_sample_highlights_exactly_what_is_learnt(tmp_path: Path) -> None:
    """Text and page mark the answer and its end token, and nothing of the prompt."""
    found = audited(tmp_path)
    page = read(as_page(found, "moods"))

    assert page.marked[0] == "negative</s>"
    assert "mood: 【negative</s>】" in as_text(found)
    assert len(page.marked) == 5


def test_counts_are_those_of_the_rows(tmp_path: Path) -> None:
    """Rows, tokens, the histogram and the table of answers add up."""
    found = audited(tmp_path)

    assert (found.train["rows"], found.held_out["rows"]) == (40, 9)
    assert sum(count for _, count in found.lengths) == 40
    assert {(name, kept) for name, _, kept in found.labels} == {(mood, 3) for mood in MOODS}
    assert sum(count for _, count, _ in found.labels) == 40
    assert 0 <= found.padding_waste < found.padding_waste_unsorted < 1


def test_each_label_of_a_set_is_counted_by_itself(tmp_path: Path) -> None:
    """Text and page tell how often a label stands, alone or not, and which never does."""
    output = ["a, b", "b", "N/A", "B, a"]
    rows = [{"text": f"t {n}", "mood": mood} for n, mood in enumerate(output)]
    found = audited(tmp_path, rows, eval={"kind": "multilabel", "labels": ["a", "b", "c"]})
    page = read(as_page(found, "sets"))

    assert found.per_label == [("a", 2, 0), ("b", 3, 0), ("c", 0, 0), ("N/A", 1, 0)]
    assert "        3       0  b\n" in as_text(found)
    assert "no row to learn c from" in found.warnings
    assert "labelto learnheld out\na20\nb30\nc00\nN/A10" in page.text


def test_what_does_not_stay_whole_is_named_and_nothing_is_dropped(tmp_path: Path) -> None:
    """The rows whose prompts lose their middle are listed, also on the page."""
    rows = [{"text": "x" * 300 if n == 2 else f"t {n}", "mood": "neutral"} for n in range(4)]
    found = audited(tmp_path, rows)
    line = "dropped: none, as a row that cannot be learnt with its whole answer is an error; "

    assert f"{line}shortened in the middle, to learn from: row 3\n" in as_text(found)
    assert "to learn from: row 3" in read(as_page(found, "moods")).text


def test_a_row_cannot_command_the_terminal(tmp_path: Path) -> None:
    """Control characters are spelt out, line breaks stay."""
    rows = [{"text": "red \x1b[31m\x9b2J\r\nblue", "mood": "neutral"}]
    text = as_text(audited(tmp_path, rows))

    assert r"red \x1b[31m\x9b2J\x0d" in text
    assert "\x1b" not in text


def test_spoilt_rows_are_warned_of(tmp_path: Path) -> None:
    """Leaks, repetitions, missing labels, one-sided answers and shortened prompts are told."""
    rows = [{"text": "TEXT 1!" if n else "x" * 300, "mood": "neutral"} for n in range(8)]
    found = audited(tmp_path, rows)
    warnings = "\n".join(found.warnings)

    assert "1 held-out rows are also learnt" in warnings
    assert "1 of 8 prompts are shortened" in warnings
    assert "6 of 8 rows are repeated" in warnings
    assert "no row to learn negative, positive from" in warnings
    assert "8 of 8 answers are 'neutral'" in warnings
    assert as_text(found).count("warning: ") == 5
    assert audited(tmp_path).warnings == []


def test_the_page_stands_alone_and_executes_nothing(tmp_path: Path) -> None:
    """Nothing is fetched, every tag closes, and markup in a row is shown, not obeyed."""
    rows = [{"text": "<script>alert(1)</script>", "mood": mood} for mood in MOODS]
    page = read(as_page(audited(tmp_path, rows), "<b>name</b>"))

    assert page.foreign == []
    assert page.scripts == [html.chart_script()]
    assert page.plots == ["tokens per row"]
    assert "<script>alert(1)</script>" in page.text
    assert page.headings == [
        "Warnings", "Rows", "What is learnt", "Lengths", "Answers", "Duplicates",
    ]  # fmt: skip


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command audits a run directory, as text, as JSON and as a page; bad rows exit 65."""
    model = make_model(tmp_path / "model")
    rows = make_rows(tmp_path / "train.jsonl", 12)
    run_dir = write_config(tmp_path / "run", make_config(model, rows))
    page = tmp_path / "audit.html"

    assert main(["audit", "--run-dir", str(run_dir), "--html", str(page)]) == 0
    assert "to learn from: 12 rows" in capsys.readouterr().out
    assert read(page.read_text(encoding="utf-8")).plots == ["tokens per row"]
    assert main(["audit", "--run-dir", str(run_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["rows"] == 12
    rows.write_text('{"text": "a"}\n', encoding="utf-8")
    assert main(["audit", "--run-dir", str(run_dir)]) == 65
    assert "no field `mood`" in capsys.readouterr().err
    assert main(["audit", "--run-dir", str(tmp_path)]) == 78
