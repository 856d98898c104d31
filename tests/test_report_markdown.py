"""The report for a pull request is short Markdown in which no text of a stranger means anything."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from support.reports import run_dir

from trainer.pages import report
from trainer.pages.markdown import block, folded, plain, table
from trainer.pages.report_markdown import BYTES_MAX, as_markdown
from trainer.pages.run_files import build_report, read

__all__ = ["run_dir"]  # a fixture of another file, found by its name here

FACTS: dict[str, Any] = {
    "evictions": [{"step": 12, "at": "2026-11-30T10:00:00Z", "reason": "evicted"}],
    "usd": 0.04,
    "hours": 0.12,
    "machine": "small in a",
    "timeline": {
        "spans": [
            {
                "activity": "train",
                "begin_s": 0.0,
                "end_s": 400.0,
                "machine": 1,
                "compute": True,
                "usd": 0.04,
            }
        ],
        "own": False,
    },
}
HOSTILE = (
    "| end | of | cells |",
    "line\n\n# heading\n- list\n1. list",
    "@octocat and @org/team, see #12, GH-34, org/repo#5",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "[click](https://evil.example) ![pixel](https://evil.example/x.png)",
    "https://evil.example www.evil.example a@evil.example",
    "```\ncode\n``` `x` ~~gone~~ **bold** __bold__ $x$ [^1] <!-- --> &lt;b&gt;",
    "</pre></details></td></table>",
    "\\| \\\\| \\",
    "\u202eturned round\u202c \x00\x1b[31m",
    "deadbeefdeadbeefdeadbeefdeadbeefdeadbeef",
)
OURS = {"h3", "h4", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
OURS_IN_HTML = {"details", "summary", "pre"}


class _Rendered(HTMLParser):
    """The tags and the text of a rendered document."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.cells: list[str] = []
        self.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not [name for name, _ in attrs if name != "style"], attrs
        self.tags.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cells and self.tags[-1] == "td":
            self.cells[-1] += data


def markdown_of(run_dir: Path, facts: dict[str, Any] | None = None, name: str = "run") -> str:
    """The report of a run directory."""
    found = build_report(run_dir, FACTS if facts is None else facts)
    before, after = (read(run_dir / f"eval-{stage}.json") for stage in ("before", "after"))
    return as_markdown(found, before, after, name=name)


def test_it_says_what_a_reviewer_asks(run_dir: Path) -> None:
    """Headline, scores with intervals, cost, evictions and versions are there."""
    receipt = {"versions": {"torch": "2.13.0"}, "finished_at": "2026-11-30T10:00:00Z"}
    (run_dir / "adapter" / "qft.json").write_text(json.dumps(receipt))
    text = markdown_of(run_dir)
    rendered = _Rendered(text)

    assert "0.33 → 1.00 for 4 cents in 7 min, one eviction survived" in rendered.text
    assert "change, paired by row" in rendered.text
    assert re.search(r"\| accuracy \| 0\.333.*\| 1\.000.*\| \+0\.667 \(", text)
    assert "commonest answer" in rendered.text
    assert "at step 12, 2026-11-30T10:00:00Z" in rendered.text
    assert "What the machine did" in rendered.text
    assert "torch" in [cell.strip() for cell in rendered.cells]
    assert set(rendered.tags) <= OURS | OURS_IN_HTML


def test_it_is_written_beside_the_page(run_dir: Path, tmp_path: Path) -> None:
    """`qft report` leaves page, data and Markdown of the same run."""
    out = tmp_path / "out"
    out.mkdir()
    report.write(run_dir, out, FACTS, name="run")

    assert sorted(path.name for path in out.iterdir()) == [
        "report.html", "report.json", "report.md",
    ]  # fmt: skip
    assert (out / "report.md").read_text(encoding="utf-8") == markdown_of(run_dir)


def test_the_wrong_answers_are_folded_and_few(run_dir: Path) -> None:
    """Of an evaluation before training alone, some of its wrong answers are shown."""
    (run_dir / "eval-after.json").unlink()
    rendered = _Rendered(markdown_of(run_dir))

    assert "Wrong answers (6 of 8; 12 rows were scored)" in rendered.text
    assert rendered.tags.count("pre") == 6
    assert rendered.tags.count("details") == rendered.text.count("Wrong answers") + 2


