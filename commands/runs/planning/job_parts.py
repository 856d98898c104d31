"""The parts of a job in hours, each from what is known of it and a rate with its source; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from commands.runs.planning.job_estimate import JobPart
from trainer.estimate.span import NOTHING, Span

HOUR_S = 3600.0
MINUTE_H = 1 / 60

RENT_H = Span(low=1.5, likely=3.0, high=10.0) * MINUTE_H
RENT_SOURCE = "assumed: a machine on Azure answers after 2 to 6 min (skypilot#3695, 2024)"
SET_UP_H = Span(low=3.0, likely=6.0, high=14.0) * MINUTE_H
SET_UP_SOURCE = (
    "our own: 3 GB of packages, 12 min on two busy cores (docs/benchmarks.md, 2026-11-22)"
)
DRIVER_H = Span(low=5.0, likely=10.0, high=15.0) * MINUTE_H
DRIVER_SOURCE = "a vGPU driver takes 12 min on an A10 (skypilot#3718, 2024)"
UPLOAD_BYTES_PER_S = Span(low=1e6, likely=4e6, high=30e6)
UPLOAD_SOURCE = "assumed: 8 to 240 Mbit/s from here"
DOWNLOAD_BYTES_PER_S = Span(low=40e6, likely=120e6, high=400e6)
DOWNLOAD_SOURCE = "assumed: 40 to 400 MB/s from the hub"
READ_BYTES_PER_S = Span(low=100e6, likely=300e6, high=1000e6)
FETCH_H = Span(low=0.3, likely=1.0, high=4.0) * MINUTE_H


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What decides how long a machine takes beside the work itself."""

    rented: bool = True
    installs_driver: bool = False
    evicted_per_h: Span = NOTHING
    """Expected number of evictions in an hour of machine time."""
    evictions: int = 0
    """Those that are rehearsed, beside the expected ones."""


def at_rate(amount: float, per_s: Span) -> Span:
    """Return the hours that an amount takes; the low rate gives the high end."""
    return Span(
        low=amount / per_s.high / HOUR_S,
        likely=amount / per_s.likely / HOUR_S,
        high=amount / per_s.low / HOUR_S,
    )


def rent_part(machine: Machine) -> JobPart:
    """Return the time from asking for a machine until it answers."""
    return JobPart(name="rent", hours=RENT_H, source=RENT_SOURCE, billed=machine.rented)


def set_up_part(machine: Machine) -> JobPart:
    """Return the time to install what a training needs."""
    if machine.installs_driver:
        source = f"{SET_UP_SOURCE}; {DRIVER_SOURCE}"
        return JobPart(
            name="set-up", hours=SET_UP_H + DRIVER_H, source=source, billed=machine.rented
        )
    return JobPart(name="set-up", hours=SET_UP_H, source=SET_UP_SOURCE, billed=machine.rented)


def evictions_part(parts: Sequence[JobPart], machine: Machine, *, redone: Span) -> JobPart:
    """Return what evictions are expected to cost: new set-ups, and work done again.

    Each one takes a machine anew, sets it up and loads the base, and redoes `redone`; their number
    follows from the hours of `parts` in which a machine is there.
    """
    there = sum((part.hours for part in parts), NOTHING)
    again = [part.hours for part in parts if part.name in {"rent", "set-up", "load"}]
    each = sum(again, redone)
    number = Span(
        low=there.low * machine.evicted_per_h.low + machine.evictions,
        likely=there.likely * machine.evicted_per_h.likely + machine.evictions,
        high=there.high * machine.evicted_per_h.high + machine.evictions,
    )
    return JobPart(
        name="evictions",
        hours=Span(
            low=number.low * each.low,
            likely=number.likely * each.likely,
            high=number.high * each.high,
        ),
        source=f"{number.likely:.1f} expected from the published band",
        billed=machine.rented,
    )
