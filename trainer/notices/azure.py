"""Reads Azure's scheduled events, which announce a preemption about 30 seconds ahead."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar

from trainer.notices.metadata import ANSWER_BYTES_MAX, Announced, read_url
from trainer.untrusted import parse

EVENTS_PATH = "/metadata/scheduledevents?api-version=2020-07-01"
NOTICE_S = 30.0  # Azure's documented minimum, assumed when the event tells no time
NOTICE_S_MAX = 900.0


class AzureNotices:
    """Azure's scheduled events of one machine."""

    first_call_s_max: ClassVar[float] = 150.0
    """Azure switches the service on at the first call; documented: 2 minutes."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/") + EVENTS_PATH

    def announced(self, now: datetime, *, timeout_s: float) -> Announced:
        """Ask once for the events of this machine."""
        return Announced(seconds_left=preemption_in(fetch_events(self._url, timeout_s), now))


def fetch_events(url: str, timeout_s: float) -> object:
    """Read the document of scheduled events. Raises as `read_url`, and ValueError for no JSON."""
    body = read_url(url, headers={"Metadata": "true"}, timeout_s=timeout_s)
    return parse(body, bytes_max=ANSWER_BYTES_MAX)


def preemption_in(document: object, now: datetime) -> float | None:
    """Return the seconds until the earliest announced end of the machine, or None if there is none.

    It ends by preemption, or by a deletion that was announced. A freeze is short, and before a
    reboot comes SIGTERM.
    The service of a virtual machine lists events of that machine only, so any named resource
    counts. A missing or unreadable time is taken as Azure's minimum, one in the past as zero, and
    a far one is bounded, because the clock of the machine may be wrong.
    """
    events = document.get("Events") if isinstance(document, Mapping) else None
    if not isinstance(events, list):
        return None
    times = [
        _seconds_until(event, now)
        for event in events
        if isinstance(event, Mapping) and str(event.get("EventType")) in {"Preempt", "Terminate"}
    ]
    return min(times, default=None)


def _seconds_until(event: Mapping[str, Any], now: datetime) -> float:
    """Return the seconds from `now` to the event's NotBefore, within 0 and the longest notice."""
    if event.get("EventStatus") == "Started":
        return 0.0
    try:
        moment = parsedate_to_datetime(str(event.get("NotBefore")))
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        left_s = (aware - now).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return NOTICE_S
    return min(max(0.0, left_s), NOTICE_S_MAX)
