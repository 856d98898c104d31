"""Derives the state of a run from its journal: a pure fold, valid after any prefix of it.

Nothing here acts or reads a clock. `decide.decide` takes the folded state and what was just
observed, and returns the next action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from infra.errors import ErrorKind
from infra.offer import Offer
from infra.provider import PowerState, StopReason, Vm
from infra.run.billing_spans import (
    billed_by,
    close_span,
    drop_open_span,
    not_before_last,
    open_span,
    raise_span,
    reprice_span,
    with_compute,
    without_compute,
)
from infra.run.cards import with_card
from infra.run.journal import Event, JournalDamaged, Kind, Outcome
from infra.run.nodes import events_of, node_count, together
from infra.run.order import Group
from infra.run.state import Failure, RunEnd, RunState, UnexplainedStop
from infra.run.stop_reasons import (
    after_late_refusal,
    describe_user_stop,
    describe_user_stop_from_log,
    had_run,
    is_eviction,
    is_refusal,
    spans_after_stop,
    spans_until_release,
    went_down_s,
    with_refusal,
    with_waiver,
)

PEER_DONE = 79
"""The exit code of a trainer whose group is done, and has left the results on another machine."""
CLOCK_STEP_S = 5.0
"""Times of a provider are whole seconds of another clock: a smaller difference means nothing."""


def fold(events: Iterable[Event]) -> RunState:
    """Derive the state of a run from its events, oldest first. Total: any prefix folds.

    That of a run with several machines is of all of them together, with each in `nodes`. Raises
    JournalDamaged for an event that somebody edited.
    """
    events = tuple(events)
    count = node_count(events)
    if count == 1:
        return fold_node(events)
    return together([fold_node(events_of(events, node)) for node in range(count)])


def fold_node(events: Iterable[Event]) -> RunState:
    """Derive the state of one machine from its events, as `fold` does."""
    state = RunState()
    for event in events:
        try:
            state = apply(state, event)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"event {event.number} ({event.kind}) does not tell what it should: {error!r}"
            raise JournalDamaged(Path("journal.jsonl"), what) from error
    return state


def apply(state: RunState, event: Event) -> RunState:
    """Return the state after one more event."""
    after = _RULES[event.kind](state, event)
    if after.spans is not state.spans and after.offer is not None:
        after = replace(after, spans=billed_by(after.spans, after.offer.provider))
    return replace(after, alive_s=event.at_s) if event.kind in _ALIVE else after


def _run_started(state: RunState, event: Event) -> RunState:
    return replace(
        state, run_id=event.data["run_id"], name=event.data["name"], started_s=event.at_s
    )


def _run_resumed(state: RunState, event: Event) -> RunState:
    """Clear what no longer binds when a person asks again, as an old ending or crashes.

    With `changed`, the training itself was changed (more steps, say), so it is not over either.
    The machine is prepared and its safeguards are set anew: data, config or budget may have been
    edited. Quota may have been granted: what only a person could change is tried again.
    """
    changed = bool(event.data.get("changed"))
    return replace(
        state,
        resumed_s=event.at_s,
        ending=None,
        stopped_by_user="",
        crashes=(),
        failure=None,
        failure_repeated=False,
        unreachable=0,
        prepared=False,
        safeguards_set_at_s=0.0,
        launched=state.launched and not changed,
        trained=state.trained and not changed,
        fetched="" if changed else state.fetched,
        refusals=tuple(one for one in state.refusals if not one.needs_human),
    )


def _create_intended(state: RunState, event: Event) -> RunState:
    """Bill from here on: the machine may exist although its answer never arrived."""
    offer = Offer.from_json(event.data["offer"])
    return replace(
        state,
        pending=event.kind,
        offer=offer,
        generation=event.data["generation"],
        start_requested_s=event.at_s,
        deleted=False,
        spans=open_span(state.spans, event.at_s, offer.running_usd_per_h, compute=True),
    )


def _create_accepted(state: RunState, event: Event) -> RunState:
    """Go on with the machine that was made, whose disk may be larger than was asked for."""
    vm = Vm.from_json(event.data["vm"])
    more_usd_per_h = vm.idle_usd_per_h - state.idle_usd_per_h
    return replace(
        _vm_started(state, event),
        vm=vm,
        spans=raise_span(state.spans, more_usd_per_h),
        latest_limit_s=None,
        other_cap="",
        pending=None,
        start_failures=0,
        unreachable=0,
        trained=False,  # what an earlier machine finished but nobody fetched went with its disk
        disk_step=0,
    )


def _create_failed(state: RunState, event: Event) -> RunState:
    """Bill no compute, but disk and address, which there may have been until it was cleared."""
    requested_s = state.spans[-1].start_s if state.spans else event.at_s
    usd_per_h = state.beside_compute_usd_per_h
    spans = open_span(drop_open_span(state.spans), requested_s, usd_per_h, compute=False)
    return replace(
        _refused(state, event),
        pending=None,
        vm=None,
        spans=close_span(spans, event.at_s),
        up=False,
    )


def _refused(state: RunState, event: Event) -> RunState:
    kind = ErrorKind(event.data["error"])
    return with_refusal(state, event, kind=kind, message=event.data["message"])


def _start_intended(state: RunState, event: Event) -> RunState:
    price = state.vm.price_usd_per_h if state.vm else 0.0
    if not price and state.offer is not None:
        price = state.offer.spot_usd_per_h
    since_s = min(float(event.data.get("since_s") or event.at_s), event.at_s)
    usd_per_h = price + state.beside_compute_usd_per_h
    return replace(
        state,
        pending=event.kind,
        start_requested_s=event.at_s,
        spans=open_span(
            state.spans, not_before_last(state.spans, since_s), usd_per_h, compute=True
        ),
    )


def _start_failed(state: RunState, event: Event) -> RunState:
    requested_s = state.spans[-1].start_s if state.spans else event.at_s
    return replace(
        _refused(state, event),
        pending=None,
        start_failures=state.start_failures + 1,
        spans=open_span(
            drop_open_span(state.spans), requested_s, state.idle_usd_per_h, compute=False
        ),
        up=False,
    )


def _running_seen(state: RunState, event: Event) -> RunState:
    """Forget refused starts, and date the bill by what the provider reports."""
    since_s = event.data.get("since_s") or 0.0
    spans = state.spans
    if state.start_requested_s < since_s <= event.at_s:
        spans = without_compute(
            spans, from_s=state.start_requested_s, to_s=since_s, usd_per_h=state.idle_usd_per_h
        )
    elif (
        spans and 0 < since_s < state.start_requested_s - CLOCK_STEP_S
    ):  # its provider had started it before this run asked for that
        spans = with_compute(
            spans, from_s=since_s, to_s=state.start_requested_s, usd_per_h=spans[-1].usd_per_h
        )
    return replace(
        state,
        running_s=event.at_s,
        launched_at_s=event.data.get("launched_at_s") or 0.0,
        start_failures=0,
        spans=spans,
    )


def _address_seen(state: RunState, event: Event) -> RunState:
    if state.vm is None:
        return state
    seen = {key: event.data[key] for key in ("host", "port", "metadata_url")}
    seen |= {key: event.data[key] for key in ("private_host",) if key in event.data}
    return replace(state, vm=replace(state.vm, **seen))


def _host_key_intended(state: RunState, event: Event) -> RunState:
    """Accept the new host key beside the present one."""
    if state.vm is None:
        return state
    return replace(state, vm=replace(state.vm, next_host_public_key=event.data["public_key"]))


def _host_key_changed(state: RunState, event: Event) -> RunState:
    """Accept the new host key alone: it never left the machine."""
    if state.vm is None:
        return state
    vm = replace(
        state.vm,
        host_public_key=event.data["public_key"],
        next_host_public_key="",
        host_key_is_readable=False,
    )
    return replace(state, vm=vm)


def _stop_seen(state: RunState, event: Event) -> RunState:
    """Count a stop that this run did not order, or a start that came to nothing."""
    if is_refusal(state, event.data):
        return after_late_refusal(state, event)
    ran = had_run(state, event.data)
    evicted = is_eviction(event.data["reason"]) and ran
    failed = event.data["reason"] == StopReason.FAILED  # by itself, as a boot that never answers
    stopped_by_user = describe_user_stop(state, event)
    gone = event.data["power"] in {PowerState.GONE, PowerState.REMNANTS}
    rehearsed = (
        state.rehearsed if state.rehearsing is None else state.rehearsed | {state.rehearsing}
    )
    replaced_s = event.data.get("replaced_s")
    when = went_down_s(state, event)
    if replaced_s is not None:  # it was gone by the time when the other one was launched
        when = min(when, max(float(replaced_s), state.alive_s))
    spans = with_waiver(state, close_span(state.spans, when), event, when)
    failed_to_boot = event.data["power"] == PowerState.FAILED and replaced_s is None
    if failed_to_boot or (gone and not state.prepared):
        # Accepted, then not allocated or taken away at once: a lack of capacity can arrive late.
        state = with_refusal(state, event, kind=ErrorKind.NO_CAPACITY, message=event.data["detail"])
    unexplained_stop = UnexplainedStop(
        after_s=state.vm_started_s, at_s=event.at_s, counted=evicted, ran=ran, alive_s=state.alive_s
    )
    return replace(
        state,
        up=False,
        running_s=0.0,
        prepared=False,
        launched=False,
        start_failures=0,
        unreachable=state.unreachable + 1 if failed else 0,
        evictions=state.evictions + evicted,
        stops=state.stops + 1,
        stopped_by_user=stopped_by_user,
        unexplained_stop=None if event.data.get("certain", True) else unexplained_stop,
        rehearsed=rehearsed,
        rehearsing=None,
        spans=spans_after_stop(state, spans, event, when),
    )


def _stop_explained(state: RunState, event: Event) -> RunState:
    """Replace an inferred reason by the one in the provider's log."""
    stop = state.unexplained_stop
    if stop is None:
        return state
    evicted = is_eviction(event.data["reason"]) and stop.ran
    evictions = state.evictions + evicted - stop.counted
    stopped_by_user = describe_user_stop_from_log(state, event)
    since_s, spans = event.data.get("since_s") or 0.0, state.spans
    if stop.ran and max(stop.after_s, stop.alive_s) <= since_s:
        spans = without_compute(
            spans, from_s=since_s, to_s=stop.at_s, usd_per_h=state.idle_usd_per_h
        )
    return replace(
        state,
        evictions=evictions,
        unexplained_stop=None,
        stopped_by_user=stopped_by_user,
        spans=spans,
    )


