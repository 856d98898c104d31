"""Explains a stop that this run did not order: an eviction, a late refusal, or a person's order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from infra.errors import ErrorKind
from infra.provider import Observation, PowerState, StopReason
from infra.run.billing_spans import (
    Span,
    close_span,
    open_span,
    waive_compute,
    without_compute,
)
from infra.run.journal import RELEASE_INTENTS, Event
from infra.run.state import Refusal, RunState, UnexplainedStop
from infra.timestamps import format_utc, parse_utc_s

CLOCK_SKEW_S = 60.0
"""How much earlier than the machine was last seen alive a stop may be dated: clocks differ."""
MARKET_REASONS = {StopReason.EVICTED, StopReason.PRICE, StopReason.UNKNOWN}
"""Reasons for which Azure, as far as anyone knows, took back what it had granted."""


def is_eviction(reason: object) -> bool:
    """Whether the market took the machine away."""
    return reason in {StopReason.EVICTED, StopReason.PRICE}


def stop_event_data(state: RunState, seen: Observation, reason: StopReason) -> dict[str, Any]:
    """Return what the journal holds of a stop that was just seen."""
    replaced_s = parse_utc_s(seen.bills_since) if seen.power is PowerState.FAILED else None
    return {
        "power": seen.power,
        "reason": reason,
        "detail": str(seen.refusal) if seen.refusal else seen.detail,
        "certain": seen.certain,
        "since_s": parse_utc_s(seen.since),
        "step": state.step,
        "ran": bool(state.running_s or state.prepared or seen.ran),
        "refused": seen.refusal.kind if seen.refusal else "",
        **({} if replaced_s is None else {"replaced_s": replaced_s}),
        **waiver_data(seen),
    }


def waiver_data(seen: Observation) -> dict[str, Any]:
    """Return what the journal holds of compute that the vendor waives; empty if it waives none."""
    waived_s = parse_utc_s(seen.waived_since)
    return {} if waived_s is None else {"waived_since_s": waived_s}


def had_run(state: RunState, stop: Mapping[str, Any]) -> bool:
    """Whether the machine that stopped had run since it was last made or started.

    Seen running, or known to its provider as having run: without either there was nothing that
    anybody could take away.
    """
    return bool(state.running_s or state.prepared or stop.get("ran"))


def is_refusal(state: RunState, stop: Mapping[str, Any]) -> bool:
    """Whether a stop is really the late refusal of a create or start that was accepted.

    So the provider reports, or the market is all that can have stopped what never ran. A person's
    order, a machine that gave itself back and one that failed by itself are what they are.
    """
    if had_run(state, stop) or stop["reason"] in {StopReason.USER, StopReason.RETURNED}:
        return False
    return bool(stop.get("refused")) or stop["reason"] in MARKET_REASONS


def after_late_refusal(state: RunState, event: Event) -> RunState:
    """Return the state after a create or start that was refused late: as after one refused at once.

    What the provider itself calls refused has never billed compute. Where that is only inferred,
    the hours count until the stop was seen.
    """
    stop = event.data
    gone = stop["power"] in {PowerState.GONE, PowerState.REMNANTS}
    if stop.get("refused"):
        spans = without_compute(
            state.spans, from_s=state.start_requested_s, usd_per_h=state.idle_usd_per_h
        )
        spans = close_span(spans, event.at_s) if gone else spans
    else:
        spans = close_span(state.spans, event.at_s)
        spans = spans if gone else open_span(spans, event.at_s, state.idle_usd_per_h, compute=False)
    dear = stop["reason"] == StopReason.PRICE
    inferred = ErrorKind.PRICE_ABOVE_CAP if dear else ErrorKind.NO_CAPACITY
    kind = ErrorKind(stop["refused"]) if stop.get("refused") else inferred
    unsure = not stop.get("certain", True)
    unexplained_stop = UnexplainedStop(
        after_s=state.vm_started_s, at_s=event.at_s, counted=False, ran=False
    )
    return replace(
        with_refusal(state, event, kind=kind, message=str(stop.get("detail", ""))),
        pending=state.pending if state.pending in RELEASE_INTENTS else None,
        up=False,
        prepared=False,
        launched=False,
        start_failures=state.start_failures + 1,
        unexplained_stop=unexplained_stop if unsure else None,
        spans=spans,
    )


def with_refusal(state: RunState, event: Event, *, kind: ErrorKind, message: str) -> RunState:
    """Return the state with one more refusal of the present offer, replacing an older one."""
    offer = state.offer
    if offer is None:
        return state
    refusal = Refusal(
        provider=offer.provider,
        place=offer.place,
        size=offer.size,
        kind=kind,
        message=message,
        at_s=event.at_s,
    )
    here = (offer.provider, offer.place, offer.size)
    others = tuple(f for f in state.refusals if (f.provider, f.place, f.size) != here)
    return replace(state, refusals=(*others, refusal))


def went_down_s(state: RunState, event: Event) -> float:
    """Return since when it has been down, as the provider reports unless it was seen alive later.

    A provider that speaks of an earlier stop must not make the hours since then free of charge.
    """
    since_s = event.data.get("since_s")
    if not since_s or _is_of_earlier_stop(state, since_s):
        return event.at_s
    return min(max(float(since_s), state.alive_s), event.at_s)


def _is_of_earlier_stop(state: RunState, since_s: float) -> bool:
    """Whether the machine ran after that time, so that a stop of then is not the one just seen."""
    return since_s < max(state.vm_started_s, state.alive_s - CLOCK_SKEW_S)


def with_waiver(
    state: RunState, spans: tuple[Span, ...], event: Event, down_s: float
) -> tuple[Span, ...]:
    """Return the spans without the price of compute that the vendor waives, until it went down.

    What it reports of an earlier stop waives nothing of the time since then.
    """
    waived_s = event.data.get("waived_since_s")
    if waived_s is None or _is_of_earlier_stop(state, float(event.data.get("since_s") or 0.0)):
        return spans
    return waive_compute(
        spans, from_s=float(waived_s), to_s=down_s, usd_per_h=state.beside_compute_usd_per_h
    )


def spans_after_stop(
    state: RunState, spans: tuple[Span, ...], event: Event, when_s: float
) -> tuple[Span, ...]:
    """Return the spans with what bills after a stop: the disk, or another machine in its place.

    That machine bills since the vendor launched it, at the price of the one that went.
    """
    if event.data["power"] in {PowerState.GONE, PowerState.REMNANTS}:
        return spans
    idle = open_span(spans, when_s, state.idle_usd_per_h, compute=False)
    if event.data.get("replaced_s") is None:
        return idle
    since_s = min(max(float(event.data["replaced_s"]), when_s), event.at_s)
    price = state.vm.price_usd_per_h if state.vm else 0.0
    return open_span(idle, since_s, price + state.beside_compute_usd_per_h, compute=True)


def spans_until_release(state: RunState, event: Event) -> tuple[Span, ...]:
    """Return the spans with compute ended when the provider reports that it did, not when asked."""
    until_s = event.data.get("until_s") or math.inf
    if not max(state.start_requested_s, state.alive_s) <= until_s <= event.at_s:
        return with_waiver(state, state.spans, event, event.at_s)
    spans = without_compute(
        state.spans, from_s=until_s, to_s=event.at_s, usd_per_h=state.idle_usd_per_h
    )
    return with_waiver(state, spans, event, until_s)


def describe_user_stop(state: RunState, event: Event) -> str:
    """Describe who stopped the machine on purpose; empty if nobody did, or not yet for certain.

    `state` is the one before the event. A stop binds the run if a person ordered it after the
    machine last started and after somebody last asked for the run: a command typed later is a
    newer wish. What this run had begun to release itself was nobody else's order.
    """
    stop = event.data
    sure = stop["reason"] == StopReason.USER and stop.get("certain", True)
    if not sure or state.pending in RELEASE_INTENTS:
        return ""
    requested_s, since_s = max(state.started_s, state.resumed_s), float(stop.get("since_s") or 0.0)
    if since_s:
        meant = since_s >= max(requested_s, state.vm_started_s)
    else:
        meant = state.prepared or state.vm_started_s >= requested_s
    return _describe(since_s or event.at_s, stop) if meant else ""


def describe_user_stop_from_log(state: RunState, event: Event) -> str:
    """Describe it for a stop that counted as an eviction until the log said otherwise."""
    if state.unexplained_stop is None or event.data["reason"] != StopReason.USER:
        return ""
    since_s = float(event.data.get("since_s") or state.unexplained_stop.at_s)
    earliest_s = max(state.started_s, state.resumed_s, state.unexplained_stop.after_s)
    return _describe(since_s, event.data) if since_s >= earliest_s else ""


def _describe(at_s: float, stop: dict[str, object]) -> str:
    who = stop.get("detail") or "nobody tells by whom"
    return f"the machine was stopped at {format_utc(at_s)}, and not by this run: {who}"
