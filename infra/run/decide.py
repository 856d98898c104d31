"""The next act of a run, as a pure function of what is known, what was seen and the time.

    decide(state, seen, plan, now_s) -> Action

It imports nothing that acts: supervisor, tests and a replay of spot traces call the same policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from infra.provider import Observation, Offer, PowerState
from infra.run.actions import (
    AbandonBoot,
    Action,
    Create,
    Deallocate,
    Delete,
    Fetch,
    FindOffers,
    Finish,
    Launch,
    Prepare,
    RecordExit,
    RecordStop,
    RecordTrained,
    RehearseEviction,
    SetSafeguards,
    Start,
    StopHung,
    Wait,
)
from infra.run.budget import Budget, limit_reached, renewal_age_s
from infra.run.heartbeat import SILENCE, Heartbeat
from infra.run.state import RunEnd, RunState


class Goal(StrEnum):
    """How far a command wants the run to go."""

    UP = "up"
    """A machine that is ready to train."""
    TRAIN = "train"
    """A finished training, machine left up."""
    FETCH = "fetch"
    """The adapter at home, machine left as it is."""
    RUN = "run"
    """The adapter at home and nothing of the run left in the cloud."""


class JobPhase(StrEnum):
    """What the supervisor must know of the trainer's process."""

    ABSENT = "absent"
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True, kw_only=True)
class JobView:
    """One look at the job on the machine."""

    phase: JobPhase
    exit_code: int | None = None
    """None if it is not over, or was killed before it could leave one."""
    step: int = 0
    steps: int = 0
    stalled_s: float = 0.0
    """Seconds without any sign of progress, measured by whoever watches."""
    silent_s: float = 0.0
    """Seconds without a heartbeat."""
    heartbeat: Heartbeat = SILENCE
    """What the trainer says of itself."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was just observed, cheapest first; later fields stay unset if earlier ones rule."""

    machine: Observation | None = None
    """None if there is no machine to look at."""
    job: JobView | None = None
    unreachable: str = ""
    """Why SSH did not answer although the machine should run; empty if it did."""
    unreachable_s: float = 0.0
    """For how long it has not, as far as the watcher has been watching."""
    offers: tuple[Offer, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The numbers of the policy, each a limit on something that would otherwise have none."""

    poll_s: float = 5.0
    boot_wait_s: float = 900.0
    """A booting machine may take this long to answer SSH."""
    unreachable_wait_s: float = 120.0
    """A machine that answered before may be silent this long before it is restarted."""
    unreachable_max: int = 2
    """Boots that failed or stayed silent before a human is told."""
    capacity_ttl_s: float = 600.0
    price_ttl_s: float = 300.0
    quota_ttl_s: float = 6 * 3600.0
    backoff_first_s: float = 15.0
    backoff_max_s: float = 600.0
    machineless_max_s: float = 12 * 3600.0
    """Waiting for capacity costs little, but a human should hear of it eventually."""
    offline_max_s: float = 12 * 3600.0
    """A cloud that cannot be asked may be so for this long: the job there goes on meanwhile."""
    cut_max: int = 8
    """Times in a row that an act may be cut on a machine that answers, before a new boot."""
    start_attempts_max: int = 3
    """Tries to restart a machine whose disk is ahead of the checkpoint at home."""
    crash_limit: int = 3
    """Crashes at the same step that make a failure out of bad luck."""
    preempt_grace_s: float = 60.0
    """A trainer that saved for an eviction is started again if none has come by then."""
    safeguards_every_s: float = 6 * 3600.0
    """The switches strike at a time of day, so they are set anew well within a day."""
    silent_max_s: float = 180.0
    stalled_max_s: float = 3600.0


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What the user wants of this run."""

    goal: Goal
    budget: Budget = field(default_factory=Budget)
    policy: Policy = field(default_factory=Policy)
    rehearse_evictions: tuple[int, ...] = ()
    """Steps at which the provider is asked to rehearse an eviction."""
    has_safeguards: bool = False
    """Whether the provider has switches that end the bill without us."""
    rents: bool = True
    """Whether the provider rents; a user's own machine is never deallocated for a budget."""


DONE, BAD_INPUT, CLOUD_REFUSED, UNREACHABLE, TRAINING_FAILED, BUDGET_REACHED = 0, 2, 3, 4, 5, 6
INTERRUPTED = 130
"""The exit codes of `qft` that a run can end with; the table is in the README."""

TRAINER_DONE, TRAINER_PREEMPTED, TRAINER_BAD_DATA, TRAINER_BAD_CONFIG = 0, 75, 65, 78
"""The exit codes of the trainer that mean something other than a crash (sysexits.h)."""


def decide(state: RunState, seen: Seen, plan: RunPlan, now_s: float) -> Action:
    """Say what to do next.

    Order matters and reads like the priorities of somebody careful with money: what is finished
    ends; a machine that should not bill stops billing; then the run moves one act forward.
    """
    if state.fetched or (plan.goal is Goal.TRAIN and state.trained):
        return _wind_down(state, seen, plan)
    if seen.machine is not None and _went_down(state, seen.machine):
        return RecordStop(observation=seen.machine)  # first: it tells who did it, and since when
    if state.stopped_by_user and not _only_fetch_left(state, seen):
        return _stop_for_user(state, seen, plan)
    spent = limit_reached(plan.budget, state, now_s)
    if spent and not _only_fetch_left(state, seen):
        return _stop_for_budget(state, seen, plan, spent)
    if state.pending == "create_intended" and state.offer is not None and state.vm is None:
        return Create(offer=state.offer, generation=state.generation)
    if state.pending == "delete_intended":
        return Delete(reason="finishing a removal that was interrupted")
    if state.vm is None or seen.machine is None:
        return _rent(state, seen, plan, now_s)
    if not is_up(seen.machine):
        return _recover(state, seen, seen.machine, plan, now_s)
    if not state.up:
        return Start()  # it runs although nobody wrote that down: starting twice is harmless
    return _work(state, seen, seen.machine, plan, now_s)


def _only_fetch_left(state: RunState, seen: Seen) -> bool:
    """Whether only the fetching is left on a machine that answers: seconds, and all is saved."""
    answers = (
        seen.machine is not None
        and seen.machine.power is PowerState.RUNNING
        and not seen.unreachable
    )
    return state.trained and state.up and state.prepared and answers


def is_up(machine: Observation) -> bool:
    """Whether the machine runs, or is on its way to."""
    return machine.power in {PowerState.CREATING, PowerState.STARTING, PowerState.RUNNING}


def _went_down(state: RunState, machine: Observation) -> bool:
    """Whether it stopped, and neither that is written down nor a removal of ours under way."""
    down = not is_up(machine) and machine.power is not PowerState.STOPPING
    counts = state.up or (state.pending == "start_intended" and machine.refusal is not None)
    return state.vm is not None and down and counts and state.pending != "delete_intended"


def _wind_down(state: RunState, seen: Seen, plan: RunPlan) -> Action:
    """The work is done: for `run`, nothing may remain; otherwise the machine stays as it is."""
    if plan.goal is Goal.RUN and not state.deleted:
        return Delete(reason="the adapter is home")
    del seen
    return Finish(ending=RunEnd(code=DONE, reason="done"))


def _stop_for_user(state: RunState, seen: Seen, plan: RunPlan) -> Action:
    """Somebody stopped the machine and meant it: nothing of ours may start it again."""
    if plan.rents and state.vm is not None and seen.machine is not None:
        if seen.machine.power in {PowerState.GONE, PowerState.REMNANTS, PowerState.FAILED}:
            return Delete(reason="the machine is gone; clearing what is left of it")
        if (
            seen.machine.power.bills_compute
        ):  # started again before the records told who had stopped it
            return Deallocate(reason=state.stopped_by_user)
    return Finish(ending=RunEnd(code=INTERRUPTED, reason=state.stopped_by_user))


def _stop_for_budget(state: RunState, seen: Seen, plan: RunPlan, spent: str) -> Action:
    if state.pending == "create_intended":
        return Delete(reason=f"budget reached: {spent}")  # the machine may exist, unknown to us
    if (
        plan.rents
        and state.vm is not None
        and seen.machine is not None
        and seen.machine.power.bills_compute
    ):
        if (
            seen.machine.power is PowerState.FAILED
        ):  # nothing runs in it, and releasing may not help
            return Delete(reason=f"budget reached: {spent}")
        return Deallocate(reason=f"budget reached: {spent}")
    return Finish(ending=RunEnd(code=BUDGET_REACHED, reason=f"budget reached: {spent}"))


def _rent(state: RunState, seen: Seen, plan: RunPlan, now_s: float) -> Action:
    if plan.goal is Goal.FETCH:
        return Finish(ending=_too_early("there is no machine to fetch from"))
    if not seen.offers:
        return FindOffers()
    policy = plan.policy
    fresh = [o for o in seen.offers if not o.blocked_by and not refusal(state, o, policy, now_s)]
    if fresh and not state.rejected:
        return Create(offer=fresh[0], generation=state.generation + 1)
    hopeful = [o for o in seen.offers if _may_clear(state, o, policy, now_s)]
    idle_s = now_s - _idle_since_s(state, now_s)
    if state.rejected or not hopeful or idle_s > policy.machineless_max_s:
        return Finish(
            ending=RunEnd(code=CLOUD_REFUSED, reason=explain_refusals(state, seen.offers))
        )
    wait_s = min(max(policy.backoff_first_s, idle_s / 2), policy.backoff_max_s)
    return Wait(wait_s=wait_s, reason=explain_refusals(state, seen.offers))


def _idle_since_s(state: RunState, now_s: float) -> float:
    """When compute last ran, or somebody last asked for the run: pauses grow from there."""
    ran = [now_s if span.end_s is None else span.end_s for span in state.spans if span.compute]
    return max([state.started_s, state.resumed_s, *ran])


def refusal(state: RunState, offer: Offer, policy: Policy, now_s: float) -> str:
    """The remembered refusal that rules this offer out for now; empty if none does.

    A lack of quota is remembered for hours and counts for the whole region; a lack of capacity or
    a high price clears by itself, so it is forgotten within minutes.
    """
    ttl_s = {
        "NoCapacity": policy.capacity_ttl_s,
        "PriceAboveCap": policy.price_ttl_s,
        "OverQuota": policy.quota_ttl_s,
        "Rejected": policy.quota_ttl_s,
    }
    for failure in state.failures:
        age_s = now_s - failure.at_s
        if failure.rules_out(offer) and age_s < ttl_s.get(failure.error, 0.0):
            return f"{failure.error}: {failure.message}"
    return ""


def _may_clear(state: RunState, offer: Offer, policy: Policy, now_s: float) -> bool:
    if refusal(state, offer, policy, now_s).startswith(("OverQuota", "Rejected")):
        return False
    return offer.clears or not offer.blocked_by


def explain_refusals(state: RunState, offers: tuple[Offer, ...]) -> str:
    """One line per offer: where, and why it cannot be had."""
    lines = []
    for o in offers:
        told = [f"{f.error}: {f.message}" for f in state.failures if f.rules_out(o)]
        lines.append(f"{o.place} {o.size}: {o.blocked_by or (told or ['not tried yet'])[-1]}")
    return "no offer can be taken now\n  " + "\n  ".join(lines)


def _recover(
    state: RunState, seen: Seen, machine: Observation, plan: RunPlan, now_s: float
) -> Action:
    """The machine is down: same machine first (its disk may be ahead), then another place."""
    if machine.power is PowerState.STOPPING:
        # Why it stops is told when it has; until then its compute bills, whoever ordered it.
        return Wait(wait_s=plan.policy.poll_s, reason="the machine is stopping")
    if machine.power in {PowerState.GONE, PowerState.REMNANTS, PowerState.FAILED}:
        return Delete(reason="the machine is gone; clearing what is left of it")
    if machine.power is PowerState.STOPPED:
        return Deallocate(reason="switched off from inside, which still bills")
    policy = plan.policy
    if state.unreachable > policy.unreachable_max:
        boots = f"{state.unreachable} boots without new work at home"
        reason = f"the machine failed or stayed silent in {boots}"
        reason += f" ({machine.detail})" if machine.detail else ""
        return Finish(ending=RunEnd(code=UNREACHABLE, reason=reason))
    if state.start_failures == 0:
        return Start()
    disk_ahead = state.disk_step > state.home_step
    attempts = policy.start_attempts_max if disk_ahead else 1
    if state.start_failures >= attempts:
        if not seen.offers:
            return FindOffers()
        if any(_is_elsewhere_and_free(state, o, policy, now_s) for o in seen.offers):
            return Delete(reason="its place has no capacity; moving to the next offer")
        if state.rejected or now_s - _idle_since_s(state, now_s) > policy.machineless_max_s:
            reason = explain_refusals(state, seen.offers)
            return Finish(ending=RunEnd(code=CLOUD_REFUSED, reason=reason))
    last_s = max((f.at_s for f in state.failures), default=now_s)
    backoff_s = policy.backoff_first_s * 2.0 ** min(state.start_failures - 1, 10)
    due_s = last_s + min(backoff_s, policy.backoff_max_s)
    if now_s < due_s:
        return Wait(wait_s=due_s - now_s, reason="its place has no capacity; trying again")
    return Start()


def _is_elsewhere_and_free(state: RunState, offer: Offer, policy: Policy, now_s: float) -> bool:
    mine = state.offer is not None and (state.offer.place, state.offer.size)
    elsewhere = (offer.place, offer.size) != mine
    return elsewhere and not offer.blocked_by and not refusal(state, offer, policy, now_s)


def _work(state: RunState, seen: Seen, machine: Observation, plan: RunPlan, now_s: float) -> Action:
    """The machine runs: make it answer, prepare it, launch, follow, fetch."""
    policy = plan.policy
    if machine.power is not PowerState.RUNNING or not machine.host:
        if now_s - state.vm_started_s > policy.boot_wait_s:
            return AbandonBoot(reason="it did not come up")
        return Wait(wait_s=policy.poll_s, reason=f"the machine is {machine.power}")
    if seen.unreachable:
        patience_s = policy.unreachable_wait_s if state.prepared else policy.boot_wait_s
        if seen.unreachable_s > patience_s:
            return AbandonBoot(reason=seen.unreachable)
        return Wait(wait_s=policy.poll_s, reason=seen.unreachable)
    age_s = abs(now_s - state.safeguards_set_at_s)  # a clock that was set back is a reason, too
    if plan.has_safeguards and age_s > renewal_age_s(
        state.safeguards_set_at_s, state.safeguards_until_s, policy.safeguards_every_s
    ):
        return SetSafeguards()
    if not state.prepared:
        return Prepare()
    if plan.goal is Goal.UP:
        return Finish(ending=RunEnd(code=DONE, reason="the machine is ready"))
    if state.trained:
        return Fetch()
    if plan.goal is Goal.FETCH:
        return _fetch_untrained(seen.job)
    return _follow(state, seen.job, plan)


def _fetch_untrained(job: JobView | None) -> Action:
    """Nobody wrote down that the training is done: perhaps it ended while nobody watched."""
    if job is not None and job.phase is JobPhase.EXITED and job.exit_code == TRAINER_DONE:
        return RecordTrained()
    at = f"step {job.step} of {job.steps}" if job and job.steps else "no step yet"
    return Finish(ending=_too_early(f"the training is not done ({at})"))


def _too_early(reason: str) -> RunEnd:
    return RunEnd(code=BAD_INPUT, reason=f"{reason}: `qft train` goes on with it", keeps=True)


def _follow(state: RunState, job: JobView | None, plan: RunPlan) -> Action:
    policy = plan.policy
    if job is None or job.phase is JobPhase.ABSENT:
        return Launch()
    if job.phase is JobPhase.RUNNING:
        return _follow_running(state, job, plan)
    if not state.launched:  # how an earlier start ended does not bind this one: config may differ
        return _launch_again(state, policy)
    if job.exit_code == TRAINER_DONE:
        return RecordTrained()
    if job.exit_code in {TRAINER_BAD_DATA, TRAINER_BAD_CONFIG}:
        reason = job.heartbeat.error or f"the trainer refused (exit {job.exit_code})"
        return Finish(ending=RunEnd(code=BAD_INPUT, reason=reason))
    if job.exit_code == TRAINER_PREEMPTED and job.silent_s < policy.preempt_grace_s:
        return Wait(wait_s=policy.poll_s, reason="state saved; the machine is about to be taken")
    crash = job.exit_code != TRAINER_PREEMPTED
    return RecordExit(exit_code=job.exit_code, step=job.step, crash=crash)


def _follow_running(state: RunState, job: JobView, plan: RunPlan) -> Action:
    policy = plan.policy
    if not state.launched:
        return Launch()  # started once: this only writes down that it runs
    if job.silent_s > policy.silent_max_s:
        return StopHung(step=job.step, reason=f"no heartbeat for {job.silent_s:.0f} s")
    if job.stalled_s > policy.stalled_max_s:
        return StopHung(step=job.step, reason=f"no progress for {job.stalled_s:.0f} s")
    due = [s for s in plan.rehearse_evictions if s <= job.step and s not in state.rehearsed]
    if due:
        return RehearseEviction(step=due[0])
    return Wait(wait_s=policy.poll_s, reason="training")


def _launch_again(state: RunState, policy: Policy) -> Action:
    """Start a trainer that ended; crashes that get no further are a failure, not bad luck."""
    last = state.crashes[-policy.crash_limit :]
    if len(last) == policy.crash_limit and max(last) == last[0]:
        beyond = "" if len(set(last)) == 1 else "or before "
        reason = f"the trainer failed {policy.crash_limit} times at {beyond}step {last[0]}"
        return Finish(ending=RunEnd(code=TRAINING_FAILED, reason=reason))
    return Launch()
