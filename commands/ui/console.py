"""Shows a run on stderr while it goes on: a live display in a terminal, plain lines elsewhere.

Results never go through here; they belong to stdout.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TextIO

from commands.ui.nodes import each_node
from commands.ui.output import clean, write_line
from commands.ui.snapshot import RunSnapshot, take_snapshot
from infra.run import actions as act
from infra.run.budget import Bill
from infra.run.context import TurnReport
from infra.run.state import Refusal, RunState

PLAIN_EVERY_S = 15.0
TRANSFER_SHOWN_BYTES = 1 << 20
LATE_H = 0.25
"""Hours. A stop seen while watching is dated back by less: the sum shown then just stays."""


class Console(Protocol):
    """Where a command shows what it is doing."""

    def log(self, text: str) -> None:
        """Print one line."""
        ...

    def report(self, report: TurnReport) -> None:
        """Show the state of the run."""
        ...

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how far a transfer is, in bytes."""
        ...

    def close(self) -> None:
        """Give the terminal back as it was."""
        ...


class PlainConsole:
    """Prints one line per change, and one now and then in between: for logs, CI and pipes.

    With `wall`, lines begin with the time of day that it returns.
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
        self._last: dict[int | None, str] = {}
        """The phase that was printed last, of each machine where there are several."""
        self._last_s = 0.0
        self._transfer = ""

    def log(self, text: str) -> None:
        """Print the line; one that stands apart, after an empty one, gets no time."""
        apart = text.startswith("\n")
        at = time.strftime("%H:%M:%S ", self._wall()) if self._wall and not apart else ""
        write_line(self._stream, at + text)

    def report(self, report: TurnReport) -> None:
        """Print the phase when it changes, and a progress line every quarter of a minute."""
        shown = take_snapshot(report, simulated=self._simulated, own=self._own)
        due = shown.leads and self._clock() - self._last_s >= PLAIN_EVERY_S
        if shown.phase != self._last.get(shown.node, "") or due:
            self._last[shown.node] = shown.phase
            if shown.leads:
                self._last_s = self._clock()
            self.log(shown.line)

    def progress(self, what: str, done: int, total: int) -> None:
        """Print once that a large transfer is complete."""
        if total >= TRANSFER_SHOWN_BYTES and done >= total and self._transfer != what:
            self._transfer = what
            self.log(f"{what}: {total / 1e6:.1f} MB transferred")

    def close(self) -> None:
        """Do nothing: plain lines leave nothing behind."""


class LiveConsole:
    """Prints milestones above a live part, which is redrawn in place."""

    def __init__(self, *, simulated: bool, own: bool = False) -> None:
        from rich.console import Console as RichConsole
        from rich.live import Live

        self._console = RichConsole(stderr=True, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._simulated = simulated
        self._own = own
        self._phases: dict[int | None, str] = {}
        """The milestone that was printed last, of each machine where there are several."""
        self._panel: Any = None
        """The part that is drawn, where there are several machines; a transfer stands below it."""
        self._started = False

    def log(self, text: str) -> None:
        """Print the line above the live part."""
        self._console.print(clean(text), markup=False, emoji=False)

    def report(self, report: TurnReport) -> None:
        """Redraw; print milestones above."""
        shown = take_snapshot(report, simulated=self._simulated, own=self._own)
        milestone = not isinstance(report.action, act.Wait)
        if milestone and shown.phase != self._phases.get(shown.node, ""):
            self._phases[shown.node] = shown.phase
            self.log(f"• {shown.milestone}")
        if shown.leads:
            self._panel = _panel(shown) if shown.nodes else None
            self._draw(_panel(shown))

    def progress(self, what: str, done: int, total: int) -> None:
        """Draw a bar for a transfer that is worth one."""
        if total < TRANSFER_SHOWN_BYTES:
            return
        if self._panel is None:
            self._draw(_transfer(what, done, total))
        else:  # a transfer to one machine hides nothing of the others
            self._draw(_below(self._panel, _transfer(what, done, total)))

    def close(self) -> None:
        """Remove the live part."""
        if self._started:
            self._live.stop()

    def _draw(self, renderable: Any) -> None:
        if not self._started:
            self._live.start()
            self._started = True
        self._live.update(renderable)


@dataclass
class _Shown:
    """What was printed of one machine."""

    refusals: set[Refusal]
    safeguards_s: float
    machine: str

    @classmethod
    def of(cls, state: RunState) -> _Shown:
        """Count everything that is known of a machine as printed, by an earlier process."""
        return cls(
            refusals=set(state.refusals),
            safeguards_s=state.safeguards_set_at_s,
            machine=state.vm.id if state.vm else "",
        )


@dataclass
class AnnouncingConsole:
    """A console that also prints refusals, warnings and what ends the bill, each once.

    What an earlier process printed is not printed again.
    """

    console: Console
    most: str = ""
    """The most that the run can cost, in words; empty if nothing limits it."""
    _shown: dict[int, _Shown] = field(default_factory=dict)
    """What was printed of each machine."""
    _warnings: dict[int | None, str] = field(default_factory=dict)
    _began: bool = False
    _most_shown: bool = False
    _shown_usd: float = 0.0
    _usd_per_h_max: float = 0.0

    def log(self, text: str) -> None:
        """Print a line."""
        self.console.log(text)

    def report(self, report: TurnReport) -> None:
        """Print what is new since the last report, then show the state of the run."""
        nodes = each_node(report.state)
        several = len(nodes) > 1
        for node, state in enumerate(nodes):
            if node not in self._shown:
                before = state if not self._began else RunState()
                self._shown[node] = _Shown.of(before)
            self._show_new(f"node {node}: " * several, self._shown[node], state)
        self._began = True
        self._show_warning(report.node if several else None, report.warning)
        self._show_safeguards(nodes)
        self.console.report(replace(report, bill=self._never_falling(report.bill)))

    def _show_new(self, of: str, shown: _Shown, state: RunState) -> None:
        """Print what of a new machine is not as the user asked, and new refusals."""
        if state.vm is not None and state.vm.id != shown.machine:
            shown.machine = state.vm.id
            if state.vm.note:
                self.log(f"{of}note: {state.vm.note}")
        for one in state.refusals:
            if one not in shown.refusals:
                self.log(f"{of}refused: {one.size} in {one.place}: {one}")
        shown.refusals |= set(state.refusals)

    def _show_warning(self, node: int | None, warning: str) -> None:
        """Print a warning when it is new, and that it is over; what stands for all, once."""
        before = self._warnings.get(node, "")
        self._warnings[node] = warning
        others = [one for other, one in self._warnings.items() if other != node]
        of = "" if node is None else f"node {node}: "
        if warning and warning != before and warning not in others:
            self.log(f"{of}warning: {warning}")
        elif before and not warning and before not in others:
            self.log(f"{of}signed in again")

    def _show_safeguards(self, nodes: Sequence[RunState]) -> None:
        """Print what ends the bill of a machine without us, each time that it was set anew."""
        several = len(nodes) > 1
        for node, state in enumerate(nodes):
            shown, of = self._shown[node], f"node {node}: " * several
            if state.safeguards_set_at_s <= shown.safeguards_s:
                continue
            shown.safeguards_s = state.safeguards_set_at_s
            for safeguard in state.safeguards:
                self.log(f"{of}ends the bill: {safeguard}")
            for safeguard in state.safeguards_missing:
                self.log(f"{of}does NOT end the bill: {safeguard}")
            if self.most and not (several and self._most_shown):
                self.log(f"worst case of the whole run: {self.most}")
                self._most_shown = True

    def _never_falling(self, used: Bill) -> Bill:
        """Return the bill with a sum that a late observation does not lower by a little.

        A machine that was seen down bills no more from a moment before. After hours without an
        observation it may be hours before: that is printed, and the true sum is shown again.
        """
        self._usd_per_h_max = max(self._usd_per_h_max, used.usd_per_h_now)
        before = self._shown_usd
        if before - used.usd > LATE_H * self._usd_per_h_max:
            self.log(f"the cost is ${used.usd:.4f}, not ${before:.4f}: it was down for a while")
            before = 0.0
        self._shown_usd = max(before, used.usd)
        return replace(used, usd=self._shown_usd)

    def progress(self, what: str, done: int, total: int) -> None:
        """Show a transfer."""
        self.console.progress(what, done, total)

    def close(self) -> None:
        """Give the terminal back."""
        self.console.close()


def _panel(shown: RunSnapshot) -> Any:
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
    first = Text.assemble((shown.milestone, "bold"), "  " if learning else "", " · ".join(learning))
    kept = [f"step {shown.home_step} is safe at home"] if shown.home_step else []
    parts = [first, bar] if shown.steps else [first]
    return Group(
        *parts,
        Text(" · ".join(filter(None, [shown.inexact, shown.money, *shown.survived, *kept]))),
        *(Text(one, style="dim") for one in shown.nodes),
    )


def _below(panel: Any, transfer: Any) -> Any:
    from rich.console import Group

    return Group(panel, transfer)


def duration_of(shown: RunSnapshot) -> str:
    """Return the time left in words; empty when unknown."""
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
    """Make the console that fits where stderr goes; `own` if nothing is rented."""
    if plain or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return PlainConsole(sys.stderr, simulated=simulated, clock=clock, wall=wall, own=own)
    return LiveConsole(simulated=simulated, own=own)
