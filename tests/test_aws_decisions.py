"""What the supervisor does where first-boot data can be read, and where interruptions are free."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fakecloud import Disk, Killed, Story, World

from commands.runs import save_before_release
from commands.runs.home import RunFolder
from commands.runs.workload import _is_announced
from infra.provider import PowerState, StopReason, Vm
from infra.run.budget import Budget
from infra.run.fold import fold
from infra.run.heartbeat import Heartbeat
from infra.run.interruption import TAKEN_S_MAX
from infra.run.journal import Kind, Outcome, read
from infra.run.plan import Goal, RunPlan
from infra.run.state import RunState
from infra.run.workload import JobOutcome, JobPhase, JobView
from remote.job import JobState, JobStatus


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A run of 50 steps in a cloud whose machines are as those of EC2."""
    return ec2(tmp_path / "journal.jsonl")


def ec2(path: Path, world: World | None = None) -> Story:
    """A run in such a cloud."""
    story = Story(path=path, world=world or World(), plan=RunPlan(goal=Goal.RUN))
    story.cloud.host_key_is_readable = story.cloud.interruption_is_free = True
    return story


def kinds(story: Story) -> list[Kind]:
    """What the journal says happened, in order."""
    return [event.kind for event in read(story.path)]


def test_host_key_is_changed_before_anything_is_sent(story: Story) -> None:
    """Once for a machine, before set-up; a machine that starts again keeps its new key."""
    evicted = iter([False, False, False, False, True])
    story.between = lambda: story.cloud.evict_all() if next(evicted, False) else None
    ending = story.go()
    found = kinds(story)

    assert ending.outcome is Outcome.DONE
    assert found.count(Kind.HOST_KEY_INTENDED) == found.count(Kind.HOST_KEY_CHANGED) == 1
    assert found.index(Kind.HOST_KEY_CHANGED) < found.index(Kind.PREPARED)
    assert found.count(Kind.START_ACCEPTED) == 1


def test_another_machine_gets_a_key_of_its_own(story: Story) -> None:
    """A machine that is rented after one was lost is made with a key that others can read, too."""
    lost = iter([False, False, False, False, True])
    story.between = lambda: story.cloud.lose_all() if next(lost, False) else None
    ending = story.go()

    assert (ending.outcome, story.cloud.created) == (Outcome.DONE, 2)
    assert kinds(story).count(Kind.HOST_KEY_CHANGED) == 2
    assert len(set(story.work.host_keys.values())) == 2


def test_key_that_cannot_be_changed_is_tried_once_a_boot(story: Story) -> None:
    """The run goes on with the key that it has."""
    story.work.unfit = "no sudo"
    evicted = iter([False, False, False, False, True])
    story.between = lambda: story.cloud.evict_all() if next(evicted, False) else None
    ending = story.go()
    kept = [event for event in read(story.path) if event.kind is Kind.HOST_KEY_KEPT]

    assert ending.outcome is Outcome.DONE
    assert [event.data["reason"] for event in kept] == ["no sudo", "no sudo"]


def test_killed_at_every_moment_the_machine_stays_reachable(tmp_path: Path) -> None:
    """SIGKILL before or after every act and every write, then the same command: one machine."""
    calm = ec2(tmp_path / "calm.jsonl")
    calm.go()

    for kill_at in range(1, calm.world.moments + 1):
        story = ec2(tmp_path / f"{kill_at}.jsonl", World(kill_at=kill_at))
        with pytest.raises(Killed):
            story.go()
        ending = story.go()

        assert (ending.outcome, story.work.out, story.cloud.vms) == (Outcome.DONE, "out", {}), (
            kill_at
        )
        assert (story.cloud.created, story.cloud.most_alive) == (1, 1), kill_at


def test_machine_that_changes_its_key_by_itself_is_not_trusted(story: Story) -> None:
    """After the change the old key is as foreign as any other."""

    def meddle() -> None:
        if Kind.HOST_KEY_CHANGED in kinds(story):
            story.work.host_keys = {"vm1": "ssh-ed25519 OLD"}

    story.between = meddle

    assert story.go().outcome is Outcome.MACHINE_FAILED


def give_notice(story: Story, *, taken_after_s: float) -> None:
    """At step 20 the trainer hears a notice, saves and ends; the cloud comes later."""

    def between() -> None:
        for vm in story.cloud.vms.values():
            disk: Disk = story.cloud.progress(vm)
            if disk.step >= 20 and disk.running_since is not None and story.work.launches == 1:
                disk.saved, disk.running_since, disk.exit_code = disk.step, None, 75
                story.work.eviction_announced = True
                story.cloud.taken_at_s = story.world.now_s + taken_after_s

    story.between = between


