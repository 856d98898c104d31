"""Decides the next action of a run: a pure function of its state, what was seen and the time.

    decide(state, seen, plan, now_s) -> Action

It imports nothing that acts: supervisor, tests and a replay of spot traces call the same policy.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.errors import ErrorKind, ProviderError, SignedOut, Transient
from infra.offer import Offer
from infra.provider import Observation, PowerState
from infra.run.actions import (
    AbandonBoot,
    Action,
    ChangeHostKey,
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
    Replace,
    SetSafeguards,
    Start,
    StopHung,
    Wait,
)
from infra.run.budget import limit_reached, renewal_age_s, with_others
from infra.run.interruption import TAKEN_S_MAX
from infra.run.journal import RELEASE_INTENTS, Kind, Outcome
from infra.run.order import Order
from infra.run.plan import Goal, Policy, RunPlan
from infra.run.replacement import reason_for_another, reason_not_to_start
from infra.run.state import Refusal, RunEnd, RunState
from infra.run.workload import JobOutcome, JobPhase, JobView
from infra.timestamps import parse_utc_s

SAVED = {JobOutcome.PREEMPTED, JobOutcome.LEFT, JobOutcome.DONE_ELSEWHERE}
"""How a trainer ends that has saved its state, and failed in nothing."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one turn observed, cheapest first; later fields stay unset if earlier ones decide."""

    machine: Observation | None = None
    """None if there is no machine to look at."""
    job: JobView | None = None
    unreachable: str = ""
    """Why SSH did not answer although the machine should run; empty if it did."""
    unreachable_s: float = 0.0
    """For how long it has not, as far as the watcher has been watching."""
    offers: tuple[Offer, ...] = ()
    order: Order | None = None
    """What the machine is to do with the others of its run; None where it has one machine."""


def decide(state: RunState, seen: Seen, plan: RunPlan, now_s: float) -> Action:
    """Return the next action.

    Order matters and reads like the priorities of somebody careful with money: what is finished
    ends; a machine that should not bill stops billing; then the run moves one act forward.
    """
    if state.fetched or (plan.goal is Goal.TRAIN and state.trained):
        return _wind_down(state, plan)
    if seen.machine is not None and _went_down(state, seen.machine):
        return RecordStop(observation=seen.machine)  # first: it says by whom, and since when
    if state.stopped_by_user and not _only_fetch_left(state, seen):
        return _stop_for_user(state, seen, plan)
    others = seen.order.others if seen.order is not None else ()
    spent = limit_reached(plan.budget, with_others(state, others), now_s)
    if spent and not _only_fetch_left(state, seen):
        return _stop_for_budget(state, seen, plan, spent)
    if state.pending is Kind.CREATE_INTENDED and state.offer is not None and state.vm is None:
        return Create(offer=state.offer, generation=state.generation)
    if state.pending is Kind.DELETE_INTENDED:
        return Delete(reason="finishing a removal that was interrupted")
    if state.vm is None or seen.machine is None:
        return _rent(state, seen, plan, now_s)
    if not is_up(seen.machine):
        return _recover(state, seen, seen.machine, plan, now_s)
    if not state.up:  # it runs although nobody wrote that down: starting twice is harmless
        return Start(running_since_s=_running_since_s(state, seen.machine))
    return _work(state, seen, seen.machine, plan, now_s)


def _only_fetch_left(state: RunState, seen: Seen) -> bool:
    """Whether only fetching is left to do on a machine that answers: a matter of seconds."""
    answers = (
        seen.machine is not None
        and seen.machine.power is PowerState.RUNNING
        and not seen.unreachable
    )
    return state.trained and state.up and state.prepared and answers


def is_up(machine: Observation) -> bool:
    """Whether the machine runs, or is on its way to."""
    return machine.power in {PowerState.CREATING, PowerState.STARTING, PowerState.RUNNING}


def _running_since_s(state: RunState, machine: Observation) -> float | None:
    """Return since when a machine bills that this run has not asked to start; None if it has."""
    if state.pending is Kind.START_INTENDED:
        return None
    return parse_utc_s(machine.bills_since)


def _went_down(state: RunState, machine: Observation) -> bool:
    """Whether it stopped, and neither that is written down nor a removal of ours under way."""
    down = not is_up(machine) and machine.power is not PowerState.STOPPING
    counts = state.up or (state.pending is Kind.START_INTENDED and machine.refusal is not None)
    counts = counts or _is_replaced(state, machine)
    return state.vm is not None and down and counts and state.pending is not Kind.DELETE_INTENDED