def _price_seen(state: RunState, event: Event) -> RunState:
    """Bill the machine at the market price of now from here on."""
    price = float(event.data["usd_per_h"])
    vm = None if state.vm is None else replace(state.vm, price_usd_per_h=price)
    spans = reprice_span(state.spans, event.at_s, price + state.beside_compute_usd_per_h)
    return replace(state, vm=vm, spans=spans)


def _safeguards_set(state: RunState, event: Event) -> RunState:
    return replace(
        state,
        safeguards_set_at_s=event.at_s,
        safeguards_until_s=event.data["until_s"],
        safeguards=tuple(event.data["holding"]),
        safeguards_missing=tuple(event.data.get("missing", ())),
        latest_limit_s=event.data.get("latest_limit_s"),
        other_cap=event.data.get("other_cap", ""),
    )


def _progress(state: RunState, event: Event) -> RunState:
    step, steps = event.data["step"], event.data["steps"]
    done = replace(state, step=step, steps=steps, disk_step=max(state.disk_step, step))
    return with_card(done, step)


def _checkpoint_home(state: RunState, event: Event) -> RunState:
    """Reset the count of silent boots: new work was copied to this computer."""
    step = event.data["step"]
    return with_card(replace(state, home_step=max(state.home_step, step), unreachable=0), step)


