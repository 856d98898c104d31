"""A run with several machines reaches its end through what a spot cloud does to some of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.group_story import GroupStory

from infra.provider import StopReason
from infra.run.journal import Kind, Outcome, read
from infra.run.plan import Goal, Policy, RunPlan

LONG = 1500
"""Steps of a training that is still under way when a machine is back for long."""


@pytest.fixture
def story(tmp_path: Path) -> GroupStory:
    """A run with three machines and 60 steps, in a cloud with two regions."""
    return GroupStory(path=tmp_path / "journal.jsonl")


def assert_well(story: GroupStory) -> None:
    """The adapter is home, nothing is left, and the bill is what the cloud charges."""
    assert (story.home.out, story.cloud.machines) == ("out", {})
    assert story.cloud.log[-1] == "delete"
    assert story.cloud.overlaps == []
    assert story.billed_usd() == pytest.approx(story.cloud.usd(), abs=1e-9)
    numbers = [number for _, number, _ in story.cloud.groups if number]
    assert numbers == sorted(set(numbers))
    assert all(len(set(group)) == len(group) >= story.nodes_min for group in story.members())


def test_three_machines_reach_the_end_together(story: GroupStory) -> None:
    """Without disturbance three machines are rented at once, train as one group and are removed."""
    ending = story.go()

    assert ending.outcome is Outcome.DONE
    assert story.cloud.log[:3] == ["create 0 a", "create 1 a", "create 2 a"]
    assert story.members() == [(0, 1, 2)]
    assert story.world.now_s - 1_000_000.0 < 100
    assert_well(story)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_the_others_go_on_within_seconds_of_an_eviction(story: GroupStory, lost: int) -> None:
    """Whichever machine is taken, its mates lose no whole step and train again in seconds."""
    taken: list[float] = []
    story.cloud.steps = 120

    def take() -> None:
        taken.append(story.world.now_s)
        story.cloud.take(lost)

    story.cloud.at_step(30, take)

    assert story.go().outcome is Outcome.DONE

    left = tuple(node for node in range(3) if node != lost)
    again = next(at for at, _, members in story.cloud.groups if sorted(members) == list(left))
    assert again - taken[0] < 15
    assert_well(story)


@pytest.mark.parametrize("lost", [0, 2])
def test_a_machine_that_is_back_joins_after_a_while(story: GroupStory, lost: int) -> None:
    """The group stops for a machine that joins, after ten minutes of training and not before."""
    story.cloud.steps = LONG
    story.cloud.at_step(30, lambda: story.cloud.take(lost))

    assert story.go().outcome is Outcome.DONE

    _first, second, third = story.cloud.groups
    assert sorted(third[2]) == [0, 1, 2]
    assert 600 <= third[0] - second[0] < 620
    assert_well(story)


def test_two_machines_that_are_taken_at_once_leave_one_that_trains_alone(story: GroupStory) -> None:
    """One machine goes on without a group's arguments, until the others are back."""
    story.cloud.steps = LONG
    story.cloud.at_step(30, lambda: story.cloud.take(0, 2))

    assert story.go().outcome is Outcome.DONE

    assert [sorted(one) for one in story.members()] == [[0, 1, 2], [1], [0, 1, 2]]
    assert story.cloud.groups[1][1] == 0
    assert_well(story)


def test_all_machines_that_are_taken_at_once_come_back_together(story: GroupStory) -> None:
    """When all are lost the work since the last save is, and the same three go on from there."""
    story.cloud.at_step(35, lambda: story.cloud.take(0, 1, 2))

    assert story.go().outcome is Outcome.DONE

    assert story.members() == [(0, 1, 2)] * 2
    assert sum(line.startswith("create") for line in story.cloud.log) == 3
    assert_well(story)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_silent_machine_is_started_again_while_the_others_train(
    story: GroupStory, lost: int
) -> None:
    """A machine that answers nobody is given up after two minutes; its mates do not wait for it."""
    story.cloud.steps = LONG
    story.cloud.at_step(30, lambda: story.cloud.silence(lost))

    assert story.go().outcome is Outcome.DONE

    assert [sorted(one) for one in story.members()] == [
        [0, 1, 2],
        sorted({0, 1, 2} - {lost}),
        [0, 1, 2],
    ]
    assert story.cloud.groups[1][0] - story.cloud.groups[0][0] < 50
    assert f"deallocate {lost}" in story.cloud.log
    assert_well(story)


def test_a_machine_that_was_silent_for_a_minute_is_not_restarted(story: GroupStory) -> None:
    """A short silence costs the group a new forming, and nobody a boot."""
    story.cloud.steps = LONG
    story.cloud.at_step(30, lambda: story.cloud.silence(1))
    story.cloud.at_step(80, lambda: setattr(story.cloud.machines[1], "silent", False))

    assert story.go().outcome is Outcome.DONE

    assert [sorted(one) for one in story.members()] == [[0, 1, 2], [0, 2], [0, 1, 2]]
    assert not any("deallocate" in line or "start" in line for line in story.cloud.log)
    assert_well(story)


