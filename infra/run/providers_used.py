"""Reads from a journal at which providers a run may have something: pure."""

from __future__ import annotations

from collections.abc import Iterable

from infra.run.journal import Event, Kind


def providers_used(events: Iterable[Event]) -> set[str]:
    """Return the providers at which a run has asked for a machine since its last removal.

    After a removal those whose machine was removed last. What was refused left nothing behind; if
    all was, those that were asked at all.
    """
    used: set[str] = set()
    ever: set[str] = set()
    latest, removed = "", False
    for event in events:
        if event.kind is Kind.CREATE_INTENDED:
            offer = event.data.get("offer")
            latest = str(offer.get("provider", "")) if isinstance(offer, dict) else ""
            used = {latest} if removed else used | {latest}
            ever.add(latest)
            removed = False
        elif event.kind is Kind.CREATE_FAILED:
            used = used - {latest}
        elif event.kind is Kind.DELETED:
            removed = True
    return used or ever
