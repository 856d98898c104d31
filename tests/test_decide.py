"""The next act of a run is a pure decision: total, careful with money, and the same every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from support.fakecloud import Story, World

from infra.errors import ErrorKind
from infra.offer import Offer
from infra.provider import Observation, PowerState, StopReason, Vm
from infra.run import actions as act
from infra.run.billing_spans import Span, close_span, open_span
from infra.run.budget import Budget, bill, renewal_age_s, seconds_left, worst_case_usd
from infra.run.decide import Seen, decide
from infra.run.fold import fold
from infra.run.journal import Outcome, read
from infra.run.plan import Goal, Policy, RunPlan
from infra.run.state import Refusal, RunState
from infra.run.workload import JobOutcome, JobPhase, JobView

NOW_S = 1_000_000.0
OFFER = Offer(provider="x", region="a", size="s", spot_usd_per_h=0.2)
VM = Vm(provider="x", run_id="run-1", id="vm1", region="a", size="s", host="h")
UP = RunState(
    run_id="run-1", offer=OFFER, vm=VM, generation=1, up=True, vm_started_s=NOW_S, steps=50
)

power_states = st.sampled_from(list(PowerState))
jobs = st.none() | st.builds(
    JobView,
    phase=st.sampled_from(list(JobPhase)),
    outcome=st.none() | st.sampled_from(list(JobOutcome)),
    step=st.integers(0, 60),
    steps=st.just(50),
    stalled_s=st.floats(0, 1e5),
    silent_s=st.floats(0, 1e5),
)
observations = st.none() | st.builds(
    Observation,
    power=power_states,
    host=st.sampled_from(["", "h"]),
    stop_reason=st.none() | st.sampled_from(list(StopReason)),
)
states = st.builds(
    RunState,
    run_id=st.just("run-1"),
    offer=st.just(OFFER),
    vm=st.none() | st.just(VM),
    generation=st.integers(0, 3),
    up=st.booleans(),
    vm_started_s=st.floats(NOW_S - 1e5, NOW_S),
    prepared=st.booleans(),
    launched=st.booleans(),
    step=st.integers(0, 50),
    home_step=st.integers(0, 50),
    start_failures=st.just(0),
    crashes=st.lists(st.integers(0, 3), max_size=4).map(tuple),
    evictions=st.integers(0, 3),
    trained=st.booleans(),
    stopped_by_user=st.sampled_from(["", "stopped by somebody"]),
    fetched=st.sampled_from(["", "out"]),
)


@settings(max_examples=400)
@given(state=states, vm=observations, job=jobs, goal=st.sampled_from(list(Goal)))
def test_every_state_has_a_next_act_and_the_same_one_twice(
    state: RunState, vm: Observation | None, job: JobView | None, goal: Goal
) -> None:
    """Whatever is known and seen, there is an answer, and asking again does not change it."""
    seen = Seen(machine=vm, job=job, offers=(OFFER,))
    plan = RunPlan(goal=goal)

    first = decide(state, seen, plan, NOW_S)

    assert first == decide(state, seen, plan, NOW_S)


@settings(max_examples=400)
@given(state=states, vm=observations, job=jobs, goal=st.sampled_from(list(Goal)))
def test_a_second_machine_is_never_rented_beside_one_that_is_seen(
    state: RunState, vm: Observation | None, job: JobView | None, goal: Goal
) -> None:
    """While a machine of the run is there, whatever its state, none is created."""
    seen = Seen(machine=vm, job=job, offers=(OFFER,))

    action = decide(state, seen, RunPlan(goal=goal), NOW_S)

    if state.vm is not None and vm is not None:
        assert not isinstance(action, act.Create)


@settings(max_examples=300)
@given(state=states, vm=observations, job=jobs)
def test_nothing_is_rented_or_started_over_budget(
    state: RunState, vm: Observation | None, job: JobView | None
) -> None:
    """With the dollars spent, the only acts left end the billing or write its end down."""
    spent = (Span(start_s=NOW_S - 36_000, end_s=NOW_S, usd_per_h=1.0, compute=True),)
    poor = replace(state, spans=spent, fetched="", trained=False)
    plan = RunPlan(goal=Goal.RUN, budget=Budget(usd=5.0))

    action = decide(poor, Seen(machine=vm, job=job, offers=(OFFER,)), plan, NOW_S)

    assert isinstance(action, act.RecordStop | act.Deallocate | act.Delete | act.Finish)


@settings(max_examples=300)
@given(state=states, vm=observations, job=jobs, goal=st.sampled_from(list(Goal)))
def test_nothing_is_rented_or_started_after_somebody_stopped_the_machine(
    state: RunState, vm: Observation | None, job: JobView | None, goal: Goal
) -> None:
    """A person's stop leaves only acts that end the billing, then exit 130 with who it was."""
    stopped_by_user = replace(
        state, fetched="", trained=False, stopped_by_user="stopped by a@b.example"
    )

    action = decide(
        stopped_by_user, Seen(machine=vm, job=job, offers=(OFFER,)), RunPlan(goal=goal), NOW_S
    )

    assert isinstance(action, act.RecordStop | act.Deallocate | act.Delete | act.Finish)
    if isinstance(action, act.Finish):
        assert (action.ending.outcome, action.ending.reason) == (
            Outcome.STOPPED_BY_USER,
            "stopped by a@b.example",
        )


