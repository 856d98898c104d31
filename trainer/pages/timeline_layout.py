"""Reads the timeline of a run from its facts, checked, and works out where each time is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.untrusted import number, table, whole

TIME_S_MAX = 253402300799.0
"""The last second of the year 9999."""
SPANS_MAX = 100_000
NODE_MAX = 999
DRAWN_MAX = 300
BROKEN_SHARE, LEAST_SHARE = 6.0, 0.4
"""Percent of the strip that a broken time gets, and that any other gets at least."""
BROKEN_FACTOR = 0.5
"""A time without compute that is longer than this share of all compute is drawn broken."""

NAMES = {
    "rent": "rented, booting",
    "set-up": "set-up",
    "send": "sending files",
    "load": "loading the base",
    "score": "scoring",
    "train": "training",
    "idle": "idle, billed",
    "fetch": "fetching results",
    "release": "being released",
    "evicted": "evicted",
    "stopped": "stopped",
    "wait": "waiting for a machine",
    "released": "released",
}
"""The activities of `commands/runs/timeline.py` in words, in the order of the table."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A stretch of time with one activity, checked; seconds since 1970, and dollars."""

    activity: str
    begin_s: float
    end_s: float
    machine: int
    compute: bool
    usd: float
    node: int = 0
    """Which of several machines that a run has at a time; 0 where it has one."""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end_s - self.begin_s


@dataclass(frozen=True, kw_only=True)
class Box:
    """A stretch in the drawing: where it begins and how wide it is, in percent of the strip."""

    stretch: Stretch
    left: float
    width: float
    broken: bool
    usd_before: float
    """What everything before it cost."""


def read_stretches(found: Mapping[str, Any]) -> list[Stretch]:
    """Return the checked spans of a timeline, oldest first; raises `ValueError` for others."""
    spans = found.get("spans") or []
    if not isinstance(spans, list) or len(spans) > SPANS_MAX:
        raise ValueError("the timeline is no list of spans")
    return [_read_stretch(table(span)) for span in spans]


def _read_stretch(span: Mapping[str, Any]) -> Stretch:
    activity, machine = span.get("activity"), whole(span.get("machine"), most=10**6)
    begin_s, end_s = (number(span.get(key), most=TIME_S_MAX) for key in ("begin_s", "end_s"))
    usd, node = number(span.get("usd"), most=1e9), whole(span.get("node", 0), most=NODE_MAX)
    if node is None:
        raise ValueError("a span of the timeline has a `node` that is none")
    if not isinstance(activity, str) or activity not in NAMES or machine is None:
        raise ValueError("a span of the timeline has no activity or no machine")
    if begin_s is None or end_s is None or usd is None or end_s < begin_s or usd < 0:
        raise ValueError("a span of the timeline has no times or no dollars")
    return Stretch(
        activity=activity,
        begin_s=begin_s,
        end_s=end_s,
        machine=machine,
        compute=span.get("compute") is True,
        usd=usd,
        node=node,
    )


def lay_out(stretches: Sequence[Stretch]) -> list[Box]:
    """Return where each stretch is drawn, side by side from 0 to 100 percent.

    Very short ones are widened to be seen; of very many, short neighbours are drawn as one.
    """
    shown = _coarse(stretches)
    computed_s = sum(one.seconds for one in shown if one.compute)
    most_s = computed_s * BROKEN_FACTOR or float("inf")
    broken = [not one.compute and one.seconds > most_s for one in shown]
    scaled_s = sum(one.seconds for one, gap in zip(shown, broken, strict=True) if not gap)
    shares = [
        BROKEN_SHARE if gap else max(LEAST_SHARE, 100 * one.seconds / (scaled_s or 1.0))
        for one, gap in zip(shown, broken, strict=True)
    ]
    gaps = BROKEN_SHARE * sum(broken)
    free = max(100 - gaps, 50.0)
    room = sum(shares) - gaps or 1.0
    factors = [(100 - free) / gaps if gap else free / room for gap in broken]
    boxes: list[Box] = []
    left = usd = 0.0
    for one, gap, share, factor in zip(shown, broken, shares, factors, strict=True):
        width = share * factor
        boxes.append(Box(stretch=one, left=left, width=width, broken=gap, usd_before=usd))
        left, usd = left + width, usd + one.usd
    return boxes


def _coarse(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Join neighbours that are too short to be seen where there are very many."""
    if len(stretches) <= DRAWN_MAX:
        return list(stretches)
    least_s = sum(one.seconds for one in stretches) / DRAWN_MAX
    joined: list[Stretch] = []
    longest_s = 0.0
    for one in stretches:
        last = joined[-1] if joined else None
        if last and last.seconds + one.seconds <= least_s and last.compute == one.compute:
            longest_s, shown = max((longest_s, last), (one.seconds, one), key=lambda pair: pair[0])
            end_s, usd = last.end_s + one.seconds, last.usd + one.usd
            joined[-1] = replace(last, activity=shown.activity, end_s=end_s, usd=usd)
        else:
            joined.append(one)
            longest_s = one.seconds
    return joined
