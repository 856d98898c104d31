"""A machine that its owner stops under a running `qft` stays stopped until somebody asks again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from support.fakecloud import FakeCloud, Killed, Story, World

from infra.provider import Observation, StopReason, Vm
from infra.run.budget import Budget, bill
from infra.run.fold import fold
from infra.run.journal import Event, Kind, Outcome, read
from infra.run.plan import Goal, RunPlan
from infra.timestamps import format_utc


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A run of 50 steps in a cloud with two regions."""
    return Story(path=tmp_path / "journal.jsonl")


def once_at(story: Story, step: int, happen: Callable[[], None]) -> None:
    """Let something happen once a checkpoint of that step is at home."""
    done: list[bool] = []

    def turn() -> None:
        if story.work.home >= step and not done:
            done.append(True)
            happen()

    story.between = turn


def test_a_stop_by_a_person_ends_the_run_with_its_state_kept(story: Story) -> None:
    """Who presses stop means it: exit 130, nothing started again, only the disk bills."""
    once_at(story, 20, lambda: story.cloud.stop_all(StopReason.USER))

    ending = story.go()

    state = fold(read(story.path))
    assert ending.outcome is Outcome.STOPPED_BY_USER
    assert "not by this run" in ending.reason
    assert story.cloud.log == ["create a", "stopped: user"]
    assert (state.evictions, state.home_step, state.vm is not None) == (0, 20, True)
    assert bill(state, story.world.now_s).usd_per_h_now == pytest.approx(0.036)


def test_the_next_command_starts_the_stopped_machine_again(story: Story) -> None:
    """Asking for the run is a newer wish than the stop: it goes on from where it was."""
    once_at(story, 20, lambda: story.cloud.stop_all(StopReason.USER))
    story.go()

    assert story.go().outcome is Outcome.DONE
    assert story.cloud.log == ["create a", "stopped: user", "start a", "delete"]


def test_a_stop_while_nobody_drove_is_older_than_the_command(story: Story) -> None:
    """A machine stopped while no `qft` ran is simply started by the next command."""
    story.plan = RunPlan(goal=Goal.UP)
    story.go()
    story.cloud.stop_all(StopReason.USER)
    story.world.now_s += 60
    story.plan = RunPlan(goal=Goal.RUN)

    assert story.go().outcome is Outcome.DONE
    assert story.cloud.log == ["create a", "stopped: user", "start a", "delete"]


class NamingCloud(FakeCloud):
    """Knows that a person deleted what is gone."""

    def observe(self, vm: Vm) -> Observation:
        """As ever, with the reason for what is gone."""
        seen = super().observe(vm)
        return seen if vm.run_id in self.vms else replace(seen, stop_reason=StopReason.USER)


class DatingCloud(FakeCloud):
    """Tells since when a machine has been down."""

    down_s = 0.0

    def evict_all(self) -> None:
        """As ever, at a time that is remembered."""
        super().evict_all()
        self.down_s = self.world.now_s

    def observe(self, vm: Vm) -> Observation:
        """As ever, with that time."""
        seen = super().observe(vm)
        return replace(seen, since=format_utc(self.down_s)) if seen.stop_reason else seen


def test_a_deletion_by_a_person_ends_the_run_and_clears_the_rest(story: Story) -> None:
    """With the machine deleted by hand nothing is rented anew; the next command does."""
    story.cloud = story.work.cloud = NamingCloud(world=story.world)
    once_at(story, 20, story.cloud.lose_all)

    ending = story.go()

    assert (ending.outcome, story.cloud.log) == (Outcome.STOPPED_BY_USER, ["create a", "delete"])
    assert story.go().outcome is Outcome.DONE
    assert story.cloud.log == ["create a", "delete", "create a", "delete"]


@pytest.mark.parametrize(
    "reason", [StopReason.EVICTED, StopReason.RETURNED, StopReason.FAILED, StopReason.UNKNOWN]
)
def test_every_other_stop_is_survived_as_an_eviction_is(story: Story, reason: StopReason) -> None:
    """Evicted, given back by itself, failed or for no known reason: the machine is started."""
    once_at(story, 20, lambda: story.cloud.stop_all(reason))

    assert story.go().outcome is Outcome.DONE
    assert story.cloud.log == ["create a", f"stopped: {reason}", "start a", "delete"]