@pytest.mark.parametrize("bad", HOSTILE)
def test_texts_of_strangers_stay_texts(run_dir: Path, bad: str) -> None:
    """Answers, metrics, labels, names and errors change nothing around them."""
    plainly = _Rendered(markdown_of(run_dir))
    for stage in ("before", "after"):
        path = run_dir / f"eval-{stage}.json"
        result = json.loads(path.read_text())
        result["metric"] = bad
        for one in result["details"]["documents"]:
            one |= {"prompt": bad, "gold": bad, "free": bad, "bound": bad, "score": 0.0}
        path.write_text(json.dumps(result))
    config = {"model": {"id": bad}, "method": {"kind": bad, "r": bad}, "train": {"lr": bad}}
    (run_dir / "config.json").write_text(json.dumps(config))
    receipt = {"versions": {bad: bad}, "finished_at": bad, "precision": bad}
    (run_dir / "adapter" / "qft.json").write_text(json.dumps(receipt))
    facts = FACTS | {
        "machine": bad,
        "evictions": [{"step": 3, "at": bad, "reason": bad}],
    }
    text = markdown_of(run_dir, facts, name=bad)
    rendered = _Rendered(text)

    assert set(rendered.tags) <= OURS | OURS_IN_HTML
    assert rendered.tags.count("table") >= plainly.tags.count("table")
    assert rendered.tags.count("details") == rendered.tags.count("summary")
    outside = re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)
    assert not re.search(r"@\w", outside)
    assert not re.search(r"https?:/|www\.|#\d+\b(?!;)", outside)


def test_an_enormous_run_stays_below_the_limit(run_dir: Path) -> None:
    """Long answers, many labels and many evictions are cut; what is left out is counted."""
    path = run_dir / "eval-after.json"
    result = json.loads(path.read_text())
    for one in result["details"]["documents"]:
        one |= {"prompt": "\U0001f600" * 100_000, "gold": "x" * 100_000, "score": 0.0}
    path.write_text(json.dumps(result))
    facts = FACTS | {
        "evictions": [{"step": at, "at": "x" * 1000} for at in range(5000)],
    }
    text = markdown_of(run_dir, facts)

    assert len(text.encode()) <= BYTES_MAX
    assert "4,980 more" in text
    assert "more characters" in text
    assert set(_Rendered(text).tags) <= OURS | OURS_IN_HTML


@pytest.mark.parametrize("name", ["eval-before.json", "eval-after.json"])
@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"details": []}', '{"metric": 3, "value": "x", "details": {"documents": 7}}'],
)
def test_results_of_another_form_cost_their_part_only(
    run_dir: Path, name: str, content: str
) -> None:
    """Whatever a machine sends home, there is a report."""
    (run_dir / name).write_text(content)

    assert markdown_of(run_dir, FACTS | {"plan": {"planned": 1}, "timeline": {"spans": [1]}})


def test_an_empty_run_directory_has_a_report(tmp_path: Path) -> None:
    """An empty directory gives a headline and no table."""
    text = markdown_of(tmp_path, {})

    assert text.startswith("### Fine-tuning report: run\n")
    assert "nothing trained yet" in text


@given(text=st.text(max_size=80))
def test_any_text_is_one_cell_and_one_block(text: str) -> None:
    """Two columns stay two columns, and a block ends where it should."""
    cell = text or "x"
    document = (
        f"{table(('a', 'b'), [(cell, 'right')])}\n\n{folded('title', block(text, most=99))}\n"
    )
    rendered = _Rendered(document)

    assert set(rendered.tags) <= OURS | OURS_IN_HTML
    assert len(rendered.cells) == 2
    assert rendered.cells[1].strip() == "right"
    assert rendered.tags.count("pre") == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("accuracy 0.43 → 0.69", "accuracy 0.43 → 0.69"),
        ("a\n\n b", "a b"),
        ("- a", "&#45; a"),
        ("-0.5", "-0.5"),
        ("2. a", "2&#46; a"),
        ("$1 and $2", "\\$1 and \\$2"),
        ("@me", "@\u200bme"),
    ],
)
def test_a_harmless_text_reads_as_it_is(text: str, line: str) -> None:
    """Only what means something in Markdown is written in another way."""
    assert plain(text) == line
