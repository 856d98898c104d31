"""Builds the page anew whenever a file of the run changed, and writes it when the run has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from commands.runs.live.feed import Feed
from commands.runs.live.run_view import RunView, View

LOOK_EVERY_S = 0.5
AGAIN_S = 5.0
"""Time and dollars go on without any file that changes."""
REST_FACTOR = 1.5
"""How many times as long as building took nothing is built: of a long run it takes a second."""


@dataclass(kw_only=True)
class Watch:
    """Looks at one run, from one thread."""

    view: RunView
    feed: Feed
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]
    on_message: Callable[[str], None]
    _seen: tuple[object, ...] = ()
    _built_s: float = field(default=float("-inf"))
    _rest_s: float = 0.0

    def run(self) -> None:
        """Watch until interrupted."""
        while True:
            self.turn()
            self.sleep(LOOK_EVERY_S)

    def turn(self) -> None:
        """Look once, and build if that is due."""
        began_s = self.monotonic()
        since_s = began_s - self._built_s
        if since_s < max(self._rest_s, LOOK_EVERY_S):
            return
        seen = self.view.signature()
        ended = self.feed.snapshot.ended
        stale = since_s >= AGAIN_S and self.feed.is_wanted and not ended
        if seen == self._seen and not stale:
            return
        self._seen = seen
        view = self._build()
        self._built_s = self.monotonic()
        self._rest_s = REST_FACTOR * (self._built_s - began_s)
        if view is None:
            return
        if view.ended:
            self._write()
        self.feed.publish(view.sections, ended=view.ended)

    def _build(self) -> View | None:
        """Build the page; None while a file of it cannot be read, as one that is being replaced."""
        try:
            return self.view.build()
        except (OSError, ValueError) as error:
            self.on_message(f"the page was not refreshed: {error}")
            return None

    def _write(self) -> None:
        try:
            page = self.view.write()
        except OSError as error:
            self.on_message(f"the run has ended; its page could not be written: {error}")
        else:
            self.on_message(f"the run has ended; its page is written: {page}")
