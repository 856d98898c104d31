"""Time of the simulated cloud: it stands still unless somebody sleeps, or runs at a chosen pace."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime

EPOCH_S = 1_790_000_000.0
"""21 September 2026: the day of the prices in the catalog."""


class SimClock:
    """Simulated seconds since 1970. With `pace` 0 only `sleep` moves it, so tests take no time."""

    def __init__(self, *, pace: float = 0.0, start_s: float = EPOCH_S) -> None:
        self.pace = pace
        self._lock = threading.Lock()
        self._skipped_s = start_s
        self._began = time.monotonic()

    def now(self) -> float:
        """The simulated time."""
        with self._lock:
            return self._skipped_s + (time.monotonic() - self._began) * self.pace

    def sleep(self, seconds: float) -> None:
        """Let simulated time pass at once; the `sleep` to hand to whoever is under test."""
        with self._lock:
            self._skipped_s += max(seconds, 0.0)

    def retry_after(self, seconds: float) -> str:
        """The `Retry-After` with which a client that really sleeps waits that long in here.

        Empty, for no advice, where that would be less than a second: the header is an integer.
        """
        real_s = seconds / max(self.pace, 1.0)
        return str(round(real_s)) if real_s >= 1 else ""

    def iso(self, at_s: float | None = None) -> str:
        """A time as Azure writes it."""
        moment = datetime.fromtimestamp(self.now() if at_s is None else at_s, tz=UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