def _evict_requested(state: RunState, event: Event) -> RunState:
    return replace(state, rehearsing=None, rehearsed=state.rehearsed | {event.data["step"]})


def _trainer_exited(state: RunState, event: Event) -> RunState:
    if not event.data["crash"]:
        ended = state.group if event.data["exit_code"] == PEER_DONE else state.group_done
        pending = None if state.pending is Kind.LAUNCH_INTENDED else state.pending
        return replace(state, launched=False, group_done=ended, pending=pending)
    failure = Failure(
        step=event.data["step"],
        exit_code=event.data["exit_code"],
        error=event.data.get("error", ""),
    )
    return replace(
        state,
        launched=False,
        crashes=(*state.crashes, failure.step),
        failure=failure,
        failure_repeated=failure.repeats(state.failure),
    )


def _trained(state: RunState, event: Event) -> RunState:
    exact, since = event.data.get("exact", True), event.data.get("inexact_from")
    return replace(state, trained=True, exact=exact, inexact_from=since)


def _trainer_hung(state: RunState, event: Event) -> RunState:
    return replace(
        state,
        launched=False,
        failure=None,
        failure_repeated=False,
        hangs=state.hangs + 1,
        crashes=(*state.crashes, event.data["step"]),
    )


def _machine_unreachable(state: RunState, event: Event) -> RunState:
    del event
    return replace(state, unreachable=state.unreachable + 1, prepared=False, launched=False)


