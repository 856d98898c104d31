"""Sets a flag with a deadline when the machine is about to be taken away.

Two sources: Azure's scheduled events, polled once a second, and SIGTERM. Neither stops anything by
itself: the loop reads the flag where the state is whole.
"""

from __future__ import annotations

import http.client
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from trainer.untrusted import parse

EVENTS_PATH = "/metadata/scheduledevents?api-version=2020-07-01"
POLL_S = 1.0
FIRST_CALL_S_MAX = 150.0  # Azure switches the service on at the first call; documented: 2 minutes
CALL_S_MAX = 10.0
NOTICE_S = 30.0  # Azure's documented minimum, assumed when the event tells no time
NOTICE_S_MAX = 900.0
SIGTERM_S = 10.0  # what service managers usually leave before SIGKILL
ANSWER_BYTES_MAX = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Notice:
    """The machine goes away at `deadline_s` of the monotonic clock, for the reason given."""

    deadline_s: float
    reason: str


class PreemptionFlag:
    """Set by whoever hears of the end, read by the loop; of several notices the nearest counts."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._notice: Notice | None = None

    @property
    def notice(self) -> Notice | None:
        """The notice of the nearest end, or None as long as nothing was heard."""
        return self._notice

    @property
    def seconds_left(self) -> float:
        """Seconds until the announced end, infinite without a notice, possibly negative."""
        return self._notice.deadline_s - self.clock() if self._notice else float("inf")

    def set(self, *, seconds_left: float, reason: str) -> None:
        """Announce the end. Takes no lock, so a signal handler may call it."""
        notice = Notice(deadline_s=self.clock() + seconds_left, reason=reason)
        if self._notice is None or notice.deadline_s < self._notice.deadline_s:
            self._notice = notice


@contextmanager
def on_signals(flag: PreemptionFlag) -> Iterator[None]:
    """Let SIGTERM and SIGINT set `flag` while inside; a second SIGINT interrupts at once."""

    def on_signal(number: int, _frame: object) -> None:
        if number == signal.SIGINT and flag.notice is not None:
            raise KeyboardInterrupt
        flag.set(seconds_left=SIGTERM_S, reason=signal.Signals(number).name)

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(kw_only=True)
class MetadataPoll:
    """Asks the metadata service once a second from a daemon thread, until it is closed."""

    url: str
    flag: PreemptionFlag
    now: Callable[[], datetime]
    on_message: Callable[[str], None]  # hears when the service falls silent
    poll_s: float = POLL_S
    first_call_s_max: float = FIRST_CALL_S_MAX

    _closed: threading.Event = field(default_factory=threading.Event, init=False)

    def start(self) -> None:
        """Begin to ask; the slow first call does not hold up the caller."""
        threading.Thread(target=self._run, name="eviction-poll", daemon=True).start()

    def close(self) -> None:
        """Stop asking; a call under way is left to end by itself."""
        self._closed.set()

    def _run(self) -> None:
        timeout_s, silent = self.first_call_s_max, False
        while not self._closed.is_set() and self.flag.notice is None:
            try:
                events = fetch_events(self.url.rstrip("/") + EVENTS_PATH, timeout_s=timeout_s)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not silent:
                    self.on_message(f"eviction notices cannot be heard: {error}; asking on")
                silent = True
            else:
                timeout_s, silent = CALL_S_MAX, False
                seconds_left = preemption_in(events, self.now())
                if seconds_left is not None:
                    self.flag.set(seconds_left=seconds_left, reason="eviction notice")
            self._closed.wait(self.poll_s)


def fetch_events(url: str, *, timeout_s: float) -> object:
    """Ask the metadata service for its document, never through a proxy.

    Raises OSError (also a time-out or a refusing status), HTTPException or ValueError (no JSON, or
    more, or deeper, than such a document).
    """
    request = urllib.request.Request(url, headers={"Metadata": "true"})  # noqa: S310 - link-local
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout_s) as answer:
        return parse(answer.read(ANSWER_BYTES_MAX), bytes_max=ANSWER_BYTES_MAX)


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
