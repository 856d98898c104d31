"""Hands the newest version of a page from the one thread that builds it to those that send it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from commands.runs.live.changes import Sections, Snapshot

LISTENERS_MAX = 8
WANTED_S = 10.0
"""A page that was loaded connects within this time; until then it is built on."""


class TooManyListeners(Exception):  # noqa: N818  (the server answers with a status)
    """As many browsers as may be are connected."""


class Feed:
    """The newest version; every method may be called from any thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._snapshot = Snapshot()
        self._listeners = 0
        self._requested_s: float | None = None
        self._closed = False

    @property
    def snapshot(self) -> Snapshot:
        """The newest version."""
        return self._snapshot

    @property
    def is_wanted(self) -> bool:
        """Whether anybody looks at the page, or is about to."""
        requested_s = self._requested_s
        loading = requested_s is not None and self._clock() - requested_s < WANTED_S
        return self._listeners > 0 or loading

    def publish(self, sections: Sections, *, ended: bool) -> None:
        """Make this the newest version, and wake who waits for one."""
        with self._changed:
            self._snapshot = self._snapshot.after(sections, ended=ended)
            self._changed.notify_all()

    def ask(self) -> Snapshot:
        """Return the newest version to a browser that loads the page."""
        self._requested_s = self._clock()
        return self._snapshot

    def wait(self, version: int, timeout_s: float) -> Snapshot | None:
        """Return the newest version once it is another one than `version`, or after the time.

        None once the feed was closed.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._snapshot.version != version, timeout_s
            )
            return None if self._closed else self._snapshot

    def close(self) -> None:
        """Let everybody who waits leave."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Count a browser that is connected. Raises `TooManyListeners`."""
        with self._changed:
            if self._listeners >= LISTENERS_MAX:
                raise TooManyListeners
            self._listeners += 1
        try:
            yield
        finally:
            with self._changed:
                self._listeners -= 1
