"""The supervisor brings a run home through everything a spot cloud does, and never rents twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.fakecloud import Killed, Story, World

from commands.runs.home import run_folder
from commands.runs.receipt import make_receipt
from commands.runs.result import RunResult, missed_rehearsals, missed_timed_evictions
from infra.provider import PowerState
from infra.run.budget import Budget, bill
from infra.run.fold import fold
from infra.run.journal import Kind, Outcome, read
from infra.run.plan import Goal, Policy, RunPlan


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A run of 50 steps in a cloud with two regions."""
    return Story(path=tmp_path / "journal.jsonl")


def kinds(story: Story) -> list[Kind]:
    """What the journal says happened, in order."""
    return [event.kind for event in read(story.path)]


def test_an_undisturbed_run_ends_with_the_adapter_home_and_nothing_rented(story: Story) -> None:
    """Without disturbance a run rents once, trains, fetches and removes the machine."""
    ending = story.go()

    assert (ending.outcome, story.work.out, story.cloud.vms) == (Outcome.DONE, "out", {})
    assert story.cloud.log == ["create a", "delete"]


def test_an_evicted_machine_is_started_again_and_goes_on(story: Story) -> None:
    """An eviction costs the steps since the last save, not the run."""
    story.plan = RunPlan(goal=Goal.RUN, rehearse_evictions=(20,))

    ending = story.go()

    assert ending.outcome is Outcome.DONE
    assert story.cloud.log == ["create a", "evict", "start a", "delete"]
    assert fold(read(story.path)).evictions == 1


def test_a_full_region_makes_the_run_move_to_the_next_with_its_checkpoint(story: Story) -> None:
    """When the evicted machine cannot start, the run goes on elsewhere from the copy at home."""
    story.plan = RunPlan(goal=Goal.RUN, rehearse_evictions=(25,))
    story.between = lambda: story.cloud.full.add("a") if "evict" in story.cloud.log else None

    ending = story.go()

    assert ending.outcome is Outcome.DONE
    assert story.cloud.log == ["create a", "evict", "delete", "create b", "delete"]
    assert story.cloud.most_alive == 1


def test_a_machine_that_was_deleted_is_replaced(story: Story) -> None:
    """A machine that vanished with its disk costs the steps since the last checkpoint at home."""
    lost: list[bool] = []

    def lose_once() -> None:
        if story.work.home >= 20 and not lost:
            lost.append(True)
            story.cloud.lose_all()

    story.between = lose_once

    ending = story.go()

    assert (ending.outcome, story.cloud.created) == (Outcome.DONE, 2)


def test_no_capacity_anywhere_is_waited_for(story: Story) -> None:
    """A run without capacity waits, with growing pauses, until there is some."""
    story.cloud.full = {"a", "b"}
    begin_s = story.world.now_s

    def free_later() -> None:
        if story.world.now_s - begin_s > 3600:
            story.cloud.full.clear()

    story.between = free_later

    assert story.go().outcome is Outcome.DONE
    assert kinds(story).count(Kind.CREATE_FAILED) < 20


def test_no_quota_anywhere_ends_the_run_at_once(story: Story) -> None:
    """Quota does not come back by waiting, so a human hears of it, with every refusal."""
    story.cloud.no_quota = {"a", "b"}

    ending = story.go()

    assert ending.outcome is Outcome.CLOUD_REFUSED
    assert "a has no quota" in ending.reason
    assert "b has no quota" in ending.reason
    assert kinds(story).count(Kind.CREATE_FAILED) == 2


def test_a_price_above_the_cap_sends_the_run_to_the_other_region(story: Story) -> None:
    """A region above the cap is passed over."""
    story.cloud.dear = {"a"}

    story.go()

    assert story.cloud.log == ["create b", "delete"]


def test_hiccups_of_the_cloud_are_ridden_out(story: Story) -> None:
    """Transient errors are retried at the advised pace and never reach the user."""
    story.cloud.hiccups = 5

    assert story.go().outcome is Outcome.DONE


