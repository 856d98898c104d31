"""What a person watches makes sense from one line to the next."""

from __future__ import annotations

import io
import re

from commands.ui.console import AnnouncingConsole, PlainConsole
from infra.provider import Vm
from infra.run import actions as act
from infra.run.billing_spans import Span
from infra.run.budget import bill
from infra.run.context import TurnReport
from infra.run.decide import Seen
from infra.run.state import RunState

HOUR_S = 3600.0


def shown(*moments: tuple[float, float | None], usd_per_h: float) -> tuple[list[float], str]:
    """Watch a machine of that price; the sums that are shown, and all that is said.

    Each moment is a time, and since when the machine is known to be down by then.
    """
    stream = io.StringIO()
    console = AnnouncingConsole(PlainConsole(stream, simulated=False, clock=lambda: 0.0))
    for number, (now_s, down_s) in enumerate(moments):
        span = Span(start_s=0.0, end_s=down_s, usd_per_h=usd_per_h, compute=True)
        state = RunState(run_id="run-1", spans=(span,))
        wait = act.Wait(wait_s=1.0, reason=f"look {number}")
        console.report(
            TurnReport(state=state, seen=Seen(), action=wait, bill=bill(state, now_s), now_s=now_s)
        )
    printed = stream.getvalue()
    return [float(one) for one in re.findall(r"\$([\d.]+) so far", printed)], printed


def test_cost_so_far_never_steps_back_when_a_stop_is_dated_before_it_was_seen() -> None:
    """An eviction half a minute ago takes nothing off the sum on the screen, however dear it is."""
    sums, printed = shown((60.0, None), (90.0, None), (91.0, 60.0), (500.0, 60.0), usd_per_h=9.0)

    assert sums == [0.15, 0.225, 0.225, 0.225]
    assert "not $" not in printed


def test_hours_that_were_not_billed_are_taken_off_in_print() -> None:
    """A laptop that was offline over an eviction shows the true sum again, and says so."""
    away_s = 6 * HOUR_S

    sums, printed = shown((60.0, None), (away_s, None), (away_s + 1, 60.0), usd_per_h=0.36)

    assert sums == [0.006, 2.16, 0.006]
    assert "the cost is $0.0060, not $2.1600" in printed


def test_what_of_a_new_machine_is_not_the_one_wanted_is_printed_once() -> None:
    """A bigger disk is told when its machine is new, and not again by a later process."""
    words = "the disk has 75 GB instead of 30"
    vm = Vm(provider="aws", run_id="run-1", id="a/b/c", region="b", size="s", note=words)

    first = reported(RunState(run_id="run-1"), *[RunState(run_id="run-1", vm=vm)] * 2)
    later = reported(*[RunState(run_id="run-1", vm=vm)] * 2)

    assert first.count(f"note: {words}") == 1
    assert words not in later


def reported(*states: RunState) -> str:
    """All that is printed of some states of a run, one after the other."""
    stream = io.StringIO()
    console = AnnouncingConsole(PlainConsole(stream, simulated=False, clock=lambda: 0.0))
    for state in states:
        wait = act.Wait(wait_s=1.0, reason="look")
        console.report(
            TurnReport(state=state, seen=Seen(), action=wait, bill=bill(state, 0.0), now_s=0.0)
        )
    return stream.getvalue()