def test_a_notice_costs_no_step_and_the_others_do_not_wait_for_the_eviction(
    story: GroupStory,
) -> None:
    """After a notice all save; the others train again before the machine is really taken."""
    story.cloud.steps = 200
    story.cloud.at_step(33, lambda: story.cloud.give_notice(1, taken_after_s=30))

    assert story.go().outcome is Outcome.DONE

    assert story.members()[:2] == [(0, 1, 2), (0, 2)]
    assert story.cloud.groups[1][0] - story.cloud.groups[0][0] < 33 + 15
    assert_well(story)


def test_a_notice_that_came_to_nothing_lets_the_machine_join_again(story: GroupStory) -> None:
    """A machine that saved for an eviction is of use again when none has come."""
    story.cloud.steps = LONG
    story.cloud.at_step(33, lambda: story.cloud.give_notice(1, taken_after_s=1e6))

    assert story.go().outcome is Outcome.DONE

    assert [sorted(one) for one in story.members()] == [[0, 1, 2], [0, 2], [0, 1, 2]]
    assert_well(story)


def test_the_leader_that_is_lost_before_the_results_are_home_costs_no_training(
    story: GroupStory,
) -> None:
    """Every machine has the finished state, so another one writes the results again."""
    story.cloud.when(
        lambda: any(one.has_results for one in story.cloud.machines.values()),
        lambda: story.cloud.take(0),
    )
    story.cloud.room = {"a": 3}

    assert story.go().outcome is Outcome.DONE

    assert story.cloud.step <= 60
    assert_well(story)


def test_a_machine_that_is_deleted_is_made_again_at_the_same_place(story: GroupStory) -> None:
    """A machine that vanished with its disk comes back empty, and gets its state from others."""
    story.cloud.steps = LONG
    story.cloud.at_step(30, lambda: story.cloud.lose(1))

    assert story.go().outcome is Outcome.DONE

    assert story.cloud.log.count("create 1 a") == 2
    assert sorted(story.members()[-1]) == [0, 1, 2]
    assert story.billed_usd() == pytest.approx(story.cloud.usd(), abs=1e-9)
    assert story.home.out == "out"


def test_rehearsed_evictions_are_shared_out_and_each_takes_place_once(story: GroupStory) -> None:
    """Two rehearsals are two evictions, of two machines."""
    story.cloud.steps = 1200
    story.policy = Policy(poll_s=1.0, regroup_every_s=100)
    story.plan = RunPlan(goal=Goal.RUN, rehearse_evictions=(20, 600))

    assert story.go().outcome is Outcome.DONE

    assert [line for line in story.cloud.log if "evicted" in line] == ["evicted 0", "evicted 1"]
    assert story.state.rehearsed == {20, 600}
    assert_well(story)


def test_a_person_who_stops_one_machine_stops_the_run(story: GroupStory) -> None:
    """Nothing is started again, and the other machines are released."""
    story.cloud.at_step(30, lambda: story.cloud.take(1, reason=StopReason.USER))

    ending = story.go()

    assert ending.outcome is Outcome.STOPPED_BY_USER
    assert story.cloud.running() == []
    assert not any(line.startswith("start") for line in story.cloud.log)
    assert max(story.state.home_step, 0) >= 30
    assert story.billed_usd() == pytest.approx(story.cloud.usd(), abs=1e-9)


@pytest.mark.parametrize("goal", [Goal.UP, Goal.TRAIN, Goal.FETCH])
def test_each_goal_goes_as_far_as_it_says(story: GroupStory, goal: Goal) -> None:
    """One command after the other reaches what one command for all does."""
    story.plan = RunPlan(goal=Goal.UP)
    assert story.go().outcome is Outcome.DONE
    assert story.cloud.running() == [0, 1, 2]
    assert story.members() == []
    if goal is Goal.UP:
        return

    story.plan = RunPlan(goal=Goal.TRAIN)
    assert story.go().outcome is Outcome.DONE
    assert story.cloud.running() == [0, 1, 2]
    assert (story.state.trained, story.home.out) == (True, "")
    if goal is Goal.TRAIN:
        return

    story.plan = RunPlan(goal=Goal.FETCH)
    assert story.go().outcome is Outcome.DONE
    assert (story.cloud.running(), story.home.out) == ([0, 1, 2], "out")
    story.plan = RunPlan(goal=Goal.RUN)
    assert story.go().outcome is Outcome.DONE
    assert story.members() == [(0, 1, 2)]
    assert_well(story)


def test_a_fetch_that_comes_too_early_leaves_the_machines_as_they_are(story: GroupStory) -> None:
    """A training that is not over is no reason to release anything."""
    story.plan = RunPlan(goal=Goal.UP)
    story.go()
    story.plan = RunPlan(goal=Goal.FETCH)

    ending = story.go()

    assert ending.outcome is Outcome.BAD_INPUT
    assert story.cloud.running() == [0, 1, 2]


def test_a_run_that_is_done_does_nothing_when_its_command_is_repeated(story: GroupStory) -> None:
    """The same command twice removes nothing twice and rents nothing."""
    story.go()
    log = list(story.cloud.log)
    count = len(read(story.path))

    assert story.go().outcome is Outcome.DONE

    assert story.cloud.log == log
    assert [event.kind for event in read(story.path)[count:]] == [Kind.RUN_RESUMED, Kind.RUN_ENDED]
