"""Gives a transfer up that goes on for ever without getting anywhere."""

from __future__ import annotations

import threading
from collections.abc import Callable

from remote.errors import TooSlow


class MinimumSpeed:
    """Counts the bytes of one transfer, on all its channels, against the slowest pace allowed.

    Silence is noticed elsewhere; this notices a peer that sends one byte now and then, and so is
    never silent. `clock` tells seconds.
    """

    def __init__(
        self, *, bytes_per_s: float, window_s: float, clock: Callable[[], float], who: str
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._window_s = window_s
        self._clock = clock
        self._who = who
        self._lock = threading.Lock()
        self._began_s = clock()
        self._count = 0

    def add(self, count: int) -> None:
        """Count bytes that have arrived; raises `TooSlow` if a whole window brought too few."""
        with self._lock:
            self._count += count
            passed_s = self._clock() - self._began_s
            if passed_s < self._window_s:
                return
            came, self._count, self._began_s = self._count, 0, self._clock()
        if came < self._bytes_per_s * passed_s:
            raise TooSlow(
                f"{self._who} brought {came} bytes in {passed_s:.0f} s, and less than "
                f"{self._bytes_per_s:g} a second is not waited for",
                hint="what has come is kept, and the same command goes on from there",
            )