def test_a_trainer_that_crashes_three_times_at_one_step_is_a_failure(story: Story) -> None:
    """Repeating a crash does not mend it: exit 5, and the compute is released or removed."""
    story.work.exit_codes = [70, 70, 70, 70]

    ending = story.go()

    assert (ending.outcome, story.work.launches) == (Outcome.TRAINING_FAILED, 3)
    assert "3 times at step 0" in ending.reason
    assert story.cloud.vms == {}


def test_a_trainer_that_was_killed_once_is_started_again(story: Story) -> None:
    """A trainer that vanished without an exit code on a healthy machine is launched again."""
    story.work.exit_codes = [None]

    assert story.go().outcome is Outcome.DONE
    assert story.work.launches == 2


def test_bad_data_found_by_the_trainer_is_a_usage_error(story: Story) -> None:
    """The trainer's refusal of data or config ends the run with exit 2 and no machine."""
    story.work.exit_codes = [65]

    assert story.go().outcome is Outcome.BAD_INPUT
    assert story.cloud.vms == {}


def test_a_trainer_without_a_heartbeat_is_restarted(story: Story) -> None:
    """A hung trainer is stopped after the time-out and launched again."""
    story.cloud.hung = True

    assert story.go().outcome is Outcome.DONE
    assert kinds(story).count(Kind.TRAINER_HUNG) == 1


def test_a_mute_machine_is_given_up_after_three_starts(story: Story) -> None:
    """A machine that never answers SSH ends with exit 4 and nothing that bills compute."""
    story.work.mute = True

    ending = story.go()

    assert ending.outcome is Outcome.MACHINE_FAILED
    assert not any(p is PowerState.RUNNING for p in story.cloud.power.values())


def test_a_stranger_at_the_address_ends_the_run_and_the_billing(story: Story) -> None:
    """A wrong host key, seen in mid-training, is exit 4; the rented machine is released."""
    story.between = lambda: setattr(story.work, "stranger", story.work.home >= 20)

    ending = story.go()

    assert (ending.outcome, ending.reason) == (Outcome.MACHINE_FAILED, "another host key")
    assert not any(p is PowerState.RUNNING for p in story.cloud.power.values())


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (Budget(usd=0.002), "of $0.00 spent"),
        (Budget(hours=0.005), "machine hours used"),
        (Budget(evictions=0), "1 evictions, 0 allowed"),
    ],
)
def test_a_used_up_budget_releases_the_machine(story: Story, budget: Budget, reason: str) -> None:
    """At the limit the state is saved and brought home, the compute released, exit code 6."""
    story.plan = RunPlan(goal=Goal.RUN, budget=budget, rehearse_evictions=(10,))
    story.work.steps = 500

    ending = story.go()

    assert ending.outcome is Outcome.BUDGET_REACHED
    assert reason in ending.reason
    assert not any(p is PowerState.RUNNING for p in story.cloud.power.values())


def test_a_raised_budget_lets_the_run_go_on_from_where_it_was(story: Story) -> None:
    """After a budget stop the same command with more budget finishes the training."""
    story.plan = RunPlan(goal=Goal.RUN, budget=Budget(usd=0.002))
    story.go()
    saved = story.work.home

    story.plan = RunPlan(goal=Goal.RUN, budget=Budget(usd=5.0))

    assert story.go().outcome is Outcome.DONE
    assert saved > 0


def test_killed_at_every_moment_the_run_still_ends_well(tmp_path: Path) -> None:
    """SIGKILL before or after every act and every journal write, then the same command again."""
    calm = Story(
        path=tmp_path / "calm.jsonl", plan=RunPlan(goal=Goal.RUN, rehearse_evictions=(20,))
    )
    calm.go()
    moments = calm.world.moments

    for kill_at in range(1, moments + 1):
        path = tmp_path / f"{kill_at}.jsonl"
        story = Story(path=path, world=World(kill_at=kill_at), plan=calm.plan)
        with pytest.raises(Killed):
            story.go()
        ending = story.go()

        assert (ending.outcome, story.work.out, story.cloud.vms) == (Outcome.DONE, "out", {}), (
            kill_at
        )
        assert (story.cloud.created, story.cloud.most_alive) == (1, 1), kill_at
    assert moments > 40