def test_a_finished_training_comes_home_although_the_budget_is_just_used_up() -> None:
    """All is paid for but the last seconds; a machine that does not answer is released instead."""
    spent = (Span(start_s=NOW_S - 36_000, usd_per_h=1.0, compute=True),)
    done = replace(UP, spans=spent, trained=True, prepared=True, launched=True)
    plan = RunPlan(goal=Goal.RUN, budget=Budget(usd=5.0))
    seen = Seen(machine=Observation(power=PowerState.RUNNING, host="h"))

    assert isinstance(decide(done, seen, plan, NOW_S), act.Fetch)
    assert isinstance(
        decide(done, replace(seen, unreachable="silent"), plan, NOW_S), act.Deallocate
    )
    assert isinstance(decide(replace(done, trained=False), seen, plan, NOW_S), act.Deallocate)


def test_a_disk_that_is_ahead_is_worth_more_tries() -> None:
    """A machine whose disk is ahead of the copy at home is tried again before it is given up."""
    down = Observation(power=PowerState.DEALLOCATED, stop_reason=StopReason.EVICTED)
    other = Offer(provider="x", region="b", size="s", spot_usd_per_h=0.2)
    seen = Seen(machine=down, offers=(OFFER, other))
    full = ErrorKind.NO_CAPACITY
    failed = Refusal(place="a", size="s", kind=full, message="full", at_s=NOW_S - 60)
    refused = replace(UP, up=False, start_failures=1, refusals=(failed,), disk_step=40)
    ahead, level = replace(refused, home_step=20), replace(refused, home_step=40)

    assert isinstance(decide(ahead, seen, RunPlan(goal=Goal.RUN), NOW_S), act.Start)
    assert isinstance(decide(level, seen, RunPlan(goal=Goal.RUN), NOW_S), act.Delete)


def test_powered_off_from_inside_is_deallocated_because_it_still_bills() -> None:
    """`shutdown` on the machine does not end the bill; deallocating does."""
    off = Observation(power=PowerState.STOPPED, stop_reason=StopReason.USER)
    stopped = replace(UP, up=False)

    assert isinstance(
        decide(stopped, Seen(machine=off), RunPlan(goal=Goal.RUN), NOW_S), act.Deallocate
    )


@given(
    moves=st.lists(
        st.tuples(st.floats(-50, 500), st.booleans(), st.sampled_from([0.0, 0.3])), max_size=12
    )
)
def test_a_bill_never_shrinks_and_never_counts_a_second_twice(
    moves: list[tuple[float, bool, float]],
) -> None:
    """Whatever the clock does, spans do not overlap and dollars are not negative."""
    now_s, dollars = NOW_S, 0.0
    spans: tuple[Span, ...] = ()
    for passed_s, opens, price in moves:
        now_s += passed_s
        before = bill(RunState(spans=spans), now_s).usd
        spans = open_span(spans, now_s, price, compute=True) if opens else close_span(spans, now_s)
        dollars = bill(RunState(spans=spans), now_s).usd
        assert dollars >= 0
        assert abs(dollars - before) < 1e-9
    open_ones = [span for span in spans if span.end_s is None]
    assert len(open_ones) <= 1


