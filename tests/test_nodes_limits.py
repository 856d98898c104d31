"""A run with several machines keeps its limits, and bills nothing when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.group_story import GroupStory

from infra.errors import NotAllowed
from infra.run.budget import Budget
from infra.run.journal import Outcome
from infra.run.plan import Goal, RunPlan


@pytest.fixture
def story(tmp_path: Path) -> GroupStory:
    """A run with three machines and 60 steps, in a cloud with two regions."""
    return GroupStory(path=tmp_path / "journal.jsonl")


@pytest.mark.parametrize("nodes_min", [1, 2])
def test_a_run_trains_with_the_two_machines_there_is_room_for(
    story: GroupStory, nodes_min: int
) -> None:
    """The third machine is not waited for where two are enough."""
    story.nodes_min = nodes_min
    story.cloud.room = {"a": 2}

    assert story.go().outcome is Outcome.DONE

    assert {len(group) for group in story.members()} == {2}
    assert story.cloud.machines == {}
    assert story.billed_usd() == pytest.approx(story.cloud.usd(), abs=1e-9)


def test_too_few_machines_are_released_and_start_again_when_the_missing_one_is_had(
    story: GroupStory,
) -> None:
    """Two machines that wait for a third bill for a quarter of an hour, then minutes an hour."""
    story.nodes_min = 3
    story.cloud.room = {"a": 2}
    start_s = story.world.now_s
    billed_h: list[float] = []

    def look(*, room: int) -> None:
        billed_h.append(story.cloud.compute_h())
        story.cloud.room["a"] = room

    story.cloud.when(lambda: story.world.now_s >= start_s + 1500, lambda: look(room=2))
    story.cloud.when(lambda: story.world.now_s >= start_s + 6 * 3600, lambda: look(room=3))

    assert story.go().outcome is Outcome.DONE

    assert billed_h[0] <= 0.7
    assert billed_h[1] - billed_h[0] <= 0.25 * 5.6
    assert {len(group) for group in story.members()} == {3}
    assert story.cloud.machines == {}
    assert story.billed_usd() == pytest.approx(story.cloud.usd(), abs=1e-9)


def test_a_budget_in_dollars_counts_all_machines_and_ends_them_all(story: GroupStory) -> None:
    """Three machines reach a budget together, and none bills after it."""
    story.cloud.steps = 100_000
    story.plan = RunPlan(goal=Goal.RUN, budget=Budget(usd=0.5))

    assert story.go().outcome is Outcome.BUDGET_REACHED

    assert story.cloud.running() == []
    assert story.billed_usd() == pytest.approx(story.cloud.usd(), abs=1e-9)


def test_one_machine_that_is_not_allowed_ends_a_run_that_needs_it(story: GroupStory) -> None:
    """The others are released, and the error says why."""
    story.nodes_min = 3
    story.cloud.forbidden = {1}

    with pytest.raises(NotAllowed):
        story.go()

    assert story.cloud.running() == []
