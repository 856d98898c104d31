"""Observes the machine and the job on it, through trouble that is not the machine's own.

Observer        one look at everything, also with no network or nobody signed in
StallDetector   how long the trainer, or the machine, has been silent
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from infra.errors import ProviderError, Rejected, SignedOut, Transient
from infra.provider import Observation, PowerState, StopReason, Vm
from infra.retry import with_retries
from infra.run.actions import Wait
from infra.run.context import RunContext
from infra.run.decide import Seen, is_up
from infra.run.journal import Kind
from infra.run.plan import Policy
from infra.run.state import RunState
from infra.run.workload import HostUnreachable, JobPhase, JobView
from infra.timestamps import parse_utc_s

UNKNOWN_REFUSAL_S_MAX = 900.0
"""How long a look may be refused in words that no rule knows, as by a proxy on the way."""
OBSERVE_EVERY_S = 30.0
"""A pause after a cut lasts no longer than this without a look at the provider."""
PRICE_EVERY_S = 300.0
PRICE_STEP_USD = 1e-6
PROGRESS_EVERY_S = 10.0
RESTART_SKEW_S = 60.0
"""How much later than it was first seen running a machine must have begun to bill, for it to have
been down in between: clocks differ."""
UNWATCHED_S = 600.0
"""Nobody looked for longer than this: the computer slept, and the silence begins anew."""


class Observer:
    """Observes one run, for hours without an answer if need be: being offline must not end it.

    A sign-in that expired blocks the provider and not the machine. One that had been answering is
    followed over SSH alone, its work brought home, until somebody signs in again. What is worth a
    line of the journal goes to `record`, which returns the state after it; why nothing is seen for
    a while goes to `report`.
    """

    def __init__(
        self,
        context: RunContext,
        *,
        record: Callable[..., RunState],
        report: Callable[[Seen, Wait, float], None],
    ) -> None:
        self._provider = context.provider
        self._workload = context.workload
        self._clock = context.clock
        self._sleep = context.sleep
        self._record = record
        self._report = report
        self.stalls = StallDetector(now_s=context.clock())
        self._assumed_since_s: float | None = None
        self._observed_at_s = 0.0
        self._price_s = 0.0
        self._explain_s = 0.0
        self._progress_s = 0.0
        self.warning = ""
        """What a person should know while the provider cannot be asked; else empty."""

    @property
    def assumed_up(self) -> bool:
        """Whether the last look had no answer, and the machine is only taken to be up."""
        return self._assumed_since_s is not None

    def observe(self, state: RunState, policy: Policy) -> Seen:
        """Look at the machine, then at the job on it, and record what is new.

        Raises what `observe_machine` does.
        """
        vm = state.vm
        if vm is None:
            return Seen()
        machine = self.observe_machine(vm, policy, answers=state.prepared)
        address = {"host": machine.host, "port": machine.port, "metadata_url": machine.metadata_url}
        if machine.private_host:
            address["private_host"] = machine.private_host
        if machine.host and any(getattr(vm, key) != now for key, now in address.items()):
            state = self._record(Kind.ADDRESS_SEEN, **address)
            vm = state.vm or vm
        if not self.assumed_up:
            for kind, data in self._observed_events(state, vm, machine):
                state = self._record(kind, **data)
        machine = self._with_missed_stop(state, vm, machine)
        seen = Seen(machine=machine)
        if machine.power is not PowerState.RUNNING or not vm.host or not state.up:
            return seen
        try:
            if not state.prepared:
                self._workload.connect(vm)
                job = None
            else:
                job = self._workload.job_status(vm)
        except HostUnreachable as error:
            silent_s = self.stalls.unreachable_for_s(self._clock())
            self._allow_caller_ip(vm, silent_s)
            return replace(seen, unreachable=str(error), unreachable_s=silent_s)
        self.stalls.reachable()
        if job is None:
            return seen
        job = self.stalls.with_durations(job, self._clock())
        self._record_progress(state, job)
        return replace(seen, job=job)

    def observe_machine(self, vm: Vm, policy: Policy, *, answers: bool) -> Observation:
        """Look once; `answers` says whether the machine had been reached since it last started.

        Raises `SignedOut` for one that had not, and `Transient` or `SignedOut` once that has lasted
        for `policy.offline_max_s`; `Rejected` after `UNKNOWN_REFUSAL_S_MAX`.
        """
        began_s, pause_s = self._clock(), policy.backoff_first_s * 4
        if answers and self.assumed_up and began_s - self._observed_at_s < pause_s:
            return _assume_up(vm)
        while True:
            self._observed_at_s = self._clock()
            try:
                seen = with_retries(lambda: self._provider.observe(vm), self._sleep)
            except SignedOut as error:
                if not answers or self._signed_out_for_s() > policy.offline_max_s:
                    raise
                self.warning = _signed_out_warning(error)
                return _assume_up(vm)
            except (Transient, Rejected) as error:
                offline = isinstance(error, Transient)
                most_s = policy.offline_max_s if offline else UNKNOWN_REFUSAL_S_MAX
                if self._clock() - began_s > most_s:
                    raise
                wait = Wait(wait_s=pause_s, reason=f"no news: {error}")
                self._report(Seen(), wait, self._clock())
                self._sleep(pause_s)
            else:
                self._assumed_since_s, self.warning = None, ""
                return seen

    def _with_missed_stop(self, state: RunState, vm: Vm, machine: Observation) -> Observation:
        """Return the look as that at a machine that is down, if it was so unseen and runs again.

        So the stop is recorded first; the next look takes over what its provider has started.
        """
        again = self._provider.traits_of(vm).restarts_itself
        if not again or not state.up or not state.running_s or not is_up(machine):
            return machine
        if not _was_started_since(machine, state):
            return machine
        return replace(
            machine,
            power=PowerState.DEALLOCATED,
            stop_reason=StopReason.EVICTED,
            certain=False,
            since=machine.bills_since,
            detail=f"it was taken away unseen; {vm.provider} started it again at"
            f" {machine.bills_since}",
            ran=True,
        )

    def pause(self, vm: Vm | None, wait_s: float) -> None:
        """Sleep, and wake early if the machine went down: an eviction may have cut the line."""
        left_s = wait_s
        while left_s > 0:
            if vm is not None and self._went_down(vm):
                return
            self._sleep(min(left_s, OBSERVE_EVERY_S))
            left_s -= OBSERVE_EVERY_S

    def _went_down(self, vm: Vm) -> bool:
        """Whether the provider reports it down; False if it cannot be asked."""
        try:
            return not is_up(self._provider.observe(vm))
        except ProviderError:
            return False

    def _signed_out_for_s(self) -> float:
        """Return for how long nobody has been signed in."""
        if self._assumed_since_s is None:
            self._assumed_since_s = self._observed_at_s
        return self._observed_at_s - self._assumed_since_s

    def _allow_caller_ip(self, vm: Vm, silent_s: float) -> None:
        """Let this computer's present address in once a silence has begun: it may have moved."""
        if silent_s > 0 and not self.stalls.caller_allowed:
            self.stalls.caller_allowed = True
            with_retries(lambda: self._provider.allow_caller_ip(vm), self._sleep)

    # ---- what is worth a line of the journal, seldom enough to bother nobody ----

    def _record_progress(self, state: RunState, job: JobView) -> None:
        now_s = self._clock()
        changed = (job.step, job.steps) != (state.step, state.steps)
        final = job.phase is JobPhase.EXITED
        if changed and (final or abs(now_s - self._progress_s) >= PROGRESS_EVERY_S):
            self._progress_s = now_s
            self._record(Kind.PROGRESS, step=job.step, steps=job.steps)

    def _observed_events(
        self, state: RunState, vm: Vm, seen: Observation
    ) -> Iterator[tuple[Kind, dict[str, Any]]]:
        """Yield what should be recorded after a look at the machine."""
        if seen.power is PowerState.RUNNING and state.is_unseen:
            launched_s = parse_utc_s(seen.launched_at)
            launched = {} if launched_s is None else {"launched_at_s": launched_s}
            yield Kind.RUNNING_SEEN, {"since_s": parse_utc_s(seen.bills_since), **launched}
        yield from self._price_events(state, vm, seen)
        yield from self._stop_reason_events(state, vm)

    def _price_events(
        self, state: RunState, vm: Vm, seen: Observation
    ) -> Iterator[tuple[Kind, dict[str, Any]]]:
        """Yield the price of now, which the budget counts, not the one at which we rented."""
        now_s, price = self._clock(), seen.price_usd_per_h
        if price is None or not state.up or not seen.power.bills_compute:
            return
        moved = abs(price - vm.price_usd_per_h) > PRICE_STEP_USD
        if moved and now_s - self._price_s >= PRICE_EVERY_S:
            self._price_s = now_s
            yield Kind.PRICE_SEEN, {"usd_per_h": price}

    def _stop_reason_events(self, state: RunState, vm: Vm) -> Iterator[tuple[Kind, dict[str, Any]]]:
        """Yield why the machine really went down, once the provider's log has caught up."""
        stop, now_s = state.unexplained_stop, self._clock()
        if stop is None or not stop.is_due(now_s, requested_s=self._explain_s):
            return
        self._explain_s = now_s
        found = with_retries(
            lambda: self._provider.stop_reason_from_log(
                vm, after_s=stop.after_s, before_s=stop.at_s
            ),
            self._sleep,
        )
        if found is not None:
            yield (
                Kind.STOP_EXPLAINED,
                {
                    "reason": found.stop_reason or StopReason.UNKNOWN,
                    "detail": found.detail,
                    "since_s": parse_utc_s(found.since),
                },
            )


