"""A machine that its provider starts or replaces by itself is counted, then used or removed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.fakecloud import FakeCloud, Story

from infra.provider import Observation, PowerState, StopReason, Traits, Vm
from infra.run.billing_spans import Span
from infra.run.budget import bill
from infra.run.fold import fold
from infra.run.journal import Kind, Outcome, read
from infra.run.plan import Goal, RunPlan
from infra.timestamps import format_utc

PRICE, IDLE = 0.36, 0.036


class RestartingCloud(FakeCloud):
    """A cloud that acts by itself while nobody looks: starts a machine again, or another one."""

    launched_s: float = 0.0
    ahead_s: float | None = None
    """How far its clock is ahead of this computer's; None if it names no launch by that clock."""
    replaced_s: float = 0.0
    gone_s: float = 0.0

    def observe(self, vm: Vm) -> Observation:
        """Look at it; the launch time is told, and the machine in its place."""
        seen = super().observe(vm)
        if self.replaced_s and vm.id in self.disks and vm.run_id in self.vms:
            return Observation(
                power=PowerState.FAILED,
                stop_reason=StopReason.FAILED,
                since=format_utc(self.gone_s),
                bills_since=format_utc(self.replaced_s),
                detail="another machine was launched in its place",
                ran=True,
            )
        if seen.power is not PowerState.RUNNING or not self.launched_s:
            return seen
        if self.ahead_s is None:
            return replace(seen, bills_since=format_utc(self.launched_s))
        launched_s = self.launched_s + self.ahead_s
        return replace(
            seen,
            bills_since=format_utc(min(launched_s, self.world.now_s)),
            launched_at=format_utc(launched_s),
        )

    def restart(self, vm: Vm, *, down_s: float, unwatched_s: float = 600) -> None:
        """Take the machine away and start it again after a while in which nobody looks."""
        self._halt(vm, StopReason.EVICTED)
        self.world.sleep(down_s)
        self.launched_s = self.world.now_s
        self._boot(vm)
        self.world.sleep(unwatched_s)

    def _halt(self, vm: Vm, reason: StopReason) -> None:
        disk = self.disks[vm.id]
        if disk.running_since is not None:
            disk.exit_code = None  # the trainer is lost, and could leave none
        super()._halt(vm, reason)

    def _boot(self, vm: Vm) -> None:
        if self.ahead_s is not None:
            self.launched_s = self.world.now_s
        super()._boot(vm)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A run of 50 steps in a cloud that restarts machines by itself."""
    made = Story(path=tmp_path / "journal.jsonl")
    made.cloud = RestartingCloud(world=made.world)
    made.cloud.traits = Traits(rents=True, evicts=True, restarts_itself=True)
    made.work.cloud = made.cloud
    return made


def once_at(story: Story, step: int, act: object) -> None:
    """Let something happen once, when the checkpoint of a step is at home."""
    done: list[bool] = []

    def happen() -> None:
        if story.work.home >= step and not done:
            done.append(True)
            act()  # type: ignore[operator]

    story.between = happen


def spans(story: Story) -> tuple[Span, ...]:
    """The stretches of the bill."""
    return fold(read(story.path)).spans


def test_a_machine_restarted_unseen_is_an_eviction_and_goes_on(story: Story) -> None:
    """What was taken away and started again while the computer slept counts as an eviction."""
    cloud = story.cloud
    assert isinstance(cloud, RestartingCloud)
    once_at(story, 20, lambda: cloud.restart(next(iter(cloud.vms.values())), down_s=3000))

    ending = story.go()

    state = fold(read(story.path))
    assert (ending.outcome, state.evictions, cloud.created) == (Outcome.DONE, 1, 1)
    started = [one for one in read(story.path) if one.kind is Kind.START_INTENDED]
    assert [one.data["since_s"] for one in started] == [pytest.approx(cloud.launched_s, abs=1)]


@pytest.mark.parametrize("ahead_s", [-240.0, 0.0, 240.0])
@pytest.mark.parametrize("step", [10, 190])
def test_each_unseen_restart_counts_once_however_wrong_the_clock(
    story: Story, ahead_s: float, step: int
) -> None:
    """A clock that is minutes off makes no eviction of a launch, and hides none, soon or late.

    What the trainer lost by it is no crash, and it goes on on the same machine.
    """
    cloud = story.cloud
    assert isinstance(cloud, RestartingCloud)
    cloud.ahead_s, story.work.steps = ahead_s, 250

    def restart() -> None:
        cloud.restart(next(iter(cloud.vms.values())), down_s=20, unwatched_s=1)

    once_at(story, step, restart)

    ending = story.go()

    events = read(story.path)
    state = fold(events)
    assert (ending.outcome, state.evictions, state.crashes) == (Outcome.DONE, 1, ())
    assert [one.kind for one in events].count(Kind.STOP_SEEN) == 1
    assert Kind.TRAINER_EXITED not in [one.kind for one in events]
    assert cloud.created == 1


@pytest.mark.parametrize("ahead_s", [-240.0, 240.0])
def test_an_undisturbed_machine_is_not_taken_for_a_restarted_one(
    story: Story, ahead_s: float
) -> None:
    """Whatever the clocks say, a machine that was started once was not taken away."""
    cloud = story.cloud
    assert isinstance(cloud, RestartingCloud)
    cloud.ahead_s, story.work.steps = ahead_s, 400

    ending = story.go()

    state = fold(read(story.path))
    assert (ending.outcome, state.evictions, state.stops) == (Outcome.DONE, 0, 0)


def test_a_machine_that_restarted_after_a_seen_stop_bills_from_its_launch(story: Story) -> None:
    """Seen down, then started by its provider: compute counts from the launch on."""
    cloud, world = story.cloud, story.world
    assert isinstance(cloud, RestartingCloud)
    journal = story.journal()
    journal.append(Kind.RUN_STARTED, run_id="run-1", name="run")
    del journal
    launched: list[float] = []

    def restart() -> None:
        """Start it as soon as the stop is in the journal, and sleep for ten minutes."""
        stopped = [one for one in read(story.path) if one.kind is Kind.STOP_SEEN]
        if stopped and not launched:
            vm = next(iter(cloud.vms.values()))
            world.sleep(100)
            launched.append(world.now_s)
            cloud.launched_s = world.now_s
            cloud._boot(vm)
            world.sleep(600)

    story.plan = RunPlan(goal=Goal.RUN, rehearse_evictions=(25,))
    story.between = restart

    assert story.go().outcome is Outcome.DONE
    (down,) = [one for one in spans(story) if not one.compute]
    assert down.end_s == pytest.approx(launched[0], abs=1)


@pytest.mark.parametrize("seen_down", [False, True])
def test_a_machine_launched_in_its_place_is_counted_and_removed(
    story: Story, *, seen_down: bool
) -> None:
    """The other machine bills from its launch until it is removed, and is never taken over."""
    cloud, world = story.cloud, story.world
    assert isinstance(cloud, RestartingCloud)
    cloud.full = set()

    def replace_it() -> None:
        vm = next(iter(cloud.vms.values()))
        if seen_down:
            cloud._halt(vm, StopReason.EVICTED)
            cloud.full = {"a", "b"}
        else:
            cloud.gone_s = world.now_s
            world.sleep(60)
            cloud.replaced_s = world.now_s
            world.sleep(540)

    deleted = FakeCloud.delete

    def delete(run_id: str, on_message: object = None) -> object:
        del on_message
        cloud.replaced_s = 0.0
        return deleted(cloud, run_id)

    cloud.delete = delete  # type: ignore[method-assign,assignment]
    once_at(story, 20, replace_it)
    if seen_down:
        happen = story.between

        def later() -> None:
            happen()
            stopped = [one for one in read(story.path) if one.kind is Kind.STOP_SEEN]
            if stopped and cloud.full:
                cloud.full = set()
                cloud.gone_s = world.now_s
                cloud.replaced_s = world.now_s + 60
                world.sleep(600)

        story.between = later

    ending = story.go()

    assert (ending.outcome, cloud.created) == (Outcome.DONE, 2)
    replaced = [one for one in read(story.path) if one.data.get("replaced_s")]
    (event,) = replaced
    since_s = event.data["replaced_s"]
    removed = next(
        one for one in read(story.path) if one.kind is Kind.DELETED and one.number > event.number
    )
    counted = [
        one for one in spans(story) if one.compute and one.start_s == pytest.approx(since_s, abs=1)
    ]
    assert [one.end_s for one in counted] == [pytest.approx(removed.at_s, abs=1)]
    used = bill(fold(read(story.path)), world.now_s)
    assert used.usd_per_h_now == 0
