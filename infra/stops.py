"""What a stop that this run did not ask for says: an eviction, or the word of whoever owns it."""

from __future__ import annotations

from infra.journal import Event, Kind
from infra.known import RunState
from infra.provider import StopReason
from infra.when import utc

OURS = {Kind.DEALLOCATE_INTENDED, Kind.DELETE_INTENDED}


def is_eviction(reason: object) -> bool:
    """Whether the market took the machine away."""
    return reason in {StopReason.EVICTED, StopReason.PRICE}


def down_s(state: RunState, event: Event) -> float:
    """Since when it has been down: as the provider says, unless that was before it last started.

    A provider that speaks of an earlier stop must not make the hours since then free of charge.
    """
    since_s = event.data.get("since_s")
    if not since_s or since_s < state.booted_s:
        return event.at_s
    return min(float(since_s), event.at_s)


def owners_stop(state: RunState, event: Event) -> str:
    """Who stopped the machine for good, in words; empty if nobody did, or not yet for certain.

    `state` is the one before the event. A stop binds the run if a person ordered it after the
    machine last started and after somebody last asked for the run: a command typed later is a
    newer wish. What this run had begun to release itself was nobody else's order.
    """
    told = event.data
    sure = told["reason"] == StopReason.USER and told.get("certain", True)
    if not sure or state.pending in OURS:
        return ""
    asked_s, since_s = max(state.started_s, state.resumed_s), float(told.get("since_s") or 0.0)
    if since_s:
        meant = since_s >= max(asked_s, state.booted_s)
    else:
        meant = state.prepared or state.booted_s >= asked_s
    return _words(since_s or event.at_s, told) if meant else ""


def owners_stop_explained(state: RunState, event: Event) -> str:
    """The same of a stop that was taken for an eviction until the records told otherwise."""
    if state.doubt is None or event.data["reason"] != StopReason.USER:
        return ""
    since_s = float(event.data.get("since_s") or state.doubt.at_s)
    earliest_s = max(state.started_s, state.resumed_s, state.doubt.after_s)
    return _words(since_s, event.data) if since_s >= earliest_s else ""


def _words(at_s: float, told: dict[str, object]) -> str:
    who = told.get("detail") or "nobody tells by whom"
    return f"the machine was stopped at {utc(at_s)}, and not by this run: {who}"