class StallDetector:
    """Measures how long the trainer has been silent or stalled, by this computer's clock.

    The machine's clock may be wrong, so only changes of what it reports count.
    """

    def __init__(self, *, now_s: float) -> None:
        self._beat: object = None
        self._beat_s = now_s
        self._mark: object = None
        self._mark_s = now_s
        self._unreachable_since_s: float | None = None
        self._observed_s = now_s
        self.caller_allowed = False
        """Whether, in this silence, the firewall was asked to let this computer in."""
        self.saw_preemption = False
        """Whether the trainer recorded the notice of an eviction."""

    def with_durations(self, job: JobView, now_s: float) -> JobView:
        """Return the look at the job with `silent_s` and `stalled_s` filled in."""
        beat = job.heartbeat.updated_at
        mark = (job.step, job.heartbeat.phase, job.heartbeat.message)
        self.saw_preemption |= job.heartbeat.phase == "preempted"
        if beat != self._beat:
            self._beat, self._beat_s = beat, now_s
        if mark != self._mark:
            self._mark, self._mark_s = mark, now_s
        return replace(job, silent_s=now_s - self._beat_s, stalled_s=now_s - self._mark_s)

    def reason_of(self, stop: Observation) -> StopReason:
        """Return why the machine stopped; if unknown, a notice that the trainer recorded counts."""
        reason, saw_preemption = stop.stop_reason or StopReason.UNKNOWN, self.saw_preemption
        self.saw_preemption = False
        return StopReason.EVICTED if saw_preemption and reason is StopReason.UNKNOWN else reason

    def unreachable_for_s(self, now_s: float) -> float:
        """Note that the machine does not answer; return since how many seconds."""
        if self._unreachable_since_s is None or now_s - self._observed_s > UNWATCHED_S:
            self._unreachable_since_s = now_s
            self.caller_allowed = False
        self._observed_s = now_s
        return now_s - self._unreachable_since_s

    def reachable(self) -> None:
        """Note that the machine answers, or is down."""
        self._unreachable_since_s = None
        self.caller_allowed = False


def _was_started_since(machine: Observation, state: RunState) -> bool:
    """Whether a machine that is up was started since it was first seen running.

    Two times of the provider's own clock tell, however wrong this computer's clock is; a journal
    without the first of them is compared with what this computer saw.
    """
    launched_s = parse_utc_s(machine.launched_at)
    if launched_s is not None and state.launched_at_s:
        return launched_s > state.launched_at_s
    since_s = parse_utc_s(machine.bills_since)
    return since_s is not None and since_s > state.running_s + RESTART_SKEW_S


def _assume_up(vm: Vm) -> Observation:
    return Observation(
        power=PowerState.RUNNING, host=vm.host, port=vm.port, metadata_url=vm.metadata_url
    )


def _signed_out_warning(error: SignedOut) -> str:
    return (
        f"{error}; the machine goes on working and billing, and is followed without the cloud, "
        f"where nothing can end the bill now; sign in again in another terminal ({error.hint}), "
        "and this goes on by itself"
    )
