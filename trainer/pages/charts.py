"""Draws charts that shrink to a phone: lines and bars as SVG that is stretched, words as HTML.

Words keep their size, whatever the width. Each chart carries its values for the page's script, and
some of them as a folded table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from trainer.pages import html
from trainer.pages.drawing import HIGH, LEAST, WIDE, Point, bar, drawn, line

TICKS = 6
"""About so many on an axis."""
POINTS_MAX = 999
"""Of a curve; of longer ones each stretch keeps its lowest, its highest and its last point."""
ROWS_MAX = 40
"""Of the table of a chart's numbers."""
FLAT = 1e-9  # a span below this share of its values is no span to draw
EVENTS_MAX = 200
"""Lines of events, or one more; those that are nearer to one another are drawn as one."""
EVENT_SHARE = 0.17
"""Of the width, which the word of an event takes up on a phone."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of a chart, by rising x; `style` is one of the page's classes a, b, c, d."""

    name: str
    points: Sequence[Point]
    style: str = "a"
    faint: bool = False


def line_plot(  # noqa: PLR0913 - what a chart has, all by name
    name: str,
    lines: Sequence[Line],
    *,
    x: str,
    y: str,
    events: Mapping[float, str] | None = None,
    x_ends: Sequence[float] = (),
    y_ends: Sequence[float] = (),
) -> Markup:
    """Plot curves over one another; `events` are dashed vertical lines with their words.

    The axes hold `x_ends` and `y_ends`, too.
    """
    points = [point for one in lines for point in one.points]
    if not points:
        return html.paragraph(f"{name}: nothing was recorded")
    events = events or {}
    frame = _Frame.around(
        [*x_ends, *events, *(at for at, _ in points)], [*y_ends, *(value for _, value in points)]
    )
    drawing, labels = _grid(frame)
    labels += _x_labels(frame)
    apart = {round(frame.right(at) / WIDE * EVENTS_MAX): at for at in sorted(events)}
    for at in apart.values():
        drawing += line("event", (frame.right(at), 0), (frame.right(at), HIGH))
    labels += _event_labels(frame, events)
    thin = [_thinned(one.points, POINTS_MAX) for one in lines]
    for one, kept in zip(lines, thin, strict=True):
        drawing += _curve(frame, one, kept)
    key = [(f"{one.style}{' faint' if one.faint else ''}", one.name) for one in lines]
    data = {
        "x": x,
        "from": frame.left,
        "to": frame.right_end,
        "lines": [
            {"name": one.name, "x": _short(kept, 0), "y": _short(kept, 1)}
            for one, kept in zip(lines, thin, strict=True)
        ],
    }
    return html.render(
        "chart", name, y, key if len(lines) > 1 else [], drawn(drawing), labels, x,
        _numbers(lines, x), html.embedded(data),
    )  # fmt: skip


