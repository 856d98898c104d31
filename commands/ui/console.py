"""Talks to the person on stderr: a live line where there is a terminal, plain lines elsewhere.

Data never goes through here; it belongs to stdout.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from commands.ui.output import clean, write_line
from commands.ui.snapshot import View, view
from infra.run import actions as act
from infra.run.context import TurnReport

PLAIN_EVERY_S = 15.0
TRANSFER_WORTH_TELLING = 1 << 20


class Console(Protocol):
    """Where a command says what it is doing."""

    def log(self, text: str) -> None:
        """Say one line."""
        ...

    def report(self, report: TurnReport) -> None:
        """Show the state of the run."""
        ...

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how far a transfer is, in bytes."""
        ...

    def close(self) -> None:
        """Leave the terminal tidy."""
        ...


class PlainConsole:
    """One line per change, and one now and then while nothing changes: logs, CI, pipes.

    With `wall`, lines begin with the time of day that it tells.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        simulated: bool,
        clock: Callable[[], float],
        wall: Callable[[], time.struct_time] | None = None,
        own: bool = False,
    ) -> None:
        self._stream = stream
        self._own = own
        self._wall = wall
        self._simulated = simulated
        self._clock = clock
        self._last = ""
        self._last_s = 0.0
        self._transfer = ""

    def log(self, text: str) -> None:
        """Print the line; one that stands apart, after an empty one, gets no time."""
        apart = text.startswith("\n")
        at = time.strftime("%H:%M:%S ", self._wall()) if self._wall and not apart else ""
        write_line(self._stream, at + text)

    def report(self, report: TurnReport) -> None:
        """Print the phase when it changes, and a progress line every quarter of a minute."""
        shown = view(report, simulated=self._simulated, own=self._own)
        due = self._clock() - self._last_s >= PLAIN_EVERY_S
        if shown.phase != self._last or due:
            self._last, self._last_s = shown.phase, self._clock()
            self.log(shown.line)

    def progress(self, what: str, done: int, total: int) -> None:
        """Print once that a large transfer is complete."""
        if total >= TRANSFER_WORTH_TELLING and done >= total and self._transfer != what:
            self._transfer = what
            self.log(f"{what}: {total / 1e6:.1f} MB transferred")

    def close(self) -> None:
        """Nothing to tidy."""


class LiveConsole:
    """Milestones scroll by; the last lines stay in place and move."""

    def __init__(self, *, simulated: bool, own: bool = False) -> None:
        from rich.console import Console as RichConsole
        from rich.live import Live

        self._console = RichConsole(stderr=True, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._simulated = simulated
        self._own = own
        self._phase = ""
        self._started = False

    def log(self, text: str) -> None:
        """Print the line above the live part."""
        self._console.print(clean(text), markup=False, emoji=False)

    def report(self, report: TurnReport) -> None:
        """Redraw; print milestones above."""
        shown = view(report, simulated=self._simulated, own=self._own)
        milestone = not isinstance(report.action, act.Wait)
        if milestone and shown.phase != self._phase:
            self._phase = shown.phase
            self.log(f"• {shown.phase}")
        self._draw(_panel(shown))

    def progress(self, what: str, done: int, total: int) -> None:
        """Draw a bar for a transfer that is worth one."""
        if total >= TRANSFER_WORTH_TELLING:
            self._draw(_transfer(what, done, total))

    def close(self) -> None:
        """Remove the live part."""
        if self._started:
            self._live.stop()

    def _draw(self, renderable: Any) -> None:
        if not self._started:
            self._live.start()
            self._started = True
        self._live.update(renderable)


def _panel(shown: View) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bar = Table.grid(padding=(0, 1))
    if shown.steps:
        left = f"{duration_of(shown)}"
        bar.add_row(
            ProgressBar(total=shown.steps, completed=shown.step, width=32),
            Text(f"{shown.step}/{shown.steps}"),
            Text(left),
        )
    learning = []
    if shown.loss is not None:
        learning.append(f"loss {shown.loss:.3f}")
    if shown.tokens_per_s:
        learning.append(f"{shown.tokens_per_s:.0f} tokens/s")
    first = Text.assemble((shown.phase, "bold"), "  " if learning else "", " · ".join(learning))
    kept = [f"step {shown.home_step} is safe at home"] if shown.home_step else []
    parts = [first, bar] if shown.steps else [first]
    return Group(
        *parts, Text(" · ".join(filter(None, [shown.inexact, shown.money, *shown.survived, *kept])))
    )


def duration_of(shown: View) -> str:
    """The time left in words; empty when unknown."""
    from trainer.text import duration

    if shown.eta_s is None or shown.step >= shown.steps:
        return ""
    return f"{duration(shown.eta_s)} left"


def _transfer(what: str, done: int, total: int) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 1))
    row.add_row(
        Text(what),
        ProgressBar(total=total, completed=done, width=32),
        Text(f"{done / 1e6:.1f}/{total / 1e6:.1f} MB"),
    )
    return row


def make_console(
    *,
    simulated: bool,
    plain: bool,
    clock: Callable[[], float],
    wall: Callable[[], time.struct_time] = time.localtime,
    own: bool = False,
) -> Console:
    """The console that fits where stderr goes; `own` if nothing is rented."""
    if plain or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return PlainConsole(sys.stderr, simulated=simulated, clock=clock, wall=wall, own=own)
    return LiveConsole(simulated=simulated, own=own)