def test_every_prefix_of_the_journal_folds_to_a_state_that_completes(tmp_path: Path) -> None:
    """Cut the journal after any event, lose the machine or keep it: the run still completes."""
    calm = Story(
        path=tmp_path / "calm.jsonl", plan=RunPlan(goal=Goal.RUN, rehearse_evictions=(20,))
    )
    calm.go()
    lines = calm.path.read_bytes().splitlines(keepends=True)

    for count in range(len(lines)):
        path = tmp_path / f"{count}.jsonl"
        path.write_bytes(b"".join(lines[:count]))
        story = Story(path=path, plan=replace(calm.plan, rehearse_evictions=()))

        assert story.go().outcome is Outcome.DONE, count
        assert story.cloud.vms == {}, count
    assert len(lines) > 15


def test_the_bill_counts_compute_until_the_eviction_and_the_disk_after(story: Story) -> None:
    """Dollars are price times time: 0.36 an hour while up, and 0.036 for the disk at all times."""
    story.plan = RunPlan(goal=Goal.TRAIN)
    story.go()
    state = fold(read(story.path))
    up_s = story.world.now_s - state.spans[0].start_s

    assert pytest.approx(up_s * 0.396 / 3600) == bill(state, story.world.now_s).usd
    assert pytest.approx(0.396) == bill(state, story.world.now_s).usd_per_h_now


@pytest.mark.parametrize(("poll_s", "missed_timed_evictions"), [(1.0, 0), (1000.0, 1)])
def test_a_rehearsal_that_the_training_outran_is_reported(
    story: Story, poll_s: float, missed_timed_evictions: int
) -> None:
    """A training that is over at the next look ends well, and says how many it never had."""
    story.plan = RunPlan(goal=Goal.RUN, rehearse_evictions=(20,))
    story.policy = Policy(poll_s=poll_s)

    ending = story.go()
    state = fold(story.journal().events)
    result = RunResult(
        name="run",
        goal=Goal.RUN,
        reason=ending.reason,
        receipt=make_receipt(run_folder(story.path.parent, "run"), story.path, simulated=True),
        missed_rehearsals=missed_rehearsals(story.plan.rehearse_evictions, state),
    )

    assert (ending.outcome, state.evictions) == (Outcome.DONE, 1 - missed_timed_evictions)
    assert result.to_json()["rehearsals_missed"] == missed_timed_evictions
    assert (
        dict(result.lines()).get("rehearsal", "").count("did NOT take place")
        == missed_timed_evictions
    )


@pytest.mark.parametrize(("comes", "never"), [(True, 0), (False, 1)])
def test_a_timed_eviction_that_the_training_outran_is_reported(
    story: Story, *, comes: bool, never: int
) -> None:
    """Of `vm.local.evict_after_s`, too, a user learns whether it really took place."""

    def evict_once() -> None:
        if comes and story.work.home >= 10 and not fold(read(story.path)).stops:
            story.cloud.evict_all()

    story.between = evict_once

    assert story.go().outcome is Outcome.DONE
    state = fold(read(story.path))
    assert (missed_timed_evictions([60.0], state), missed_timed_evictions([], state)) == (never, 0)
    receipt = make_receipt(run_folder(story.path.parent, "run"), story.path, simulated=True)
    result = RunResult(
        name="run", goal=Goal.RUN, reason="done", receipt=receipt, missed_timed_evictions=never
    )
    assert result.to_json()["timed_evictions_missed"] == never
    assert (
        dict(result.lines()).get("rehearsal", "").count("`vm.local.evict_after_s` did NOT") == never
    )


@pytest.mark.parametrize("since", [None, 7])
def test_a_training_that_is_not_fetched_yet_keeps_whether_it_is_exact(
    tmp_path: Path, since: int | None
) -> None:
    """The trainer's last word stands in the journal, as its checkpoints may not have come home."""
    folder = run_folder(tmp_path, "run")
    folder.root.mkdir(parents=True)
    story = Story(path=folder.journal, plan=RunPlan(goal=Goal.TRAIN))
    story.work.inexact_from = since

    assert story.go().outcome is Outcome.DONE
    receipt = make_receipt(folder, tmp_path / "out", simulated=True)

    assert (receipt.exact, receipt.inexact_from) == (since is None, since)
