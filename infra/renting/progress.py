"""Reports what lasts for minutes, about once a minute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infra.provider import OnMessage

REPORT_EVERY_S = 60.0


@dataclass(kw_only=True)
class ProgressReporter:
    """Reports about once a minute how long something has taken."""

    on_message: OnMessage
    clock: Callable[[], float]
    began_s: float
    reported_at_s: float = 0.0

    @property
    def elapsed(self) -> str:
        """How long it has taken, such as `3 min`."""
        return f"{(self.clock() - self.began_s) / 60:.0f} min"

    def report(self, doing: str) -> None:
        """Report what goes on, unless that was reported within the last minute."""
        if self.clock() - max(self.reported_at_s, self.began_s) >= REPORT_EVERY_S:
            self.reported_at_s = self.clock()
            self.on_message(f"{doing}: {self.elapsed}")