def bar_plot(
    name: str, bars: Sequence[tuple[str, float]], *, x: str, y: str, diagonal: bool = False
) -> Markup:
    """Plot vertical bars, each with its label below; of many bars only some have one.

    With `diagonal` bars are shares from 0 to 1, and a line shows where they should end.
    """
    if not bars:
        return html.paragraph(f"{name}: there is nothing to show")
    top_value = [1.0] if diagonal else [value for _, value in bars]
    frame = _Frame.around([0, len(bars)], [0, *top_value])
    drawing, labels = _grid(frame)
    width = WIDE / len(bars)
    every = max(1, len(bars) // 10)
    for number, (word, value) in enumerate(bars):
        top = frame.up(value)
        left, right = (number + 0.06) * width, (number + 0.94) * width
        drawing += bar("fa", (left, top), (right, HIGH))
        if number % every == 0:
            minor = " minor" if number // every % 2 else ""
            labels.append((f"x{minor}", "left", _percent((number + 0.5) * width / WIDE), word))
    if diagonal:
        drawing += line("b", (0, frame.up(0)), (WIDE, frame.up(1)), wide=1.5)
    middles = [at + 0.5 for at in range(len(bars))]
    data = {
        "x": x,
        "from": 0,
        "to": len(bars),
        "words": [word for word, _ in bars],
        "lines": [{"name": y, "x": middles, "y": [_digits(value) for _, value in bars]}],
    }
    numbers = html.folded("The numbers of this chart", html.table((x, y), bars))
    return html.render(
        "chart",
        name,
        y,
        [],
        drawn(drawing),
        labels,
        x,
        numbers,
        html.embedded(data),
    )


def _curve(frame: _Frame, one: Line, points: Sequence[Point]) -> str:
    if len(points) == 1:  # a line of one point is not to be seen
        at, value = points[0]
        right, up = frame.right(at), frame.up(value)
        return line(f"{one.style} dot", (right, up), (right, up))
    path = " ".join(f"{frame.right(at):.1f},{frame.up(value):.2f}" for at, value in points)
    faint, width = (" faint", 1) if one.faint else ("", 2)
    return f'<polyline class="{one.style}{faint}" stroke-width="{width}" points="{path}"/>'


def _thinned(points: Sequence[Point], most: int) -> list[Point]:
    """Return at most `most` points, by rising x: the lowest, highest and last of each stretch."""
    if len(points) <= most:
        return list(points)
    stretches = most // 3
    kept: list[Point] = []
    for at in range(stretches):
        part = points[at * len(points) // stretches : (at + 1) * len(points) // stretches]
        low = min(range(len(part)), key=lambda place: part[place][1])
        high = max(range(len(part)), key=lambda place: part[place][1])
        kept += [part[place] for place in sorted({low, high, len(part) - 1})]
    return kept


def _numbers(lines: Sequence[Line], x: str) -> Markup:
    """Return a folded table of at most `ROWS_MAX` values of x, evenly spread, with the last."""
    values = [dict(one.points) for one in lines]
    places = sorted({at for found in values for at in found})
    step = max(1, -(-len(places) // ROWS_MAX))
    chosen = places[step - 1 :: step]
    if chosen[-1:] != places[-1:]:
        chosen = [*chosen, places[-1]]
    rows = [(at, *(found.get(at) for found in values)) for at in chosen]
    head = (x, *(one.name for one in lines))
    return html.folded("The numbers of this chart", html.table(head, rows))


def _short(points: Sequence[Point], axis: int) -> list[float]:
    return [_digits(point[axis]) for point in points]


def _digits(value: float) -> float:
    """Return a number of at most five significant digits; whole numbers stay what they are."""
    if value == int(value) and abs(value) < 1e9:
        return int(value)
    return float(f"{value:.5g}")


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _grid(frame: _Frame) -> tuple[str, list[tuple[str, str, str, str]]]:
    """Return level lines with the words of their heights."""
    drawing, labels = "", []
    ticks = round_numbers(frame.low, frame.high)
    for value, word in zip(ticks, html.axis_labels(ticks), strict=True):
        up = frame.up(value)
        drawing += line("grid", (0, up), (WIDE, up))
        labels.append(("y", "top", _percent(up / HIGH), word))
    return drawing, labels


def _x_labels(frame: _Frame) -> list[tuple[str, str, str, str]]:
    ticks = round_numbers(frame.left, frame.right_end)
    return [
        (f"x{' minor' if number % 2 else ''}", "left", _percent(frame.right(at) / WIDE), word)
        for number, (at, word) in enumerate(zip(ticks, html.axis_labels(ticks), strict=True))
    ]


def _event_labels(frame: _Frame, events: Mapping[float, str]) -> list[tuple[str, str, str, str]]:
    """Return the words of events; those too near to one another share one, with their number."""
    groups: list[list[tuple[float, str]]] = []
    for at, word in sorted(events.items()):
        place = frame.right(at) / WIDE
        if groups and groups[-1][0][1] == word and place - groups[-1][0][0] < EVENT_SHARE:
            groups[-1].append((place, word))
        else:
            groups.append([(place, word)])
    labels = []
    for group in groups:
        place, word = group[0]
        many = f" ({len(group)})" if len(group) > 1 else ""
        inside = min(max(place, EVENT_SHARE / 2), 1 - EVENT_SHARE / 2)
        labels.append(("event-word", "left", _percent(inside), f"{word}{many}"))
    return labels


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Maps values to places in the drawing."""

    left: float
    right_end: float
    low: float
    high: float

    @classmethod
    def around(cls, xs: Sequence[float], ys: Sequence[float]) -> _Frame:
        low, high = min(ys), max(ys)
        size = max(abs(low), abs(high))
        if high - low > max(size * FLAT, LEAST):
            margin = (high - low) * 0.05
        else:  # all alike, but for rounding
            margin = size * 0.1 if size > LEAST else 1.0
        if 0 <= low < high / 2 and size > LEAST:
            low = margin = 0.0
        step = _round_step(high + margin - (low - margin))
        start, end = min(xs), max(xs)
        return cls(
            left=start,
            right_end=end if end > start else start + 1,
            low=math.floor((low - margin) / step) * step,
            high=math.ceil((high + margin) / step) * step,
        )

    def right(self, x: float) -> float:
        return (x - self.left) / (self.right_end - self.left) * WIDE

    def up(self, y: float) -> float:
        return HIGH - (y - self.low) / (self.high - self.low) * HIGH


def round_numbers(low: float, high: float) -> list[float]:
    """Return the round numbers from `low` to `high`, about `TICKS` of them."""
    step = _round_step(high - low)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def _round_step(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten, so that a span has about TICKS of it."""
    rough = span / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * many for many in (1, 2, 5, 10) if power * many >= rough * 0.999)
