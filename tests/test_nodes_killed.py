"""A command that is killed while it drives several machines is typed again and ends well."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fakecloud import Killed
from support.group_story import GroupStory
from support.virtual_threads import ThreadedWorld

from infra.run.journal import Outcome

SAMPLES = 24
"""How many moments are tried, evenly spread: all of them take minutes."""


def make_story(path: Path, *, kill_at: int | None) -> GroupStory:
    """Return a run with three machines, the first region full, and one machine that is evicted."""
    story = GroupStory(path=path, world=ThreadedWorld(kill_at=kill_at))
    story.cloud.room = {"a": 0, "b": 9}
    story.cloud.at_step(30, lambda: story.cloud.take(1))
    return story


def test_a_command_killed_along_the_way_is_typed_again_and_ends_well(tmp_path: Path) -> None:
    """At each moment tried nothing is left or bills, and the bill is what the cloud charges."""
    whole = make_story(tmp_path / "whole.jsonl", kill_at=None)
    assert whole.go().outcome is Outcome.DONE
    count = whole.world.moments
    assert count > 20

    for moment in range(1, count + 1, count // SAMPLES):
        story = make_story(tmp_path / f"{moment}.jsonl", kill_at=moment)
        with pytest.raises(Killed):
            story.go()

        assert story.go().outcome is Outcome.DONE, moment

        assert (story.home.out, story.cloud.running(), story.cloud.machines) == ("out", [], {})
        assert story.cloud.overlaps == [], moment
        assert story.billed_usd() == pytest.approx(story.cloud.usd(), abs=1e-9), moment
