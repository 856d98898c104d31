"""The page shows the answers to a few held-out rows side by side over the steps of a training."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from trainer.pages.samples import STEPS_SHOWN_MAX, samples_parts, shown_steps
from trainer.rundir.samples import SAMPLES, SampledAnswer, SampledRow, SampleLog

ROWS = (
    SampledRow(row=3, prompt="Is it <b>bold</b>?", right="yes"),
    SampledRow(row=9, prompt="And this?", right="no"),
)


def written(directory: Path, steps: list[int], *, text: str = "yes", rows: int = 2) -> Path:
    """Write samples of these steps, all of them alike."""
    log = SampleLog(rows=ROWS[:rows])
    for step in steps:
        log = log.with_answers(step, [SampledAnswer(text=text, stopped=step > 0)] * rows)
    log.write(directory / SAMPLES)
    return directory


def test_each_row_has_its_answers_over_time(tmp_path: Path) -> None:
    """Prompt, right answer and each step are there in order, with what is to be said of them."""
    html = "".join(samples_parts(written(tmp_path, [0, 50, 100])))
    words = [unescape(one).strip() for one in re.findall(r"<(?:pre|p [^>]*)>([^<]*)", html)]

    assert words[:9] == [
        *("Is it <b>bold</b>?", "right answer", "yes"),
        *("before training, right, not ended", "yes", "step 50, right", "yes"),
        *("step 100, right, as before", "yes"),
    ]
    assert html.count("<details") == 2


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "{{7}}"]
)
def test_what_a_model_wrote_is_text_on_the_page(tmp_path: Path, hostile: str) -> None:
    """No answer becomes markup, whatever it is."""
    html = "".join(samples_parts(written(tmp_path, [0], text=hostile)))

    assert hostile in unescape(html)
    assert "<script" not in html
    assert "<img" not in html


def test_of_many_times_a_few_are_shown(tmp_path: Path) -> None:
    """The first and the last time are shown, and the page says what is only in the file."""
    steps = [*range(0, 410, 10)]
    html = "".join(samples_parts(written(tmp_path, steps)))

    assert len(shown_steps(steps)) == STEPS_SHOWN_MAX
    assert {"before training", "step 400"} <= set(re.findall(r"before training|step \d+", html))
    assert "In samples.jsonl are 35 more times." in html


def test_long_answers_keep_the_page_small(tmp_path: Path) -> None:
    """Answers of two thousand signs that HTML spells out take a bounded part of a page."""
    html = "".join(samples_parts(written(tmp_path, [*range(40)], text="&" * 2000)))

    assert len(html) < 400_000


def test_a_run_without_samples_has_no_section(tmp_path: Path) -> None:
    """Neither no file nor one of no samples shows anything."""
    assert samples_parts(tmp_path) == []
    (tmp_path / SAMPLES).write_text("{}\n")
    assert samples_parts(tmp_path) == []
