"""Nothing keeps the supervisor turning for ever: every wait has an end, every failure a limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakecloud import Story

from infra import errors
from infra import provider as seam
from infra.offer import Offer, Want
from infra.provider import PowerState, StopReason, Vm
from infra.run.fold import fold
from infra.run.journal import Journal, Kind, Outcome, read
from infra.run.observer import StallDetector
from infra.run.plan import Goal, Policy, RunPlan
from infra.run.workload import HostUnreachable, JobOutcome, JobPhase, JobView


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A run of 50 steps in a cloud with two regions."""
    return Story(path=tmp_path / "journal.jsonl")


def kinds(story: Story) -> list[Kind]:
    """What the journal says happened, in order."""
    return [event.kind for event in read(story.path)]


def limit_turns(story: Story, most: int = 3000) -> None:
    """Fail rather than turn for ever."""
    turns: list[int] = []

    def count() -> None:
        turns.append(0)
        assert len(turns) < most, "it turns for ever"

    story.between = count


def cut(_vm: Vm) -> None:
    """Fail as an act does whose line is cut every time."""
    raise HostUnreachable("the line is cut during the act")


def test_a_machine_that_answers_but_cannot_be_prepared_is_given_up(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers a knock, but every preparation is cut: three boots with pauses, then exit 4."""
    monkeypatch.setattr(story.work, "prepare", cut)
    limit_turns(story)

    assert story.go().outcome is Outcome.MACHINE_FAILED
    assert kinds(story).count(Kind.MACHINE_UNREACHABLE) == 3


def test_an_owned_machine_that_cannot_be_cleared_ends_the_run(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter is home, the user's machine no longer answers: that is told, not repeated."""
    monkeypatch.setattr(story.work, "clear", cut)
    story.plan = RunPlan(goal=Goal.RUN, rents=False)
    limit_turns(story)

    assert story.go().outcome is Outcome.MACHINE_FAILED


def test_a_machine_that_never_starts_again_is_not_waited_for_without_end(story: Story) -> None:
    """Its region and all others stay full: after the longest wait that is allowed, exit 3."""
    story.plan = RunPlan(goal=Goal.RUN, rehearse_evictions=(25,))
    story.cloud.regions = ("a",)

    def fill() -> None:
        if "evict" in story.cloud.log:
            story.cloud.full = {"a"}
        assert story.world.now_s < 1_000_000 + 20 * 3600, "it waits for ever"

    story.between = fill

    ending = story.go()

    assert ending.outcome is Outcome.CLOUD_REFUSED
    assert "a is full" in ending.reason


def test_run_again_the_next_day_it_waits_again(story: Story) -> None:
    """A run that found no capacity yesterday does not give up at once today."""
    story.cloud.full = {"a", "b"}
    assert story.go().outcome is Outcome.CLOUD_REFUSED
    story.world.now_s += 86_400
    requested_s = story.world.now_s

    def free_later() -> None:
        if story.world.now_s - requested_s > 3600:
            story.cloud.full.clear()

    story.between = free_later

    assert story.go().outcome is Outcome.DONE


def test_waiting_for_capacity_asks_less_and_less_often(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve hours without capacity cost the provider tens of questions, not thousands."""
    requested: list[float] = []
    offers = story.cloud.offers
    story.cloud.full = {"a", "b"}

    def count(want: Want) -> list[Offer]:
        requested.append(story.world.now_s)
        return offers(want)

    monkeypatch.setattr(story.cloud, "offers", count)

    story.go()

    assert len(requested) < 150


def test_an_old_verdict_of_the_trainer_does_not_bind_a_new_start(story: Story) -> None:
    """Config refused at step 30, machine kept; mended, the same command launches again."""
    story.plan = RunPlan(goal=Goal.RUN, rehearse_evictions=(30,))
    refused: list[int] = []

    def refuse_once() -> None:
        if "evict" in story.cloud.log and not refused:
            refused.append(1)
            story.work.exit_codes = [78]

    story.between = refuse_once
    assert story.go().outcome is Outcome.BAD_INPUT
    story.between = lambda: None

    assert story.go().outcome is Outcome.DONE


def test_a_refused_start_keeps_the_machine_whose_disk_alone_holds_the_work(story: Story) -> None:
    """Stopped at step 8 with no copy at home; a start that refuses reports 0, and loses nothing."""
    really, refused = (
        story.work.job_status,
        replace(JobView(phase=JobPhase.EXITED), outcome=JobOutcome.BAD_INPUT, exit_code=78),
    )

    def look(vm: Vm) -> JobView:
        view = really(vm)
        story.work.home = 0  # nothing comes home by itself: no save was due yet
        if story.work.launches > 1:
            return refused
        if view.step >= 8:
            story.work.stop(vm)
            story.work.exit_codes = [78]
            return replace(view, phase=JobPhase.EXITED, outcome=JobOutcome.CRASHED, exit_code=70)
        return view

    story.work.job_status = look  # type: ignore[method-assign]

    assert story.go().outcome is Outcome.BAD_INPUT
    assert (story.cloud.log, story.work.home) == (["create a", "deallocate"], 8)


def test_more_steps_allowed_later_are_trained_although_the_job_once_ended_well(
    story: Story,
) -> None:
    """`train` is done and the machine up; with the training changed, the trainer starts again."""
    story.plan = RunPlan(goal=Goal.TRAIN)
    story.go()
    Journal(story.path, clock=story.world.clock).append(Kind.RUN_RESUMED, changed=True)

    story.go()

    assert kinds(story).count(Kind.LAUNCHED) == 2


@pytest.mark.parametrize("running", [True, False])
def test_fetching_too_early_leaves_everything_as_it_was(story: Story, *, running: bool) -> None:
    """`fetch` before the training is done neither stops the trainer nor releases the machine."""
    story.plan = RunPlan(goal=Goal.UP)
    story.go()
    if running:
        story.work.launch(next(iter(story.cloud.vms.values())))
    story.plan = RunPlan(goal=Goal.FETCH)

    ending = story.go()

    assert ending.outcome is Outcome.BAD_INPUT
    assert "not done" in ending.reason
    assert list(story.cloud.power.values()) == [PowerState.RUNNING]


def test_fetching_without_a_machine_rents_none(story: Story) -> None:
    """There is nothing to fetch from: that is told, and nothing is spent."""
    story.plan = RunPlan(goal=Goal.FETCH)

    ending = story.go()

    assert (ending.outcome, story.cloud.created) == (Outcome.BAD_INPUT, 0)


def test_a_machine_found_gone_while_released_is_cleared_of_its_remnants(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine is gone, perhaps not its address: the provider removes what is left."""
    story.plan = RunPlan(goal=Goal.RUN, budget=replace(story.plan.budget, hours=0.005))
    story.work.steps = 500

    def gone(_vm: Vm) -> None:
        raise errors.Gone("no such machine")

    monkeypatch.setattr(story.cloud, "deallocate", gone)

    assert story.go().outcome is Outcome.BUDGET_REACHED
    assert story.cloud.log[-1] == "delete"


def test_silences_with_hours_of_training_between_them_are_not_added_up(story: Story) -> None:
    """A network that fails once a day does not end a run that gets on in between."""
    story.work.steps = 4000
    silent: list[float] = []

    def sulk() -> None:
        vms = [v for v in story.cloud.vms.values() if story.cloud.power[v.id] is PowerState.RUNNING]
        due = 800 * (len(silent) + 1)
        if vms and story.work.home >= due and len(silent) < 4:
            silent.append(story.work.home)
            story.work.mute = True
        if not vms or not silent:
            story.work.mute = False

    story.between = sulk

    assert story.go().outcome is Outcome.DONE
    assert kinds(story).count(Kind.MACHINE_UNREACHABLE) == 4


def test_a_machine_that_dies_at_every_boot_is_given_up(story: Story) -> None:
    """Started and found dead three times without new work at home, a run ends with the reason."""
    limit_turns(story)
    count = story.between

    def die() -> None:
        count()
        story.cloud.stop_all(StopReason.FAILED)

    story.between = die
    ending = story.go()

    assert ending.outcome is Outcome.MACHINE_FAILED
    assert "failed or stayed silent in 3 boots without new work at home" in ending.reason
    assert [act for act in story.cloud.log if act.startswith("start ")] == ["start a"] * 2


def test_crashes_that_never_get_further_are_a_failure(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory now at this step, now at an earlier one, is no progress either."""
    story.work.exit_codes = [70] * 60
    steps = iter([12, 15, 13, 15, 12] * 12)
    look = story.work.job_status

    def wander(vm: Vm) -> object:
        view = look(vm)
        return replace(view, step=next(steps)) if view.exit_code == 70 else view

    monkeypatch.setattr(story.work, "job_status", wander)
    limit_turns(story)

    assert story.go().outcome is Outcome.TRAINING_FAILED
    assert story.work.launches < 8


def test_a_cloud_that_does_not_answer_for_an_hour_does_not_end_the_watch(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The laptop's network is away for an hour: the job goes on there, and so does the watch."""
    looks: list[str] = []

    def away(begin_s: float) -> Callable[[Vm], seam.Observation]:
        observe = story.cloud.observe

        def look(vm: Vm) -> seam.Observation:
            if begin_s <= story.world.now_s < begin_s + 3600:
                looks.append("away")
                raise errors.Transient("no network")
            return observe(vm)

        return look

    monkeypatch.setattr(story.cloud, "observe", away(story.world.now_s + 10))

    assert story.go().outcome is Outcome.DONE
    assert 10 < len(looks) < 300


def test_a_cloud_that_stays_silent_ends_the_run(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is an end to that patience too, with the cloud's own words."""
    story.policy = Policy(poll_s=1.0, offline_max_s=600.0)
    vms = story.cloud.vms

    def silent(_vm: Vm) -> seam.Observation:
        raise errors.Transient("no network")

    monkeypatch.setattr(story.cloud, "observe", silent)

    with pytest.raises(errors.Transient, match="no network"):
        story.go()
    assert len(vms) == 1


def test_a_silence_while_nobody_watched_does_not_count() -> None:
    """A lid closed for the night over a short silence is not a night of silence."""
    watch = StallDetector(now_s=0.0)

    assert watch.unreachable_for_s(0.0) == 0.0
    assert watch.unreachable_for_s(30.0) == 30.0
    assert watch.unreachable_for_s(8 * 3600.0) == 0.0


def test_a_machine_that_failed_over_budget_is_removed_once(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the cloud could not make still counts as billing, and releasing it changes nothing."""
    story.plan = RunPlan(goal=Goal.RUN, budget=replace(story.plan.budget, hours=0.005))
    story.work.steps = 500
    limit_turns(story)
    deallocate = story.cloud.deallocate

    def half(vm: Vm) -> None:
        deallocate(vm)
        story.cloud.power[vm.id] = PowerState.FAILED

    monkeypatch.setattr(story.cloud, "deallocate", half)

    assert story.go().outcome is Outcome.BUDGET_REACHED
    assert fold(read(story.path)).deleted
