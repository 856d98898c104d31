"""Draws what a run's machines did from the first request to the release, with the dollars under it.

The strip is to scale but for long times in which nothing computed: those are drawn broken. Widths
are shares of the page and texts keep their size, so that it is readable on a phone as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from trainer.pages import html
from trainer.pages.timeline_lanes import Lane, begin_evictions, lay_out_lanes
from trainer.pages.timeline_layout import NAMES, Box, Stretch, lay_out, read_stretches
from trainer.text import HOUR_S, MINUTE_S, duration
from trainer.untrusted import table

DAY_S = 24 * HOUR_S
LISTED_MAX = 200
"""Rows of the folded table; a run with more has been evicted forty times."""
TICKS = (0.0, 100 / 3, 200 / 3, 100.0)
APART = 20.0
"""Percent between two labels; four of them fit a phone."""
TOP, BAR, HIGH = 18, 30, 88
LABEL = 14
"""The line above a lane with the number of its node; only where a run has several machines."""
MARKS_APART = 3.0
LEAST_USD = 0.0001

LOOKS = {
    **dict.fromkeys(("rent", "fetch", "release"), "pale"),
    **dict.fromkeys(("set-up", "send"), "mid"),
    **dict.fromkeys(("idle", "stopped"), "hatched"),
    **dict.fromkeys(("wait", "released"), "hollow"),
    "load": "full",
    "train": "fa",
    "score": "fc",
    "evicted": "fb",
}
"""Their classes in the style of the page."""


def timeline_parts(facts: Mapping[str, Any]) -> list[Markup]:
    """Return the parts of the section; none if the facts of a run have no timeline.

    Raises `ValueError` for a timeline that is not as `commands/runs/timeline.py` makes it.
    """
    found = table(facts.get("timeline"))
    stretches = read_stretches(found)
    if not stretches:
        return []
    own = found.get("own") is True
    if len({one.node for one in stretches}) > 1 and any(one.seconds for one in stretches):
        return _of_several(facts, stretches, own=own)
    boxes = lay_out(stretches)
    began = _clock(stretches[0].begin_s)
    note = f"From {began} UTC. {_price_note(facts, own=own)}"
    if any(box.broken for box in boxes):
        note += " Long times without a computing machine are drawn broken, not to scale."
    return [
        _strip(boxes, own=own),
        html.paragraph(note),
        _sums(stretches, own=own),
        _all(stretches, own=own),
    ]


def _of_several(
    facts: Mapping[str, Any], stretches: Sequence[Stretch], *, own: bool
) -> list[Markup]:
    """Return the parts of the section for a run with several machines at a time."""
    ordered = sorted(stretches, key=lambda one: (one.begin_s, one.node))
    axis, lanes = lay_out_lanes(stretches)
    note = f"From {_clock(ordered[0].begin_s)} UTC. {_price_note(facts, own=own)}"
    note += "" if own else " Those below the lanes are of all machines together."
    if any(box.broken for box in axis):
        note += " Long times without a computing machine are drawn broken, not to scale."
    return [
        _lanes(axis, lanes, own=own),
        html.paragraph(note),
        _by_node(stretches, own=own),
        _sums(stretches, own=own),
        _all(ordered, own=own),
    ]


def _lanes(axis: Sequence[Box], lanes: Sequence[Lane], *, own: bool) -> Markup:
    """Draw a lane for each machine on one time axis, and times and dollars of all below."""
    name = "What each machine did, over time" + ("" if own else ", with the cost of all")
    parts: list[Markup] = [HATCH]
    each = LABEL + TOP + BAR
    for row, lane in enumerate(lanes):
        begins = begin_evictions([box.stretch for box in lane.boxes])
        drawn = [
            Markup('<text x="0%" y="{}" text-anchor="start">node {}</text>').format(
                LABEL - 3, lane.node
            ),
            Markup('<svg y="{}" width="100%" height="{}" overflow="visible">').format(
                LABEL, TOP + BAR
            ),
            *(_box(box, own=own) for box in lane.boxes),
            *_marks([box for box, is_first in zip(lane.boxes, begins, strict=True) if is_first]),
            Markup("</svg>"),
        ]
        parts.append(
            Markup('<svg y="{}" width="100%" height="{}" overflow="visible">{}</svg>').format(
                row * each, each, Markup("").join(drawn)
            )
        )
    below = len(lanes) * each - TOP - BAR
    ticks = Markup("").join(_ticks(axis, own=own))
    parts.append(
        Markup('<svg y="{}" width="100%" height="{}" overflow="visible">{}</svg>').format(
            below, HIGH, ticks
        )
    )
    return Markup(
        '<figure><svg role="img" aria-label="{}" width="100%" height="{}">'
        '<title>{}</title><g class="strip">{}</g></svg></figure>'
    ).format(name, below + HIGH, name, Markup("").join(parts))


def _by_node(stretches: Sequence[Stretch], *, own: bool) -> Markup:
    """Return what each machine billed, and how often it was evicted."""
    rows = []
    for node in sorted({one.node for one in stretches}):
        mine = [one for one in stretches if one.node == node]
        evictions = sum(begin_evictions(mine))
        cells = [f"node {node}", _long(sum(one.seconds for one in mine if one.compute))]
        cells += [str(evictions)] + ([] if own else [dollars(sum(one.usd for one in mine))])
        rows.append(_row(cells))
    return _table(["", "machine time", "evictions"] + ["dollars"] * (not own), rows)


def _strip(boxes: Sequence[Box], *, own: bool) -> Markup:
    """Draw the strip with marks at evictions above it, and times and dollars below."""
    name = "What the machine did, over time" + ("" if own else ", with its cost")
    parts: list[Markup] = [HATCH]
    parts += [_box(box, own=own) for box in boxes]
    parts += list(_marks(boxes))
    parts += list(_ticks(boxes, own=own))
    return Markup(
        '<figure><svg class="strip" role="img" aria-label="{}" width="100%" height="{}">'
        "<title>{}</title>{}</svg></figure>"
    ).format(name, HIGH, name, Markup("").join(parts))


HATCH = Markup(
    '<defs><pattern id="strip-hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><rect class="fb" width="2.5" height="6"></rect>'
    "</pattern></defs>"
)
"""The pattern of times that cost money and bring nothing."""


def _box(box: Box, *, own: bool) -> Markup:
    one = box.stretch
    words = f"{NAMES[one.activity]}: {_long(one.seconds)}"
    words += f", machine {one.machine}" if one.machine else ""
    words += "" if own else f", {dollars(one.usd)}"
    if box.broken:
        middle = TOP + BAR / 2
        return Markup(
            '<svg x="{}%" y="0" width="{}%" height="{}" overflow="visible"><title>{}</title>'
            '<line class="event" x1="0" x2="100%" y1="{}" y2="{}"></line>'
            '<svg x="50%" y="{}" overflow="visible"><path class="break" '
            'd="M-6 6 l5 -12 M1 6 l5 -12"></path></svg></svg>'
        ).format(_share(box.left), _share(box.width), HIGH, words, middle, middle, middle)
    return Markup(
        '<rect class="{}" x="{}%" y="{}" width="{}%" height="{}"><title>{}</title></rect>'
    ).format(LOOKS[one.activity], _share(box.left), TOP, _share(box.width), BAR, words)


def _marks(boxes: Sequence[Box]) -> Iterator[Markup]:
    """Yield a mark above each eviction; where they are too dense to be told apart, fewer."""
    last = -MARKS_APART
    for box in boxes:
        if box.stretch.activity == "evicted" and box.left - last >= MARKS_APART:
            last = box.left
            yield Markup('<text class="mark" x="{}%" y="{}" text-anchor="middle">▼</text>').format(
                _share(min(max(box.left, 1.5), 98.5)), TOP - 5
            )


def _ticks(boxes: Sequence[Box], *, own: bool) -> Iterator[Markup]:
    """Yield the time since the beginning at a few places, and under it the dollars until then."""
    last = -APART
    for tick in TICKS:
        at, passed_s, usd = _values_at(boxes, tick)
        if at - last < APART:
            continue
        last = at
        anchor = "start" if at < 1 else "end" if at > 99 else "middle"
        yield Markup('<text x="{}%" y="{}" text-anchor="{}">{}</text>').format(
            _share(at), TOP + BAR + 17, anchor, _short(passed_s)
        )
        if not own:
            yield Markup('<text class="usd" x="{}%" y="{}" text-anchor="{}">{}</text>').format(
                _share(at), TOP + BAR + 34, anchor, dollars(usd)
            )


def _values_at(boxes: Sequence[Box], at: float) -> tuple[float, float, float]:
    """Return a place in percent, the seconds passed there and the dollars until then.

    Inside a broken stretch there is no scale: its beginning stands for it.
    """
    first_s = boxes[0].stretch.begin_s
    box = next((one for one in boxes if at < one.left + one.width), boxes[-1])
    share = min(1.0, (at - box.left) / box.width) if box.width else 0.0
    if box.broken and share < 1:
        at, share = box.left, 0.0
    one = box.stretch
    passed_s = max(0.0, one.begin_s + share * one.seconds - first_s)
    return at, passed_s, box.usd_before + share * one.usd


def _sums(stretches: Sequence[Stretch], *, own: bool) -> Markup:
    """Return the time and the dollars of each activity, which is the legend, too."""
    rows = []
    for activity, words in NAMES.items():
        mine = [one for one in stretches if one.activity == activity]
        if mine:
            sums = [_long(sum(one.seconds for one in mine))]
            sums += [] if own else [dollars(sum(one.usd for one in mine))]
            rows.append(_row([_swatch(activity, words), *sums]))
    billed = [_long(sum(one.seconds for one in stretches if one.compute))]
    billed += [] if own else [dollars(sum(one.usd for one in stretches))]
    rows.append(_row(["machine time" if own else "machine time, and all dollars", *billed]))
    return _table(["", "time"] + ["dollars"] * (not own), rows)


def _swatch(activity: str, words: str) -> Markup:
    return Markup(
        '<svg class="swatch" width="12" height="12" aria-hidden="true">'
        '<rect class="{}" width="12" height="12"></rect></svg> {}'
    ).format(LOOKS[activity], words)


def _all(stretches: Sequence[Stretch], *, own: bool) -> Markup:
    """Return every stretch in a folded table."""
    several = len({one.node for one in stretches}) > 1
    rows = [
        _row(
            [
                _clock(one.begin_s),
                NAMES[one.activity],
                *([str(one.node)] if several else []),
                str(one.machine or ""),
                _long(one.seconds),
                *([] if own else [dollars(one.usd)]),
            ]
        )
        for one in stretches[:LISTED_MAX]
    ]
    more = len(stretches) - LISTED_MAX
    rest = html.paragraph(f"{more:,} more are in report.json.") if more > 0 else ""
    head = ["from (UTC)", "what", *["node"] * several, "machine", "time"]
    head += ["dollars"] * (not own)
    return Markup("<details><summary>{} spans, one by one</summary>{}{}</details>").format(
        len(stretches), _table(head, rows), rest
    )


def _table(head: Sequence[str], rows: Iterable[Markup]) -> Markup:
    heads = Markup("").join(Markup("<th>{}</th>").format(word) for word in head)
    return Markup(
        '<div class="wide"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(heads, Markup("").join(rows))


def _row(cells: Iterable[str]) -> Markup:
    return Markup("<tr>{}</tr>").format(
        Markup("").join(Markup("<td>{}</td>").format(cell) for cell in cells)
    )


def _price_note(facts: Mapping[str, Any], *, own: bool) -> str:
    if own:
        return "The machine is the user's own: it costs nothing here."
    if facts.get("listed"):
        return "Dollars are at the listed spot price; nobody was charged."
    return "Dollars are those of the bill: compute, and the disk, which bills at all times."


def dollars(usd: float) -> str:
    """Return an amount as people read it: cents from ten cents on, smaller ones exactly."""
    if 0 < usd < LEAST_USD:
        return f"< ${LEAST_USD}"
    return f"${usd:,.2f}" if usd >= 0.1 or usd == 0 else f"${usd:.4f}"


def _clock(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")


def _long(seconds: float) -> str:
    """Return a time as it stands in a table, on one line; days where there are any."""
    if seconds >= 2 * DAY_S:
        words = f"{seconds // DAY_S:.0f} d {seconds % DAY_S // HOUR_S:.0f} h"
    else:
        words = f"{seconds:.1f} s" if seconds < 10 else duration(seconds)
    return words.replace(" ", "\u00a0")


def _short(seconds: float) -> str:
    """Return a time as it stands under the strip."""
    if seconds < 2 * MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR_S:
        return f"{seconds / MINUTE_S:.0f} min"
    if seconds < 2 * DAY_S:
        return f"{seconds / HOUR_S:.1f} h"
    return f"{seconds / DAY_S:.1f} d"


def _share(percent: float) -> str:
    return f"{percent:.2f}"