def test_the_worst_case_is_the_tighter_of_budget_and_cap() -> None:
    """Five dollars or 24 hours at a quarter: five; without any limit there is no figure."""
    assert worst_case_usd(Budget(usd=5.0, hours=24), 0.25) == 5.0
    assert worst_case_usd(Budget(usd=50.0, hours=24), 0.25) == 6.0
    assert worst_case_usd(Budget(), 0.25) is None


def test_the_seconds_left_follow_what_was_used() -> None:
    """An hour at 0.5 of a budget of 1 dollar leaves an hour."""
    used = (Span(start_s=NOW_S - 3600, end_s=NOW_S, usd_per_h=0.5, compute=True),)

    left_s = seconds_left(Budget(usd=1.0), RunState(spans=used), NOW_S, 0.5)

    assert left_s == 3600


def test_the_policy_needs_no_wall_clock(tmp_path: Path) -> None:
    """A run replayed over a week of simulated time ends as it does over seconds."""
    slow = Story(
        path=tmp_path / "slow.jsonl",
        world=World(now_s=0.0),
        policy=Policy(poll_s=1.0, machineless_max_s=1e9),
    )
    slow.cloud.full = {"a", "b"}

    def free_after_a_week() -> None:
        if slow.world.now_s > 7 * 86_400:
            slow.cloud.full.clear()

    slow.between = free_after_a_week

    assert slow.go().outcome is Outcome.DONE
    assert fold(read(slow.path)).deleted


def test_switches_are_renewed_before_they_strike() -> None:
    """Below the cap a budget lasts longer than was foreseen: its end is moved on halfway there."""
    day = RunState(safeguards_set_at_s=NOW_S, safeguards_until_s=NOW_S + 24 * 3600)
    hour = RunState(safeguards_set_at_s=NOW_S, safeguards_until_s=NOW_S + 3600)
    plan = RunPlan(goal=Goal.RUN, has_safeguards=True)
    vm = Observation(power=PowerState.RUNNING, host="h")

    def acts_at(state: RunState, age_s: float) -> bool:
        stopped = replace(
            UP,
            safeguards_set_at_s=state.safeguards_set_at_s,
            safeguards_until_s=state.safeguards_until_s,
            prepared=True,
        )
        return decide(stopped, Seen(machine=vm), plan, NOW_S + age_s) == act.SetSafeguards()

    assert [acts_at(day, hours * 3600) for hours in (5, 7, -7)] == [False, True, True]
    assert [acts_at(hour, minutes * 60) for minutes in (20, 31)] == [False, True]
    assert renewal_age_s(NOW_S, NOW_S - 50, 3600) == 120


def test_lack_of_a_familys_quota_leaves_the_other_cards_of_the_region() -> None:
    """No quota for T4 machines rules out all of them there, zones too, and not the A10."""
    message = "the account's Standard NCASv3_T4 Family Cores quota in eastus is too small"
    t4 = replace(OFFER, provider="azure", region="eastus", size="Standard_NC4as_T4_v3")
    quota = ErrorKind.OVER_QUOTA
    refusal = Refusal(place=t4.place, size=t4.size, kind=quota, message=message, at_s=NOW_S)
    state = RunState(run_id="run-1", refusals=(refusal,))
    bigger = replace(t4, size="Standard_NC8as_T4_v3", zone="1")
    a10 = replace(t4, size="Standard_NV36ads_A10_v5")

    def after(*offers: Offer) -> act.Action:
        return decide(state, Seen(offers=offers), RunPlan(goal=Goal.RUN), NOW_S)

    assert after(t4, bigger, a10) == act.Create(offer=a10, generation=1)
    assert isinstance(after(t4, bigger), act.Finish)