def _is_replaced(state: RunState, machine: Observation) -> bool:
    """Whether the vendor launched another machine in its place, whose compute is not counted yet.

    It is not of use, since its disk is empty, and bills until it is removed.
    """
    counted = bool(state.spans) and state.spans[-1].end_s is None and state.spans[-1].compute
    return machine.power is PowerState.FAILED and bool(machine.bills_since) and not counted


def _wind_down(state: RunState, plan: RunPlan) -> Action:
    """End the run: for the goal `run` nothing may remain, else the machine stays as it is."""
    if plan.goal is Goal.RUN and not state.deleted:
        return Delete(reason="the adapter is home")
    return Finish(ending=RunEnd(outcome=Outcome.DONE, reason="done"))


def _stop_for_user(state: RunState, seen: Seen, plan: RunPlan) -> Action:
    """End the run: somebody stopped the machine, so that nothing of ours may start it again."""
    machine = _rented(state, seen, plan)
    if machine is not None:
        if machine.power in {PowerState.GONE, PowerState.REMNANTS, PowerState.FAILED}:
            return Delete(reason="the machine is gone; clearing what is left of it")
        if machine.power.bills_compute:  # started again before the log said who had stopped it
            return Deallocate(reason=state.stopped_by_user)
    return Finish(ending=RunEnd(outcome=Outcome.STOPPED_BY_USER, reason=state.stopped_by_user))


def _stop_for_budget(state: RunState, seen: Seen, plan: RunPlan, spent: str) -> Action:
    """End the run within its budget: what bills compute is released."""
    reason = f"budget reached: {spent}"
    if state.pending is Kind.CREATE_INTENDED:
        return Delete(reason=reason)  # the machine may exist, unknown to us
    machine = _rented(state, seen, plan)
    if machine is not None and machine.power.bills_compute:
        if machine.power is PowerState.FAILED:  # nothing runs in it, and releasing may not help
            return Delete(reason=reason)
        return Deallocate(reason=reason)
    return Finish(ending=RunEnd(outcome=Outcome.BUDGET_REACHED, reason=reason))


def _rented(state: RunState, seen: Seen, plan: RunPlan) -> Observation | None:
    """Return the look at the machine if it is a rented one, which may be given back."""
    return seen.machine if plan.rents and state.vm is not None else None


def _rent(state: RunState, seen: Seen, plan: RunPlan, now_s: float) -> Action:
    if plan.goal is Goal.FETCH:
        return Finish(ending=_too_early("there is no machine to fetch from"))
    if not seen.offers:
        return FindOffers()
    policy = plan.policy
    fresh = [o for o in seen.offers if _is_free(state, o, policy, now_s)]
    if fresh and not state.rejected:
        return Create(offer=fresh[0], generation=state.generation + 1)
    hopeful = [o for o in seen.offers if _may_clear(state, o, policy, now_s)]
    idle_s = now_s - _idle_since_s(state, now_s)
    refusals = explain_refusals(state, seen.offers)
    if state.rejected or not hopeful or idle_s > policy.machineless_max_s:
        return Finish(ending=RunEnd(outcome=Outcome.CLOUD_REFUSED, reason=refusals))
    wait_s = min(max(policy.backoff_first_s, idle_s / 2), policy.backoff_max_s)
    return Wait(wait_s=wait_s, reason=refusals)


def _idle_since_s(state: RunState, now_s: float) -> float:
    """Return when compute last ran, or somebody last asked for the run: pauses grow from there."""
    ran = [now_s if span.end_s is None else span.end_s for span in state.spans if span.compute]
    return max([state.started_s, state.resumed_s, *ran])


def find_refusal(state: RunState, offer: Offer, policy: Policy, now_s: float) -> Refusal | None:
    """Return the remembered refusal that rules this offer out for now; None if none does.

    A lack of quota is remembered for hours and counts for the whole region; a lack of capacity or
    a high price clears by itself, so it is forgotten within minutes.
    """
    ttl_s = {
        ErrorKind.NO_CAPACITY: policy.capacity_ttl_of(offer.provider),
        ErrorKind.PRICE_ABOVE_CAP: policy.price_ttl_s,
        ErrorKind.OVER_QUOTA: policy.quota_ttl_s,
        ErrorKind.REJECTED: policy.quota_ttl_s,
        ErrorKind.NOT_ALLOWED: policy.quota_ttl_s,
    }
    for refusal in state.refusals:
        age_s = now_s - refusal.at_s
        if refusal.rules_out(offer) and age_s < ttl_s.get(refusal.kind, 0.0):
            return refusal
    return None


