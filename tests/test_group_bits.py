"""Several ranks train with the bits of one process, whatever their number and the method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.ranks import STEPS, Report, Story, by_one_process, do_story, run_dirs, together

KINDS: dict[str, dict[str, Any]] = {
    "qlora": {"method": {"kind": "qlora"}},
    "qdora, micro-batch 1": {
        "method": {"kind": "qdora"},
        "train": {"micro_batch": 1, "batch_size": 6},
    },
    "qdylora": {"method": {"kind": "qdylora", "r": 8}},
    "nola": {"method": {"kind": "nola", "bases": 16}},
    "8-bit moments": {"method": {"kind": "qlora", "r": 16, "optimizer": "adamw8bit"}},
    "loss scale": {"method": {"kind": "lora"}},
}


def of_every_kind(peers: Any, stories: list[Story], flag: Any, report: Report) -> None:
    """Do several trainings, one after the other, with the same ranks."""
    report.extra = []
    for story in stories:
        one = Report()
        do_story(peers, story, flag, one)
        report.extra.append(one)


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_every_world_size_gives_the_bits_of_one_process(tmp_path: Path, size: int) -> None:
    """After every step parameters are the same, at the end moments too, for each method.

    Of six ranks two never have anything to do.
    """
    stories = [
        Story(
            run_dirs=run_dirs(tmp_path / str(at), size + 1, **tables),
            until=STEPS,
            scaled=name == "loss scale",
        )
        for at, (name, tables) in enumerate(KINDS.items())
    ]
    reports = together(size, stories, of_every_kind)

    assert [one.error for one in reports] == [""] * size, [one.text for one in reports]
    for at, name in enumerate(KINDS):
        expected = by_one_process(stories[at].run_dirs[-1], stories[at])
        assert len(expected.digests) == STEPS
        for report in reports:
            found = report.extra[at]
            assert found.records == expected.records, name
            assert found.adapter == expected.adapter, name
            assert found.moments == expected.moments, name


def test_a_step_sends_no_more_than_the_rounds_and_the_sums_take(tmp_path: Path) -> None:
    """With k rounds of W ranks each sends (k+1)(W-1)/W of a gradient, as counted in the code."""
    tables = {"method": {"kind": "qlora", "r": 16}, "train": {"batch_size": 8}}
    story = Story(run_dirs=run_dirs(tmp_path, 3, **tables), until=1)
    reports = together(2, story)

    gradient = sum(len(one) for one in by_one_process(story.run_dirs[-1], story).adapter.values())
    rounds = 2
    for report in reports:
        assert report.sent_bytes == pytest.approx((rounds + 1) * gradient / 2, rel=0.02)
