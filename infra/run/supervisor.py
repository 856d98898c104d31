"""Drives a run to its goal in a loop: observe, decide, journal, act.

It holds no policy (that is `decide.decide`) and no memory of its own that matters: killed at any
point, a new supervisor over the same journal goes on. Clock and sleep come in as arguments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from infra.errors import (
    PASSING,
    Gone,
    NeverStarts,
    NotAllowed,
    ProviderError,
    SignedOut,
    Transient,
)
from infra.offer import Offer
from infra.provider import Observation, PowerState, Provider, Removed, StopReason, Vm
from infra.retry import Result, with_retries
from infra.run import actions as act
from infra.run import stop_reasons
from infra.run.budget import bill, budget_end_s, with_others
from infra.run.cards import with_other_cards_blocked
from infra.run.context import RunContext, TurnReport
from infra.run.decide import Seen, decide, end_after_refusal
from infra.run.decide_node import decide_node
from infra.run.fold import apply, fold_node
from infra.run.host_key import change_host_key
from infra.run.interruption import is_announced, wait_until_taken
from infra.run.journal import Kind, Outcome
from infra.run.nodes import WHOLE
from infra.run.observer import Observer, StallDetector
from infra.run.order import Order
from infra.run.place import with_other_places_blocked
from infra.run.plan import RunPlan
from infra.run.release import billed_until_s, release
from infra.run.replacement import may_start_under, other_cap
from infra.run.safeguards import Limits, set_safeguards
from infra.run.state import RunEnd, RunState
from infra.run.workload import HostNotTrusted, HostUnfit, HostUnreachable, JobOutcome

OFFERS_TTL_S = 300.0


class Supervisor:
    """Drives one run towards a goal. One at a time per run: the caller holds the run's lock.

    Where a run has several machines, each has a supervisor of its own in a thread, and does what
    `context.orders` says; the run and what its machines share are then the caller's.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._state = fold_node(context.journal.events)
        self._offers: tuple[Offer, ...] = ()
        self._offers_s = 0.0
        self._observer = Observer(context, record=self._record, report=self._report)
        self._interruptions = 0
        """Acts in a row that were cut on a machine that had just answered."""
        self._last: act.Action | None = None
        self.unreachable = ""
        """Why the machine did not answer at the last look; empty if it did."""
        self.leaving = False
        """Whether the trainer had saved at the last look, since the machine is to be taken."""

    @property
    def state(self) -> RunState:
        """The folded state, up to date with the journal."""
        return self._state

    def run(self, plan: RunPlan) -> RunEnd:
        """Run turns until the goal is reached or cannot be; return how it ended.

        Raises ProviderError only for what a human must fix (`NotAllowed`, `BadRequest`) while no
        machine bills, or what stayed broken through every retry; the journal is always whole.
        """
        while True:
            try:
                ending = self._turn(plan)
            except (HostUnreachable, Gone) as error:  # the next look says what became of it
                ending = self._act_interrupted(str(error), plan)
            except (HostNotTrusted, HostUnfit) as error:
                ending = RunEnd(outcome=Outcome.MACHINE_FAILED, reason=str(error))
            except ProviderError as error:  # raised again if there is nothing to release
                ending = end_after_refusal(error, self._state)
            if ending is not None:
                return self._end(ending, plan)

    def _turn(self, plan: RunPlan) -> RunEnd | None:
        """Run one turn: observe, decide, report, act."""
        seen = self._look(plan)
        now_s = self._context.clock()
        able = replace(plan, has_safeguards=False) if self._observer.assumed_up else plan
        if seen.order is None:
            action = decide(self._state, seen, able, now_s)
        else:
            action = decide_node(self._state, seen, seen.order, able, now_s)
        self._report(seen, action, now_s)
        if isinstance(action, act.Wait):
            self._last = None
            return self._act(action, plan)
        if action == self._last:  # it changed nothing; whatever the reason, never spin
            self._context.sleep(plan.policy.poll_s)
        self._last = action
        ending = self._act(action, plan)
        self._interruptions = 0
        return ending

    def _act_interrupted(self, reason: str, plan: RunPlan) -> RunEnd | None:
        """Pause before an act that was cut on a machine that answers is repeated; not for ever."""
        now_s = self._context.clock()
        self._observer.stalls.unreachable_for_s(now_s)
        self._interruptions += 1
        if self._interruptions > plan.policy.cut_max:
            self._interruptions = 0
            return self._abandon_boot(reason, plan)
        pause_s = plan.policy.poll_s * 2.0 ** min(self._interruptions, 10)
        wait = act.Wait(wait_s=min(pause_s, plan.policy.unreachable_wait_s), reason=reason)
        self._report(Seen(), wait, now_s)
        self._observer.pause(self._state.vm, wait.wait_s)
        return None

    def _report(self, seen: Seen, action: act.Action, now_s: float) -> None:
        report = TurnReport(
            state=self._state,
            seen=seen,
            action=action,
            bill=bill(self._state, now_s),
            now_s=now_s,
            warning=self._observer.warning,
        )
        self._context.on_turn(report)

    def _look(self, plan: RunPlan) -> Seen:
        """Observe the newest copy here, the machine and the job on it, and recent offers."""
        home = self._context.workload.home_step()
        if home > self._state.home_step:
            self._record(Kind.CHECKPOINT_HOME, step=home)
        if self._context.clock() - self._offers_s > OFFERS_TTL_S:
            self._offers = ()
        seen = self._observer.observe(self._state, plan.policy)
        offers = self._offers
        if plan.several_providers:  # which card it stays on is known once something is trained
            offers = with_other_cards_blocked(offers, self._state, self._context.want)
        order = self._order()
        if order is not None:
            offers = with_other_places_blocked(offers, order, plan.policy, self._context.clock())
        self.unreachable = seen.unreachable
        outcome = seen.job.outcome if seen.job is not None else None
        self.leaving = self._state.launched and outcome is JobOutcome.PREEMPTED
        return replace(seen, offers=offers, order=order)

    # ---- act ----

    def _act(self, action: act.Action, plan: RunPlan) -> RunEnd | None:
        match action:
            case act.Finish(ending=ending):
                return ending
            case act.Wait(wait_s=wait_s):
                if self._state.vm is None:
                    self._offers = ()  # prices and capacity will have moved on
                self._context.sleep(wait_s)
            case act.FindOffers():
                return self._find_offers()
            case act.Create(offer=offer, generation=generation):
                self._create(offer, generation, plan)
            case act.Start(running_since_s=since_s):
                self._start(since_s)
            case act.Deallocate(reason=reason):
                self._deallocate(reason, save=True)
            case act.Replace(reason=reason):
                self._replace(reason)
            case act.Delete(reason=reason):
                self._delete(reason, plan)
            case act.RecordStop(observation=seen):
                self._record_stop(seen)
            case act.AbandonBoot(reason=reason):
                return self._abandon_boot(reason, plan)
            case act.RecordTrained(exact=exact, inexact_from=since):
                inexact = {} if exact else {"exact": False, "inexact_from": since}
                self._record(Kind.TRAINED, **inexact)
            case act.RecordExit(exit_code=code, step=step, crash=crash, error=error):
                words = {"error": error} if error else {}
                self._record(Kind.TRAINER_EXITED, exit_code=code, step=step, crash=crash, **words)
            case _:
                self._work(action, self._machine(), plan)
        return None

    def _work(self, action: act.Action, vm: Vm, plan: RunPlan) -> None:
        """Carry out an action on a machine that answers."""
        workload = self._context.workload
        match action:
            case act.SetSafeguards():
                self._set_safeguards(vm, plan)
            case act.ChangeHostKey():
                problem = change_host_key(workload, self._machine, self._record)
                if problem:
                    self._report_progress(problem)
            case act.Prepare():
                sent_s = workload.prepare(vm)
                sent = {} if sent_s is None else {"sent_s": round(sent_s, 3)}
                self._record(Kind.PREPARED, **sent)
            case act.Launch(group=group):
                members = {} if group is None else {"group": group.to_json()}
                self._record(Kind.LAUNCH_INTENDED, **members)
                workload.launch(vm, group)
                self._observer.stalls = StallDetector(now_s=self._context.clock())
                self._record(Kind.LAUNCHED)
            case act.LeaveGroup(step=step):
                workload.stop(vm)
                self._record(Kind.TRAINER_EXITED, exit_code=None, step=step, crash=False)
            case act.StopHung(step=step, reason=reason):
                workload.stop(vm)
                self._record(Kind.TRAINER_HUNG, step=step, reason=reason)
            case act.RehearseEviction(step=step):
                self._record(Kind.EVICT_INTENDED, step=step)
                self._with_retries(lambda: self._context.provider.evict(vm))
                self._record(Kind.EVICT_REQUESTED, step=step)
            case act.Fetch():
                self._record(Kind.FETCHED, path=workload.fetch(vm))

    def _set_safeguards(self, vm: Vm, plan: RunPlan) -> None:
        """Set what ends the bill without us, at the provider and on the machine."""
        context, until_s = self._context, self._until_s(plan, vm.price_usd_per_h)
        context.workload.set_time_limit(vm, until_s - context.clock())
        limits = Limits(
            cap=context.want.max_price_usd_per_h,
            until_s=until_s,
            disk_days=plan.budget.disk_days,
        )
        done = set_safeguards(context.provider, vm, limits, sleep=context.sleep)
        latest = {} if done.latest_limit_s is None else {"latest_limit_s": done.latest_limit_s}
        self._record(
            Kind.SAFEGUARDS_SET,
            until_s=until_s,
            holding=done.holding,
            missing=done.missing,
            **latest,
            **({"other_cap": done.other_cap} if done.other_cap else {}),
        )

    def _until_s(self, plan: RunPlan, price_usd_per_h: float) -> float:
        """Return when the budget ends (since 1970) if the price rises to the cap."""
        price = max(self._context.want.max_price_usd_per_h or 0.0, price_usd_per_h)
        order = self._order()
        spent = with_others(self._state, order.others if order is not None else ())
        return budget_end_s(plan.budget, spent, self._context.clock(), price, plan.nodes)

    def _find_offers(self) -> RunEnd | None:
        found = self._with_retries(lambda: self._context.provider.offers(self._context.want))
        for name, error in self._context.provider.unanswered().items():
            self._report_progress(f"{name} could not be asked for offers: {error}")
        self._offers = tuple(self._context.order(found))
        self._offers_s = self._context.clock()
        if self._offers:
            return None
        reason = f"{self._context.provider.name} has no offer for {self._context.want}"
        return RunEnd(outcome=Outcome.CLOUD_REFUSED, reason=reason)

    def _create(self, offer: Offer, generation: int, plan: RunPlan) -> None:
        spec = self._context.make_spec(offer, generation)
        if plan.has_safeguards:
            until_s = self._until_s(plan, offer.spot_usd_per_h)
            spec = replace(spec, until_s=until_s, disk_days=plan.budget.disk_days)
        if self._state.pending is not Kind.CREATE_INTENDED:
            self._record(Kind.CREATE_INTENDED, generation=generation, offer=offer.to_json())
        try:
            vm = self._with_retries(lambda: self._context.provider.create(spec))
        except ProviderError as error:
            self._refused(Kind.CREATE_FAILED, error, passing=_passing_at_create(plan))
            return
        self._record(Kind.CREATE_ACCEPTED, vm=vm.to_json())

    def _start(self, running_since_s: float | None) -> None:
        vm, provider = self._machine(), self._context.provider
        if running_since_s is None and (reason := self._reason_not_to_start(vm)):
            self._remove(reason)
            return
        since = {} if running_since_s is None else {"since_s": running_since_s}
        self._record(Kind.START_INTENDED, **since)
        try:
            cap = self._context.want.max_price_usd_per_h
            self._with_retries(lambda: provider.update_max_price(vm, cap))
            self._with_retries(lambda: provider.start(vm))
        except Gone:
            seen = Observation(power=PowerState.GONE, stop_reason=StopReason.UNKNOWN)
            self._record_stop(seen)
        except ProviderError as error:
            self._refused(Kind.START_FAILED, error)
        else:
            self._record(Kind.START_ACCEPTED)

    def _reason_not_to_start(self, vm: Vm) -> str:
        """Return why a machine that is down is of no use any more; empty if it is started."""
        provider, cap = self._context.provider, self._context.want.max_price_usd_per_h
        if provider.traits_of(vm).cap_changes:
            return ""
        try:
            in_force = self._with_retries(lambda: provider.update_max_price(vm, cap))
        except Gone:  # what follows finds that out, too
            return ""
        except NeverStarts as error:
            if self._state.trained:  # its disk may hold what is not home: a person decides
                raise
            return str(error)
        reason = other_cap(vm, in_force, cap)
        return "" if may_start_under(in_force, cap, self._state) else reason

    def _refused(
        self,
        kind: Kind,
        error: ProviderError,
        *,
        passing: tuple[type[ProviderError], ...] = PASSING,
    ) -> None:
        """Record a refusal; raise what only a human or a developer can fix."""
        stays = error.unfinished and not isinstance(error, PASSING)
        if stays or isinstance(error, Transient | SignedOut):
            raise error  # nothing is known of the act: its intent stays pending
        self._record(kind, error=error.kind, message=str(error), hint=error.hint)
        if not isinstance(error, passing):
            raise error

    def _deallocate(self, reason: str, *, save: bool) -> None:
        vm = self._machine()
        if save and self._state.prepared:
            try:
                self._context.workload.save_and_pull(vm)
            except (HostUnreachable, HostNotTrusted, HostUnfit) as error:
                # The machine goes either way; what is at home is what remains of it.
                reason = f"{reason}; its newest checkpoint could not be copied ({error})"
        if self._state.prepared and is_announced(vm, self._context.workload.job_status):
            wait_until_taken(
                self._context.provider,
                vm,
                sleep=self._context.sleep,
                on_message=self._report_progress,
            )
        self._context.workload.disconnect()
        self._record(Kind.DEALLOCATE_INTENDED, reason=reason)
        try:
            ended = release(self._context.provider, vm, self._context.sleep)
        except Gone:  # the machine is; its disk or address may still be there, and bill
            self._remove(reason)
        else:
            self._record(Kind.DEALLOCATED, reason=reason, **ended)

    def _replace(self, reason: str) -> None:
        """Remove the machine once its newest checkpoint is home; the next turn rents another."""
        if self._state.prepared:
            self._context.workload.save_and_pull(self._machine())
            if (home := self._context.workload.home_step()) > self._state.home_step:
                self._record(Kind.CHECKPOINT_HOME, step=home)
        self._remove(reason)

    def _delete(self, reason: str, plan: RunPlan) -> None:
        if (vm := self._state.vm) is not None and not plan.rents:
            self._context.workload.clear(vm)
        self._remove(reason)

    def remove_run(self, reason: str) -> None:
        """Remove all that a run with several machines has left once none of them is."""
        self._remove(reason, whole=True)

    def _remove(self, reason: str, *, whole: bool = False) -> None:
        provider, run_id = self._context.provider, self._state.run_id
        all_of_it = {WHOLE: True} if whole else {}
        self._context.workload.disconnect()
        self._record(Kind.DELETE_INTENDED, reason=reason, **all_of_it)
        whole = whole or self._context.orders is None
        try:
            removed = self._with_retries(lambda: self._removed(provider, run_id, whole=whole))
        except (ProviderError, KeyboardInterrupt):
            self._record_release()
            raise
        names = [f"{one.kind} {one.id}" for one in removed]
        self._record(Kind.DELETED, removed=names, until_s=billed_until_s(removed), **all_of_it)

    def _removed(self, provider: Provider, run_id: str, *, whole: bool) -> list[Removed]:
        """Remove the run, or where it has several machines this one, also if nobody recorded it."""
        if whole:
            return provider.delete(run_id, self._report_progress)
        mine = [vm for vm in provider.list_run(run_id) if vm.node == self._context.node]
        if self._state.vm is not None and all(vm.id != self._state.vm.id for vm in mine):
            mine.append(self._state.vm)
        return [one for vm in mine for one in provider.remove(vm, self._report_progress)]

    def _record_release(self) -> None:
        """Record that compute ended where only the rest of a removal did not."""
        vm = self._state.vm
        with contextlib.suppress(ProviderError):  # asked again at the next look
            seen = self._context.provider.observe(vm) if vm and self._state.up else None
            if seen is not None and not seen.power.bills_compute:
                self._record(
                    Kind.STOP_SEEN,
                    **stop_reasons.stop_event_data(self._state, seen, StopReason.USER),
                )

    def _record_stop(self, seen: Observation) -> None:
        self._context.workload.disconnect()
        reason = self._observer.stalls.reason_of(seen)
        self._observer.stalls.reachable()
        self._record(Kind.STOP_SEEN, **stop_reasons.stop_event_data(self._state, seen, reason))
        if seen.refusal is not None and not isinstance(seen.refusal, (*PASSING, Transient)):
            raise seen.refusal  # such as a policy: only a human can change what it forbids

    def _abandon_boot(self, reason: str, plan: RunPlan) -> RunEnd | None:
        self._record(Kind.MACHINE_UNREACHABLE, reason=reason)
        self._observer.stalls.reachable()
        if not plan.rents:
            return RunEnd(outcome=Outcome.MACHINE_FAILED, reason=reason)
        self._deallocate(reason, save=False)
        return None

    def _end(self, ending: RunEnd, plan: RunPlan) -> RunEnd:
        """Record the end; a run that failed must not go on billing compute."""
        failed = ending.outcome is not Outcome.DONE and not ending.keeps_machine
        if failed and plan.rents and self._state.up and self._state.vm is not None:
            if self._state.disk_step == 0 and self._state.home_step == 0:
                self._remove(ending.reason)  # nothing is on it that anybody could miss
            else:
                self._deallocate(ending.reason, save=True)
        if plan.rents:
            with contextlib.suppress(ProviderError):  # on record: the run's next command repeats it
                self._with_retries(
                    lambda: self._context.provider.cancel_refused(self._state.run_id)
                )
        if self._context.orders is None:
            self._record(Kind.RUN_ENDED, code=ending.outcome.value, reason=ending.reason)
        return ending

    # ---- helpers ----

    def _report_progress(self, words: str) -> None:
        """Report what goes on for minutes."""
        self._report(Seen(), act.Wait(wait_s=0, reason=words), self._context.clock())

    def _record(self, kind: Kind, **data: object) -> RunState:
        """Record one event; return the state after it."""
        self._state = apply(self._state, self._context.journal.append(kind, **data))
        return self._state

    def _order(self) -> Order | None:
        return None if self._context.orders is None else self._context.orders()

    def _machine(self) -> Vm:
        if self._state.vm is None:
            raise AssertionError("decided to act on a machine although there is none")
        return self._state.vm

    def _with_retries(self, call: Callable[[], Result]) -> Result:
        return with_retries(call, self._context.sleep)


def _passing_at_create(plan: RunPlan) -> tuple[type[ProviderError], ...]:
    """Return the refusals of a machine that another offer can get around.

    Rights that are missing at one provider are no obstacle at another.
    """
    return (*PASSING, NotAllowed) if plan.several_providers else PASSING