def _is_free(state: RunState, offer: Offer, policy: Policy, now_s: float) -> bool:
    """Whether it can be taken, as far as anybody knows."""
    return not offer.blocked_by and find_refusal(state, offer, policy, now_s) is None


def _may_clear(state: RunState, offer: Offer, policy: Policy, now_s: float) -> bool:
    refusal = find_refusal(state, offer, policy, now_s)
    if refusal is not None and refusal.needs_human:
        return False
    return offer.clears or not offer.blocked_by


def explain_refusals(state: RunState, offers: tuple[Offer, ...]) -> str:
    """Write one line per offer: where it is, and why it cannot be had."""
    lines = []
    several = len({o.provider for o in offers}) > 1
    for o in offers:
        reasons = [str(one) for one in state.refusals if one.rules_out(o)] or ["not tried yet"]
        where = f"{o.provider} {o.place}" if several else o.place
        lines.append(f"{where} {o.size}: {o.blocked_by or reasons[-1]}")
    return "no offer can be taken now\n  " + "\n  ".join(lines)


def _recover(
    state: RunState, seen: Seen, machine: Observation, plan: RunPlan, now_s: float
) -> Action:
    """Start the machine that is down (its disk may be ahead), then rent at another place."""
    if machine.power is PowerState.STOPPING:
        # Why it stops is known when it has; until then its compute bills, whoever ordered it.
        return Wait(wait_s=plan.policy.poll_s, reason="the machine is stopping")
    if machine.power in {PowerState.GONE, PowerState.REMNANTS, PowerState.FAILED}:
        return Delete(reason="the machine is gone; clearing what is left of it")
    if machine.power is PowerState.STOPPED:
        return Deallocate(reason="switched off from inside, which still bills")
    policy = plan.policy
    if state.unreachable > policy.unreachable_max:
        starts = f"{state.unreachable} boots without new work at home"
        reason = f"the machine failed or stayed silent in {starts}"
        reason += f" ({machine.detail})" if machine.detail else ""
        return Finish(ending=RunEnd(outcome=Outcome.MACHINE_FAILED, reason=reason))
    if not state.trained and (ended := reason_not_to_start(state, now_s)):
        return Delete(reason=ended)
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
            return Finish(ending=RunEnd(outcome=Outcome.CLOUD_REFUSED, reason=reason))
    last_s = max((f.at_s for f in state.refusals), default=now_s)
    backoff_s = policy.backoff_first_s * 2.0 ** min(state.start_failures - 1, 10)
    due_s = last_s + min(backoff_s, policy.backoff_max_s)
    if now_s < due_s:
        return Wait(wait_s=due_s - now_s, reason="its place has no capacity; trying again")
    return Start()


def _is_elsewhere_and_free(state: RunState, offer: Offer, policy: Policy, now_s: float) -> bool:
    own = state.offer
    mine = own is not None and (own.provider, own.place, own.size)
    elsewhere = (offer.provider, offer.place, offer.size) != mine
    return elsewhere and _is_free(state, offer, policy, now_s)


def _work(state: RunState, seen: Seen, machine: Observation, plan: RunPlan, now_s: float) -> Action:
    """Use the machine that runs: make it answer, prepare it, launch, follow, fetch."""
    policy = plan.policy
    if machine.power is not PowerState.RUNNING or not machine.host:
        if now_s - state.vm_started_s > policy.boot_wait_s:
            return AbandonBoot(reason="it did not come up")
        return Wait(wait_s=policy.poll_s, reason=f"the machine is {machine.power}")
    if seen.unreachable:
        wait_s = policy.unreachable_wait_s if state.prepared else policy.boot_wait_s
        if seen.unreachable_s > wait_s:
            return AbandonBoot(reason=seen.unreachable)
        return Wait(wait_s=policy.poll_s, reason=seen.unreachable)
    age_s = abs(now_s - state.safeguards_set_at_s)  # a clock that was set back is a reason, too
    if plan.has_safeguards and age_s > renewal_age_s(
        state.safeguards_set_at_s, state.safeguards_until_s, policy.safeguards_every_s
    ):
        return SetSafeguards()
    stays = state.trained or plan.goal is Goal.FETCH or not plan.has_safeguards
    another = "" if stays else reason_for_another(state, now_s)
    if another and (state.prepared or state.disk_step <= state.home_step):
        return Replace(reason=another)
    if state.vm is not None and state.vm.host_key_is_readable and not state.host_key_kept:
        return ChangeHostKey()
    if not state.prepared:
        return Prepare()
    if plan.goal is Goal.UP:
        return Finish(ending=RunEnd(outcome=Outcome.DONE, reason="the machine is ready"))
    if state.trained:
        return Fetch()
    if plan.goal is Goal.FETCH:
        return _fetch_untrained(seen.job)
    return _follow(state, seen.job, plan)


