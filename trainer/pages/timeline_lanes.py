"""Works out where the times of several machines are drawn: a lane for each, on one time axis; pure.

The axis is that of one machine (`trainer.pages.timeline_layout`): to scale but for long times in
which none of the machines computed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from trainer.pages.timeline_layout import Box, Stretch, lay_out


@dataclass(frozen=True, kw_only=True)
class Lane:
    """What one of the machines did, as it is drawn."""

    node: int
    boxes: list[Box]


def lay_out_lanes(stretches: Sequence[Stretch]) -> tuple[list[Box], list[Lane]]:
    """Return the time axis, with the dollars of all machines, and the lane of each on it."""
    axis = lay_out(_together(stretches))
    nodes = sorted({one.node for one in stretches})
    return axis, [
        Lane(node=node, boxes=_on_axis(axis, [one for one in stretches if one.node == node]))
        for node in nodes
    ]


def begin_evictions(stretches: Sequence[Stretch]) -> list[bool]:
    """Tell of each stretch of one machine whether an eviction begins with it.

    One that was evicted may be drawn in parts, such as before and after its disk was removed.
    """
    before = [None, *(one.activity for one in stretches)]
    return [
        one.activity == "evicted" and last != "evicted"
        for one, last in zip(stretches, before, strict=False)
    ]


def _together(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Return what all machines cost together, cut wherever one of them begins or ends something.

    Between two cuts the dollars run up evenly. Neighbours in which nothing computes are one.
    """
    starts = sorted(stretches, key=lambda one: one.begin_s)
    borders = sorted({at for one in stretches for at in (one.begin_s, one.end_s)})
    joined: list[Stretch] = []
    running: list[Stretch] = []
    index = 0
    for begin_s, end_s in pairwise(borders):
        while index < len(starts) and starts[index].begin_s <= begin_s:
            running.append(starts[index])
            index += 1
        running = [one for one in running if one.end_s > begin_s]
        compute = any(one.compute for one in running)
        usd = sum(one.usd * (end_s - begin_s) / one.seconds for one in running)
        last = joined[-1] if joined else None
        if last and not last.compute and not compute:
            joined[-1] = replace(last, end_s=end_s, usd=last.usd + usd)
            continue
        joined.append(
            Stretch(
                activity="train" if compute else "wait",
                begin_s=begin_s,
                end_s=end_s,
                machine=0,
                compute=compute,
                usd=usd,
            )
        )
    return joined


def _on_axis(axis: Sequence[Box], stretches: Sequence[Stretch]) -> list[Box]:
    """Return where the stretches of one machine are drawn; parts in a broken time are broken."""
    boxes: list[Box] = []
    usd = 0.0
    for one in stretches:
        for part, broken in _parts(axis, one):
            left, right = _percent(axis, part.begin_s), _percent(axis, part.end_s)
            boxes.append(
                Box(stretch=part, left=left, width=right - left, broken=broken, usd_before=usd)
            )
            usd += part.usd
    return boxes


def _parts(axis: Sequence[Box], one: Stretch) -> Iterator[tuple[Stretch, bool]]:
    """Yield a stretch cut where a broken time begins or ends, and whether each part is in one."""
    broken = [box.stretch for box in axis if box.broken]
    cuts = {at for gap in broken for at in (gap.begin_s, gap.end_s) if one.begin_s < at < one.end_s}
    borders = [one.begin_s, *sorted(cuts), one.end_s]
    for begin_s, end_s in pairwise(borders):
        if end_s > begin_s:
            share = (end_s - begin_s) / one.seconds
            part = replace(one, begin_s=begin_s, end_s=end_s, usd=one.usd * share)
            yield part, any(gap.begin_s <= begin_s and end_s <= gap.end_s for gap in broken)


def _percent(axis: Sequence[Box], at_s: float) -> float:
    """Return where a moment is on the axis."""
    index = bisect_right(axis, at_s, key=lambda box: box.stretch.begin_s) - 1
    box = axis[max(0, index)]
    share = (at_s - box.stretch.begin_s) / box.stretch.seconds if box.stretch.seconds else 0.0
    return box.left + box.width * min(1.0, max(0.0, share))
