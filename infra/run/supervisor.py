"""The loop that brings a run home: observe, decide, journal, act, again.

It holds no policy (that is `lifecycle.decide`) and no memory of its own that matters: killed at any
point, a new supervisor over the same journal goes on. Clock and sleep come in as arguments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from infra.optional_capabilities import Capping, Guarding
from infra.provider import (
    PASSING,
    Gone,
    Observation,
    Offer,
    PowerState,
    ProviderError,
    SignedOut,
    StopReason,
    Transient,
    Vm,
)
from infra.retry import Answer, ask
from infra.run import actions as act
from infra.run import stop_reasons
from infra.run.budget import bill, ends_s
from infra.run.context import Report, Tools
from infra.run.decide import (
    CLOUD_REFUSED,
    UNREACHABLE,
    JobPhase,
    JobView,
    Plan,
    Seen,
    decide,
)
from infra.run.fold import Ending, RunState, apply, fold, to_json
from infra.run.journal import Kind
from infra.run.observed_events import Records
from infra.run.observer import Lookout
from infra.run.refused_end import ended_by
from infra.run.removal import billed_until_s, release, remove
from infra.run.safeguards import guard
from infra.run.stall_detector import Watch
from infra.run.workload import HostNotTrusted, HostUnfit, HostUnreachable

__all__ = ["Report", "Supervisor", "Tools"]

PROGRESS_EVERY_S = 10.0
OFFERS_TTL_S = 300.0


class Supervisor:
    """Drives one run towards a goal. One at a time per run: the caller holds the run's lock."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._state = fold(tools.journal.events)
        self._offers: tuple[Offer, ...] = ()
        self._offers_s = 0.0
        self._watch = Watch(now_s=tools.clock())
        self._records = Records(tools.provider, clock=tools.clock, sleep=tools.sleep)
        self._lookout = Lookout(
            tools.provider, clock=tools.clock, sleep=tools.sleep, tell=self._tell
        )
        self._progress_s = 0.0
        self._cuts = 0
        """Acts in a row that were cut on a machine that had just answered."""
        self._last: act.Action | None = None

    @property
    def state(self) -> RunState:
        """The folded state, up to date with the journal."""
        return self._state

    def run(self, plan: Plan) -> Ending:
        """Turn until the goal is reached or cannot be, and say how it ended.

        Raises ProviderError only for what a human must fix (`NotAllowed`, `BadRequest`) while no
        machine bills, or what stayed broken through every retry; the journal is always whole.
        """
        while True:
            try:
                ending = self._turn(plan)
            except (HostUnreachable, Gone) as error:  # the next look says what became of it
                ending = self._cut(str(error), plan)
            except (HostNotTrusted, HostUnfit) as error:
                ending = Ending(code=UNREACHABLE, reason=str(error))
            except ProviderError as error:  # raised again if there is nothing to release
                ending = ended_by(error, self._state)
            if ending is not None:
                return self._end(ending, plan)

    def _turn(self, plan: Plan) -> Ending | None:
        """Look, decide, tell, act: once."""
        seen = self._look(plan)
        now_s = self._tools.clock()
        able = replace(plan, guards=False) if self._lookout.blind else plan
        action = decide(self._state, seen, able, now_s)
        self._tell(seen, action, now_s)
        if isinstance(action, act.Wait):
            self._last = None
            return self._act(action, plan)
        if action == self._last:  # it changed nothing; whatever the reason, never spin
            self._tools.sleep(plan.policy.poll_s)
        self._last = action
        ending = self._act(action, plan)
        self._cuts = 0
        return ending

    def _cut(self, reason: str, plan: Plan) -> Ending | None:
        """The machine answered, then the act was cut: repeat it after a pause, but not for ever."""
        now_s = self._tools.clock()
        self._watch.lost(now_s)
        self._cuts += 1
        if self._cuts > plan.policy.cut_max:
            self._cuts = 0
            return self._give_up_on_boot(reason, plan)
        pause_s = plan.policy.poll_s * 2.0 ** min(self._cuts, 10)
        wait = act.Wait(wait_s=min(pause_s, plan.policy.unreachable_wait_s), reason=reason)
        self._tell(Seen(), wait, now_s)
        self._lookout.pause(self._state.vm, wait.wait_s)
        return None

    def _tell(self, seen: Seen, action: act.Action, now_s: float) -> None:
        used, told = bill(self._state, now_s), self._lookout.warning
        report = Report(
            state=self._state, seen=seen, action=action, bill=used, now_s=now_s, warning=told
        )
        self._tools.tell(report)

    # ---- observe ----

    def _look(self, plan: Plan) -> Seen:
        home = self._tools.workload.home_step()
        if home > self._state.home_step:
            self._note(Kind.CHECKPOINT_HOME, step=home)
        if self._tools.clock() - self._offers_s > OFFERS_TTL_S:
            self._offers = ()
        vm = self._state.vm
        if vm is None:
            return Seen(offers=self._offers)
        observation = self._lookout.observe(vm, plan.policy, answers=self._state.prepared)
        vm = self._follow_address(vm, observation)
        if not self._lookout.blind:
            for kind, data in self._records.news(self._state, vm, observation):
                self._note(kind, **data)
        seen = Seen(vm=observation, offers=self._offers)
        if observation.power is not PowerState.RUNNING or not vm.host or not self._state.up:
            return seen
        try:
            if not self._state.prepared:
                self._tools.workload.reach(vm)
                job = None
            else:
                job = self._tools.workload.look(vm)
        except HostUnreachable as error:
            silent_s = self._watch.lost(self._tools.clock())
            self._open_firewall(vm, silent_s)
            return replace(seen, unreachable=str(error), unreachable_s=silent_s)
        self._watch.found()
        if job is None:
            return seen
        job = self._watch.measure(job, self._tools.clock())
        self._note_progress(job)
        return replace(seen, job=job)

    def _open_firewall(self, vm: Vm, silent_s: float) -> None:
        """The laptop may have moved: once a silence has begun, let its address of now in."""
        provider = self._tools.provider
        if silent_s > 0 and isinstance(provider, Guarding) and not self._watch.admitted:
            self._watch.admitted = True
            self._ask(lambda: provider.admit_caller(vm))

    def _follow_address(self, vm: Vm, seen: Observation) -> Vm:
        """Write down a changed address; return the machine with the address it has now."""
        now = (seen.host, seen.port, seen.metadata_url)
        if not seen.host or now == (vm.host, vm.port, vm.metadata_url):
            return vm
        self._note(
            Kind.ADDRESS_SEEN, host=seen.host, port=seen.port, metadata_url=seen.metadata_url
        )
        return self._state.vm or vm

    def _note_progress(self, job: JobView) -> None:
        now_s = self._tools.clock()
        changed = (job.step, job.steps) != (self._state.step, self._state.steps)
        final = job.phase is JobPhase.EXITED
        if changed and (final or abs(now_s - self._progress_s) >= PROGRESS_EVERY_S):
            self._progress_s = now_s
            self._note(Kind.PROGRESS, step=job.step, steps=job.steps)

    # ---- act ----

    def _act(self, action: act.Action, plan: Plan) -> Ending | None:
        match action:
            case act.Finish(ending=ending):
                return ending
            case act.Wait(wait_s=wait_s):
                if self._state.vm is None:
                    self._offers = ()  # prices and capacity will have moved on
                self._tools.sleep(wait_s)
            case act.FindOffers():
                return self._find_offers()
            case act.Create(offer=offer, generation=generation):
                self._create(offer, generation, plan)
            case act.Start():
                self._start()
            case act.Deallocate(reason=reason):
                self._deallocate(reason, park=True)
            case act.Delete(reason=reason):
                self._delete(reason, plan)
            case act.RecordStop(observation=seen):
                self._record_stop(seen)
            case act.GiveUpOnBoot(reason=reason):
                return self._give_up_on_boot(reason, plan)
            case act.RecordTrained():
                self._note(Kind.TRAINED)
            case act.RecordExit(exit_code=code, step=step, crash=crash):
                self._note(Kind.TRAINER_EXITED, exit_code=code, step=step, crash=crash)
            case _:
                self._work(action, self._machine(), plan)
        return None

    def _work(self, action: act.Action, vm: Vm, plan: Plan) -> None:
        """What happens on a machine that answers."""
        workload = self._tools.workload
        match action:
            case act.Guard():
                self._guard(vm, plan)
            case act.Prepare():
                workload.prepare(vm)
                self._note(Kind.PREPARED)
            case act.Launch():
                self._note(Kind.LAUNCH_INTENDED)
                workload.launch(vm)
                self._watch = Watch(now_s=self._tools.clock())
                self._note(Kind.LAUNCHED)
            case act.StopHung(step=step, reason=reason):
                workload.stop(vm)
                self._note(Kind.TRAINER_HUNG, step=step, reason=reason)
            case act.RehearseEviction(step=step):
                self._note(Kind.EVICT_INTENDED, step=step)
                self._ask(lambda: self._tools.provider.evict(vm))
                self._note(Kind.EVICT_REQUESTED, step=step)
            case act.Fetch():
                self._note(Kind.FETCHED, path=workload.fetch(vm))

    def _guard(self, vm: Vm, plan: Plan) -> None:
        """Set what ends the bill without us, at the provider and on the machine."""
        tools, until_s = self._tools, self._until_s(plan, vm.price_usd_per_h)
        tools.workload.limit(vm, until_s - tools.clock())
        cap = tools.want.max_price_usd_per_h
        done = guard(tools.provider, vm, cap=cap, until_s=until_s, sleep=tools.sleep)
        self._note(Kind.GUARDED, until_s=until_s, holding=done.holding, missing=done.missing)

    def _until_s(self, plan: Plan, price_usd_per_h: float) -> float:
        """When the budget ends, in seconds since 1970, if the price rises to the cap."""
        price = max(self._tools.want.max_price_usd_per_h or 0.0, price_usd_per_h)
        return ends_s(plan.budget, self._state, self._tools.clock(), price)

    def _find_offers(self) -> Ending | None:
        self._offers = tuple(self._ask(lambda: self._tools.provider.offers(self._tools.want)))
        self._offers_s = self._tools.clock()
        if self._offers:
            return None
        reason = f"{self._tools.provider.name} has no offer for {self._tools.want}"
        return Ending(code=CLOUD_REFUSED, reason=reason)

    def _create(self, offer: Offer, generation: int, plan: Plan) -> None:
        spec = self._tools.make_spec(offer, generation)
        if plan.guards:
            spec = replace(spec, until_s=self._until_s(plan, offer.spot_usd_per_h))
        if self._state.pending is not Kind.CREATE_INTENDED:
            self._note(Kind.CREATE_INTENDED, generation=generation, offer=to_json(offer))
        try:
            vm = self._ask(lambda: self._tools.provider.create(spec))
        except ProviderError as error:
            self._refused(Kind.CREATE_FAILED, error)
            return
        self._note(Kind.CREATE_ACCEPTED, vm=to_json(vm))

    def _start(self) -> None:
        vm, provider = self._machine(), self._tools.provider
        self._note(Kind.START_INTENDED)
        try:
            if isinstance(provider, Capping):
                self._ask(lambda: provider.recap(vm, self._tools.want.max_price_usd_per_h))
            self._ask(lambda: provider.start(vm))
        except Gone:
            seen = Observation(power=PowerState.GONE, stop_reason=StopReason.UNKNOWN)
            self._record_stop(seen)
        except ProviderError as error:
            self._refused(Kind.START_FAILED, error)
        else:
            self._note(Kind.START_ACCEPTED)

    def _refused(self, kind: Kind, error: ProviderError) -> None:
        """Remember a refusal; hand on what only a human or a developer can fix."""
        stays = error.unfinished and not isinstance(error, PASSING)
        if stays or isinstance(error, Transient | SignedOut):
            raise error  # nothing is known of the act: its intent stays pending
        self._note(kind, error=error.kind, message=str(error), hint=error.hint)
        if not isinstance(error, PASSING):
            raise error

    def _deallocate(self, reason: str, *, park: bool) -> None:
        vm = self._machine()
        if park and self._state.prepared:
            try:
                self._tools.workload.park(vm)
            except (HostUnreachable, HostNotTrusted, HostUnfit) as error:
                # The machine goes either way; what is at home is what remains of it.
                reason = f"{reason}; its newest checkpoint could not be copied ({error})"
        self._tools.workload.forget()
        self._note(Kind.DEALLOCATE_INTENDED, reason=reason)
        try:
            until_s = release(self._tools.provider, vm, self._tools.sleep)
        except Gone:  # the machine is; its disk or address may still be there, and bill
            self._remove(reason)
        else:
            self._note(Kind.DEALLOCATED, reason=reason, until_s=until_s)

    def _delete(self, reason: str, plan: Plan) -> None:
        if (vm := self._state.vm) is not None and not plan.rents:
            self._tools.workload.clear(vm)
        self._remove(reason)

    def _remove(self, reason: str) -> None:
        self._tools.workload.forget()
        tools = self._tools
        self._note(Kind.DELETE_INTENDED, reason=reason)
        try:
            removed = remove(tools.provider, self._state.run_id, self._log, tools.sleep)
        except (ProviderError, KeyboardInterrupt):
            self._note_end()
            raise
        told = [f"{one.kind} {one.id}" for one in removed]
        self._note(Kind.DELETED, removed=told, until_s=billed_until_s(removed))

    def _note_end(self) -> None:
        """Write down that the compute ended, where only the rest of a removal did not."""
        vm = self._state.vm
        with contextlib.suppress(ProviderError):
            seen = self._tools.provider.observe(vm) if vm and self._state.up else None
            if seen is not None and not seen.power.bills_compute:
                self._note(
                    Kind.STOP_SEEN, **stop_reasons.as_event(self._state, seen, StopReason.USER)
                )

    def _record_stop(self, seen: Observation) -> None:
        self._tools.workload.forget()
        reason = self._watch.reason_of(seen)
        self._watch.found()
        self._note(Kind.STOP_SEEN, **stop_reasons.as_event(self._state, seen, reason))
        if seen.refusal is not None and not isinstance(seen.refusal, (*PASSING, Transient)):
            raise seen.refusal  # such as a policy: only a human can change what it forbids

    def _give_up_on_boot(self, reason: str, plan: Plan) -> Ending | None:
        self._note(Kind.MACHINE_UNREACHABLE, reason=reason)
        self._watch.found()
        if not plan.rents:
            return Ending(code=UNREACHABLE, reason=reason)
        self._deallocate(reason, park=False)
        return None

    def _end(self, ending: Ending, plan: Plan) -> Ending:
        """Write the ending down; a run that failed must not go on billing compute."""
        failed = ending.code and not ending.keeps
        if failed and plan.rents and self._state.up and self._state.vm is not None:
            if self._state.disk_step == 0 and self._state.home_step == 0:
                self._remove(ending.reason)  # nothing is on it that anybody could miss
            else:
                self._deallocate(ending.reason, park=True)
        self._note(Kind.RUN_ENDED, code=ending.code, reason=ending.reason)
        return ending

    # ---- helpers ----

    def _log(self, words: str) -> None:
        """Tell something that goes on for minutes."""
        self._tell(Seen(), act.Wait(wait_s=0, reason=words), self._tools.clock())

    def _note(self, kind: Kind, **data: object) -> None:
        self._state = apply(self._state, self._tools.journal.append(kind, **data))

    def _machine(self) -> Vm:
        if self._state.vm is None:
            raise AssertionError("decided to act on a machine although there is none")
        return self._state.vm

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        return ask(call, self._tools.sleep)