def _fetch_untrained(job: JobView | None) -> Action:
    """Record a training that ended while nobody watched; else end the run as too early."""
    if job is not None and job.phase is JobPhase.EXITED and job.outcome is JobOutcome.DONE:
        return _record_trained(job)
    at = f"step {job.step} of {job.steps}" if job and job.steps else "no step yet"
    return Finish(ending=_too_early(f"the training is not done ({at})"))


def _record_trained(job: JobView) -> RecordTrained:
    beat = job.heartbeat
    return RecordTrained(exact=beat.exact, inexact_from=beat.inexact_from)


def _too_early(reason: str) -> RunEnd:
    reason = f"{reason}: `qft train` goes on with it"
    return RunEnd(outcome=Outcome.BAD_INPUT, reason=reason, keeps_machine=True)


def _follow(state: RunState, job: JobView | None, plan: RunPlan) -> Action:
    policy = plan.policy
    if job is None or job.phase is JobPhase.ABSENT:
        return Launch()
    if job.phase is JobPhase.RUNNING:
        return _follow_running(state, job, plan)
    if not state.launched:  # how an earlier start ended does not bind this one: config may differ
        return _launch_again(state, policy)
    if job.outcome is JobOutcome.DONE:
        return _record_trained(job)
    if job.outcome is JobOutcome.BAD_INPUT:
        reason = job.heartbeat.error or f"the trainer refused (exit {job.exit_code})"
        return Finish(ending=RunEnd(outcome=Outcome.BAD_INPUT, reason=reason))
    free = state.vm is not None and state.vm.interruption_is_free
    grace_s = max(policy.preempt_grace_s, TAKEN_S_MAX) if free else policy.preempt_grace_s
    if job.outcome is JobOutcome.PREEMPTED and job.silent_s < grace_s:
        return Wait(wait_s=policy.poll_s, reason="state saved; the machine is about to be taken")
    crash = job.outcome not in SAVED
    error = job.error if crash else ""
    return RecordExit(exit_code=job.exit_code, step=job.step, crash=crash, error=error)


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
    """Start a trainer that ended; crashes that get no further are a failure, not bad luck.

    Two that end with the same words are enough: the third would end with them, too.
    """
    if state.failure_repeated and state.failure is not None:
        where = f"step {state.failure.step}" if state.failure.step else "its start"
        reason = f"the trainer failed twice in the same way at {where}: {state.failure.error}"
        return Finish(ending=RunEnd(outcome=Outcome.TRAINING_FAILED, reason=reason))
    last = state.crashes[-policy.crash_limit :]
    if len(last) == policy.crash_limit and max(last) == last[0]:
        beyond = "" if len(set(last)) == 1 else "or before "
        reason = f"the trainer failed {policy.crash_limit} times at {beyond}step {last[0]}"
        return Finish(ending=RunEnd(outcome=Outcome.TRAINING_FAILED, reason=reason))
    return Launch()


def end_after_refusal(error: ProviderError, state: RunState) -> RunEnd:
    """Return the end of a run whose machine bills when the provider refuses what the run needs.

    Its machine is then released. Raises `error` again where there is nothing to release, where
    releasing is what was refused, and where the provider could not be asked: such a machine goes on
    with its work.
    """
    answered = not isinstance(error, Transient | SignedOut)
    if not answered or state.pending in RELEASE_INTENTS or not state.up or state.vm is None:
        raise error
    reason = f"{error}; {error.hint}" if error.hint else str(error)
    return RunEnd(outcome=Outcome.CLOUD_REFUSED, reason=reason)
