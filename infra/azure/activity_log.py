"""Reads why a machine stopped from Azure's activity log, which may be minutes late, or closed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from infra.azure.context import AzureContext
from infra.azure.naming import Names
from infra.errors import ProviderError
from infra.provider import StopReason
from infra.timestamps import format_utc, parse_utc_s

LOG_DAYS = 14
RELEASE_S = 600.0
"""How long a deallocation may take until the log says that it succeeded."""
SKEW_S = 120.0
"""How far this computer's clock and Azure's may differ."""


@dataclass(frozen=True, kw_only=True)
class StopCause:
    """The reason for which a machine went down, and since when."""

    reason: StopReason
    detail: str
    since: str = ""
    certain: bool = True
    ran: bool | None = None
    """Whether it is known to have run, or not, before that."""
    refusal: ProviderError | None = None


@dataclass(frozen=True, kw_only=True)
class ActivityLog:
    """Reads the activity log of one account; changes nothing."""

    context: AzureContext

    def stop_cause(
        self,
        names: Names,
        answer: dict[str, Any],
        *,
        after_s: float,
        before_s: float = math.inf,
        released_s: float = 0.0,
    ) -> StopCause | str:
        """Find why the machine stopped between those times, or why the log does not say.

        What qft itself ordered at `released_s`, after it had seen the stop, explains no stop.

        The log of an earlier life of the machine says nothing about this one, and an hour that is
        dated back to it would be an hour that nobody counts.
        """
        try:
            events = self._events(names)
        except ProviderError as error:  # closed, absent or busy: it is a source, not the machine
            return f"the activity log cannot be read ({error})"
        own = str((answer.get("identity") or {}).get("principalId") or "")
        for event in events:
            at_s = parse_utc_s(str(event.get("eventTimestamp") or "")) or 0.0
            at_s -= self.context.arm.skew_s if at_s else 0.0
            if at_s < after_s or (before_s == math.inf and _is_start(event)):
                break
            ours = released_s and -SKEW_S <= at_s - released_s <= RELEASE_S
            found = _reason_of(event, own) if at_s <= before_s and not ours else None
            if found is not None:
                reason, detail = found
                return StopCause(
                    reason=reason, since=format_utc(at_s) if at_s else "", detail=detail
                )
        return "the activity log has nothing yet, it lags by minutes"

    def _events(self, names: Names) -> list[dict[str, Any]]:
        """List the events of the machine, newest first."""
        start = datetime.fromtimestamp(self.context.clock(), tz=UTC) - timedelta(days=LOG_DAYS)
        wanted = (
            f"eventTimestamp ge '{start:%Y-%m-%dT%H:%M:%SZ}' and resourceUri eq '{names.vm_id}'"
        )
        events = self.context.arm.listed(
            "read the activity log",
            f"/subscriptions/{names.subscription_id}/providers/Microsoft.Insights"
            f"/eventtypes/management/values?$filter={quote(wanted)}",
        )
        return sorted(events, key=lambda one: str(one.get("eventTimestamp")), reverse=True)


def _is_start(event: dict[str, Any]) -> bool:
    """Whether an event says that the machine was started: older ones speak of earlier stops."""
    operation = str((event.get("operationName") or {}).get("value") or "").lower()
    status = str((event.get("status") or {}).get("value") or "").lower()
    return operation.endswith("/virtualmachines/start/action") and status == "succeeded"


def _reason_of(event: dict[str, Any], own: str) -> tuple[StopReason, str] | None:
    """Read from one event why a machine stopped; None if the event does not say.

    `own` is the principal of the machine's own identity.
    """
    operation = str((event.get("operationName") or {}).get("value") or "").lower()
    status = str((event.get("status") or {}).get("value") or "").lower()
    if status and status not in {"succeeded", "started", "accepted"}:
        return None
    who = str(event.get("caller") or "somebody")
    if operation.endswith("/evictspotvm/action"):
        text = " ".join(str(value) for value in (event.get("properties") or {}).values())
        if "price" in text.lower():
            return StopReason.PRICE, "evicted: the market price rose above the cap"
        return StopReason.EVICTED, "evicted: Azure took the capacity back"
    if operation.endswith("/simulateeviction/action"):
        return StopReason.EVICTED, f"evicted: a rehearsal asked for by {who}"
    if operation.endswith("/deallocate/action") and own and who.lower() == own.lower():
        detail = "it gave itself back: its limit was reached, or nobody needed it"
        return StopReason.RETURNED, detail
    verbs = {
        "/virtualmachines/delete": "deleted",
        "/deallocate/action": "deallocated",
        "/poweroff/action": "switched off",
    }
    for ending, verb in verbs.items():
        if operation.endswith(ending):
            # People sign in with an address. Everything else is a program's: the auto-shutdown, a
            # policy, Azure itself; none of them says that the owner wants no more of this run.
            reason = StopReason.USER if "@" in who else StopReason.UNKNOWN
            return reason, f"{verb} by {who}"
    return None