def test_a_machine_that_gave_itself_back_at_the_budgets_end_is_exit_6(story: Story) -> None:
    """What the watchdog on the machine ended for its limit, the budget ends here too."""
    story.plan = RunPlan(goal=Goal.RUN, budget=Budget(hours=0.01))
    story.work.steps = 500

    def strike() -> None:
        story.world.now_s += 36
        story.cloud.stop_all(StopReason.RETURNED)

    once_at(story, 10, strike)

    ending = story.go()

    assert ending.outcome is Outcome.BUDGET_REACHED
    assert story.cloud.log == ["create a", "stopped: returned"]


def test_hours_in_which_the_machine_was_down_use_up_no_budget(story: Story) -> None:
    """A laptop that slept over an eviction finds the budget as it was then, and goes on."""
    story.cloud = story.work.cloud = DatingCloud(world=story.world)
    story.plan = RunPlan(goal=Goal.RUN, budget=Budget(hours=1))

    def sleep_over_it() -> None:
        story.cloud.evict_all()
        story.world.now_s += 30 * 3600

    once_at(story, 20, sleep_over_it)

    assert story.go().outcome is Outcome.DONE
    assert bill(fold(read(story.path)), story.world.now_s).compute_h < 0.1


def test_a_release_of_our_own_that_was_cut_short_is_nobody_elses(tmp_path: Path) -> None:
    """Killed at any moment around its own deallocation, a run never takes that for a person's."""
    plan = RunPlan(goal=Goal.RUN, budget=Budget(usd=0.002))
    calm = Story(path=tmp_path / "calm.jsonl", plan=plan)
    calm.work.steps = 500
    assert calm.go().outcome is Outcome.BUDGET_REACHED

    for kill_at in range(1, calm.world.moments + 1):
        story = Story(path=tmp_path / f"{kill_at}.jsonl", world=World(kill_at=kill_at), plan=plan)
        story.work.steps = 500
        with pytest.raises(Killed):
            story.go()

        assert story.go().outcome is Outcome.BUDGET_REACHED, kill_at


def test_every_prefix_of_a_stopped_run_completes_when_run_again(tmp_path: Path) -> None:
    """Cut the journal after any event of a run that a person stopped: the command finishes it."""
    calm = Story(path=tmp_path / "calm.jsonl")
    once_at(calm, 20, lambda: calm.cloud.stop_all(StopReason.USER))
    calm.go()
    lines = calm.path.read_bytes().splitlines(keepends=True)

    for count in range(len(lines) + 1):
        path = tmp_path / f"{count}.jsonl"
        path.write_bytes(b"".join(lines[:count]))
        story = Story(path=path)

        assert story.go().outcome is Outcome.DONE, count
        assert story.cloud.vms == {}, count


OFFER = {"provider": "x", "region": "a", "size": "s", "spot_usd_per_h": 1.0}
VM = asdict(Vm(provider="x", run_id="r", id="v", region="a", size="s"))


@pytest.mark.parametrize(
    ("since_s", "certain", "bound"),
    [(250.0, True, True), (150.0, True, False), (50.0, True, False), (250.0, False, False)],
    ids=["after both", "before the command", "before the start", "only inferred"],
)
def test_only_a_certain_stop_after_start_and_command_binds(
    since_s: float, *, certain: bool, bound: bool
) -> None:
    """A stop that the provider dates back before either of them says nothing about now."""
    stop = {
        "power": "deallocated",
        "reason": "user",
        "detail": "deallocated by a@b.example",
        "certain": certain,
        "since_s": since_s,
    }
    entries: list[tuple[float, Kind, dict[str, object]]] = [
        (0.0, Kind.RUN_STARTED, {"run_id": "r", "name": "r"}),
        (10.0, Kind.CREATE_INTENDED, {"generation": 1, "offer": OFFER}),
        (100.0, Kind.CREATE_ACCEPTED, {"vm": VM}),
        (200.0, Kind.RUN_RESUMED, {"changed": False}),
        (300.0, Kind.STOP_SEEN, stop),
    ]
    events = [Event(number=n, at_s=at, kind=k, data=d) for n, (at, k, d) in enumerate(entries, 1)]

    assert bool(fold(events).stopped_by_user) == bound
    assert not fold([*events, replace(events[3], number=6, at_s=400.0)]).stopped_by_user
