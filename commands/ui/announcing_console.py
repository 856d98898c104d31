"""Refusals and switches are told when they happen, not only in the journal or at the end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from commands.ui.console import Console
from infra.run.budget import Bill
from infra.run.context import TurnReport
from infra.run.state import Refusal

LATE_H = 0.25
"""A stop is dated back by less than this when somebody watched: what that took off is held."""


@dataclass
class Aloud:
    """A console that also says why the cloud refused a place, and what ends the bill from now on.

    What an earlier process was told already is not said again.
    """

    console: Console
    most: str = ""
    """The most that the run can cost, in words; empty if nothing limits it."""
    _told: set[Refusal] | None = None
    _guarded_s: float = field(default=0.0)
    _warning: str = ""
    _shown_usd: float = 0.0
    _dearest_usd_per_h: float = 0.0

    def log(self, text: str) -> None:
        """Print a line."""
        self.console.log(text)

    def report(self, report: TurnReport) -> None:
        """Tell what is new since the last report, then what is being done."""
        failures = set(report.state.refusals)
        if self._told is None:
            self._told, self._guarded_s = failures, report.state.safeguards_set_at_s
        for one in report.state.refusals:
            if one not in self._told:
                self.log(f"refused: {one.size} in {one.place}: {one}")
        self._told |= failures
        if report.warning != self._warning:
            self.log(f"warning: {report.warning}" if report.warning else "signed in again")
            self._warning = report.warning
        if report.state.safeguards_set_at_s > self._guarded_s:
            self._guarded_s = report.state.safeguards_set_at_s
            for switch in report.state.safeguards:
                self.log(f"ends the bill: {switch}")
            for switch in report.state.safeguards_missing:
                self.log(f"does NOT end the bill: {switch}")
            if self.most:
                self.log(f"worst case of the whole run: {self.most}")
        self.console.report(replace(report, bill=self._steady(report.bill)))

    def _steady(self, used: Bill) -> Bill:
        """The bill with a sum that does not run backwards before people's eyes.

        A machine that was seen down bills no more from a moment before. After hours without news it
        may be hours before: that is told, and the sum is the true one again.
        """
        self._dearest_usd_per_h = max(self._dearest_usd_per_h, used.usd_per_h_now)
        before = self._shown_usd
        if before - used.usd > LATE_H * self._dearest_usd_per_h:
            self.log(f"the cost is ${used.usd:.4f}, not ${before:.4f}: it was down for a while")
            before = 0.0
        self._shown_usd = max(before, used.usd)
        return replace(used, usd=self._shown_usd)

    def progress(self, what: str, done: int, total: int) -> None:
        """Show a transfer."""
        self.console.progress(what, done, total)

    def close(self) -> None:
        """Let go of the terminal."""
        self.console.close()