def test_machine_with_a_notice_is_left_to_the_vendor_when_the_budget_ends(story: Story) -> None:
    """Stopped by us, its first hour would be billed: it is released when EC2 has taken it."""
    story.plan = RunPlan(goal=Goal.RUN, budget=Budget(hours=60 / 3600))
    give_notice(story, taken_after_s=115)
    ending = story.go()

    assert ending.outcome is Outcome.BUDGET_REACHED
    assert "deallocate" not in story.cloud.log
    assert list(story.cloud.reason.values()) == [StopReason.EVICTED]
    state = fold(read(story.path))
    assert (state.up, state.home_step) == (False, story.cloud.disks["vm1"].saved)


def test_vendor_that_does_not_come_is_not_waited_for_for_ever(story: Story) -> None:
    """Three minutes after the notice the machine is released by us."""
    story.plan = RunPlan(goal=Goal.RUN, budget=Budget(hours=60 / 3600))
    give_notice(story, taken_after_s=1e9)
    began_s = story.world.now_s
    ending = story.go()

    assert ending.outcome is Outcome.BUDGET_REACHED
    assert "deallocate" in story.cloud.log
    assert set(story.cloud.power.values()) == {PowerState.DEALLOCATED}
    assert TAKEN_S_MAX < story.world.now_s - began_s < TAKEN_S_MAX + 120


def test_other_machines_are_released_at_once_when_the_budget_ends(story: Story) -> None:
    """Where a stop by the vendor is billed as any other, or none is announced, nothing waits."""
    story.cloud.interruption_is_free = False
    story.plan = RunPlan(goal=Goal.RUN, budget=Budget(hours=60 / 3600))
    give_notice(story, taken_after_s=115)
    began_s = story.world.now_s

    assert story.go().outcome is Outcome.BUDGET_REACHED
    assert story.world.now_s - began_s < 90


def test_trainer_is_not_started_again_while_the_machine_is_about_to_be_taken(
    story: Story,
) -> None:
    """A notice of two minutes is waited out; then the machine starts again and goes on."""
    give_notice(story, taken_after_s=118)
    ending = story.go()

    assert ending.outcome is Outcome.DONE
    assert kinds(story).count(Kind.TRAINER_EXITED) == 0
    assert (story.work.launches, fold(read(story.path)).evictions) == (2, 1)


class Saving:
    """As much of a workload as `qft down` needs, over a trainer that ended for a notice."""

    def job_status(self, vm: Vm) -> JobView:
        """Tell of it."""
        del vm
        return JobView(
            phase=JobPhase.EXITED, outcome=JobOutcome.PREEMPTED, step=20, eviction_announced=True
        )

    def bring_home(self, vm: Vm) -> None:
        """Copy nothing."""

    def home_step(self) -> int:
        """What is at home."""
        return 20

    def disconnect(self) -> None:
        """No connections."""


@pytest.mark.parametrize("free", [True, False])
def test_down_leaves_a_machine_with_a_notice_to_the_vendor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, free: bool
) -> None:
    """`qft down` returns to the release when EC2 has taken the machine; elsewhere at once."""
    story = ec2(tmp_path / "journal.jsonl")
    story.cloud.interruption_is_free = free
    story.plan = RunPlan(goal=Goal.UP)
    story.go()
    vm = story.cloud.vms["run-1"]
    story.cloud.taken_at_s = story.world.now_s + 100
    monkeypatch.setattr(save_before_release, "_workload", lambda *_arguments: Saving())
    monkeypatch.setattr("commands.runs.save_before_release.time.sleep", story.world.sleep)
    messages: list[str] = []
    state = RunState(run_id="run-1", vm=vm, up=True, launches=1)
    save_before_release.save_before_release(
        RunFolder(root=tmp_path),
        tmp_path,
        story.cloud,
        state,
        messages.append,
        pull_checkpoint=False,
    )

    taken = story.cloud.power["vm1"] is PowerState.DEALLOCATED
    assert (taken, len(messages)) == (free, int(free))


@pytest.mark.parametrize(
    ("exit_code", "message", "announced"),
    [
        (75, "stopped by eviction notice, state saved", True),
        (75, "stopped by SIGTERM, state saved", False),
        (75, "", False),
        (1, "stopped by eviction notice, state saved", False),
        (None, "stopped by eviction notice, state saved", False),
    ],
)
def test_trainer_that_ended_for_a_notice_differs_from_one_that_we_stopped(
    exit_code: int | None, message: str, *, announced: bool
) -> None:
    """By its exit code and its own last word, which the trainer's code and ours share."""
    status = JobStatus(state=JobState.EXITED, exit_code=exit_code)

    assert _is_announced(status, Heartbeat(message=message)) is announced