def _intended(state: RunState, event: Event) -> RunState:
    return replace(state, pending=event.kind)


def _launch_intended(state: RunState, event: Event) -> RunState:
    """Know the group from here on: its trainer may run although its answer never arrived."""
    after = replace(state, pending=event.kind)
    group = Group.from_json(event.data["group"]) if "group" in event.data else None
    return replace(after, group=group.number, members=group.members) if group else after


def _deallocated(state: RunState, event: Event) -> RunState:
    return replace(
        state,
        pending=None,
        up=False,
        prepared=False,
        launched=False,
        start_failures=0,
        spans=open_span(
            spans_until_release(state, event), event.at_s, state.idle_usd_per_h, compute=False
        ),
    )


def _deleted(state: RunState, event: Event) -> RunState:
    return replace(
        state,
        pending=None,
        vm=None,
        up=False,
        prepared=False,
        launched=False,
        deleted=True,
        disk_step=0,
        spans=close_span(spans_until_release(state, event), event.at_s),
    )


def _run_ended(state: RunState, event: Event) -> RunState:
    outcome = Outcome(event.data["code"])
    return replace(state, ending=RunEnd(outcome=outcome, reason=event.data["reason"]))


def _vm_started(state: RunState, event: Event) -> RunState:
    return replace(
        state,
        up=True,
        starts=state.starts + 1,
        vm_started_s=event.at_s,
        running_s=0.0,
        prepared=False,
        launched=False,
        host_key_kept=False,
        safeguards_set_at_s=0.0,
    )


_RULES: dict[Kind, Callable[[RunState, Event], RunState]] = {
    Kind.RUN_STARTED: _run_started,
    Kind.RUN_RESUMED: _run_resumed,
    Kind.CREATE_INTENDED: _create_intended,
    Kind.CREATE_ACCEPTED: _create_accepted,
    Kind.CREATE_FAILED: _create_failed,
    Kind.START_INTENDED: _start_intended,
    # Accepted is not granted: whether it runs is seen later.
    Kind.START_ACCEPTED: lambda state, event: replace(_vm_started(state, event), pending=None),
    Kind.START_FAILED: _start_failed,
    Kind.RUNNING_SEEN: _running_seen,
    Kind.ADDRESS_SEEN: _address_seen,
    Kind.STOP_SEEN: _stop_seen,
    Kind.STOP_EXPLAINED: _stop_explained,
    Kind.PRICE_SEEN: _price_seen,
    Kind.HOST_KEY_INTENDED: _host_key_intended,
    Kind.HOST_KEY_CHANGED: _host_key_changed,
    Kind.HOST_KEY_KEPT: lambda state, _: replace(state, host_key_kept=True),
    Kind.PREPARED: lambda state, _: replace(state, prepared=True),
    Kind.SAFEGUARDS_SET: _safeguards_set,
    Kind.LAUNCH_INTENDED: _launch_intended,
    Kind.LAUNCHED: lambda state, _: replace(
        state, pending=None, launched=True, launches=state.launches + 1
    ),
    Kind.PROGRESS: _progress,
    Kind.CHECKPOINT_HOME: _checkpoint_home,
    Kind.EVICT_INTENDED: lambda state, event: replace(state, rehearsing=event.data["step"]),
    Kind.EVICT_REQUESTED: _evict_requested,
    Kind.TRAINER_EXITED: _trainer_exited,
    Kind.TRAINER_HUNG: _trainer_hung,
    Kind.MACHINE_UNREACHABLE: _machine_unreachable,
    Kind.TRAINED: _trained,
    Kind.FETCHED: lambda state, event: replace(state, fetched=event.data["path"]),
    Kind.DEALLOCATE_INTENDED: _intended,
    Kind.DEALLOCATED: _deallocated,
    Kind.DELETE_INTENDED: _intended,
    Kind.DELETED: _deleted,
    Kind.RUN_ENDED: _run_ended,
}
_ALIVE = {
    Kind.RUNNING_SEEN,
    Kind.SAFEGUARDS_SET,
    Kind.PREPARED,
    Kind.LAUNCHED,
    Kind.PROGRESS,
    Kind.TRAINER_EXITED,
    Kind.TRAINER_HUNG,
    Kind.TRAINED,
    Kind.FETCHED,
}
"""Events that are only recorded of a machine that answered just then."""
