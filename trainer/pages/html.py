"""Writes self-contained HTML pages: no script, no font, nothing from elsewhere, nothing injected.

`parts.html` has the markup; jinja2 escapes every value in it. Plots are inline SVG drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

WIDE, HIGH, LEFT, BOTTOM = 760, 240, 58, 34
TICKS = 7  # about so many on an axis
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))  # thousands from 10k on: 9,500 is as short
FLAT = 1e-9  # a span below this share of its values is no span to draw
LEAST, MOST = 1e-300, 1e300  # sizes of numbers beyond which arithmetic on an axis fails
FAINT = ' opacity=".5"'
HEAD = 22  # above the plot, for its name
ROW, NAMES = 24, 110  # the height of a row of a range plot, and the room for its name


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of a plot; `style` is one of the page's classes a, b, c; a faint one is thin."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "a"
    faint: bool = False


@cache
def _parts() -> Any:
    """Return the macros of `parts.html`."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": format_number, "zip": partial(zip, strict=True)}
    text = Path(__file__).with_name("parts.html").read_text(encoding="utf-8")
    return environment.from_string(text).module


def _render(macro: str, *values: object) -> Markup:
    made: Markup = getattr(_parts(), macro)(*values)
    return made


def page(title: str, sections: Iterable[Markup]) -> str:
    """Return a whole page of sections under a title."""
    return str(_render("page", title, list(sections)))


def section(title: str, *parts: Markup, key: str = "") -> Markup:
    """Return parts under a heading; `key` is the id of the element."""
    return _render("section", title, parts, key)


def paragraph(text: str) -> Markup:
    """Return a text as a paragraph."""
    return _render("paragraph", text)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """Return a table; numbers are written with at most four digits behind the point."""
    return _render("table", head, list(rows))


def marked(pieces: Iterable[tuple[str, bool]]) -> Markup:
    """Return text pieces as one block, with those that are learnt highlighted."""
    return _render("marked", list(pieces))


def heat_table(
    name: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[float]]
) -> Markup:
    """Return a table whose cells are the darker the larger their share of the row."""
    return _render("heat_table", name, rows, columns, cells)


def format_number(value: object) -> str:
    """Return a value as text: numbers with four significant digits or thousands separated."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.2e}"


def axis_labels(ticks: Sequence[float]) -> list[str]:
    """Return evenly spaced numbers as short labels: `15k` and `1.5M`, never `e+04`.

    All are in one unit, with as many digits as tell neighbours apart.
    """
    largest = max(map(abs, ticks), default=0.0)
    unit, sign = next(
        ((unit, sign) for unit, sign in UNITS if largest >= unit * (10 if sign == "k" else 1)),
        (1.0, ""),
    )
    if not sign or len(ticks) < 2:
        return [format_number(tick) for tick in ticks]
    digits = max(0, -math.floor(math.log10((ticks[1] - ticks[0]) / unit) + 1e-9))
    return [f"{tick / unit:.{digits}f}{sign}" if tick else "0" for tick in ticks]


def line_plot(
    name: str, lines: Sequence[Line], *, x: str, y: str, events: Mapping[float, str] | None = None
) -> Markup:
    """Plot curves over one another; `events` are dashed vertical lines with their labels."""
    points = [point for line in lines for point in line.points]
    if not points:
        return paragraph(f"{name}: nothing was recorded")
    events = events or {}
    xs = [at for at, _ in points] + list(events)
    ys = [value for _, value in points]
    frame = _Frame.around(xs, ys)
    parts = [frame.axes(x, y)]
    for at, word in events.items():
        place = frame.right(at)
        late = place > WIDE - 120  # the word would leave the drawing
        parts.append(
            f'<line class="event" x1="{place:.1f}" x2="{place:.1f}" y1="10" y2="{HIGH - BOTTOM}"/>'
            f'<text x="{place + (-4 if late else 4):.1f}" y="{HIGH - BOTTOM - 6}" '
            f'text-anchor="{"end" if late else "start"}">{escape(word)}</text>'
        )
    for line in lines:
        path = " ".join(f"{frame.right(at):.1f},{frame.up(value):.1f}" for at, value in line.points)
        faint = f' stroke-width="1"{FAINT}' if line.faint else ' stroke-width="2"'
        parts.append(f'<polyline class="{line.style}"{faint} points="{path}"/>')
        if len(line.points) == 1:  # a line of one point is not to be seen
            at, value = line.points[0]
            parts.append(
                f'<circle class="f{line.style}" r="3" cx="{frame.right(at):.1f}" '
                f'cy="{frame.up(value):.1f}"/>'
            )
    if len(lines) > 1:
        parts.append(_legend(lines))
    return _svg(name, parts)


def _legend(lines: Sequence[Line]) -> str:
    """Return the legend, above the plot where no curve can run through it."""
    words = "\u2003".join(
        f'<tspan class="f{line.style}"{FAINT if line.faint else ""}>■</tspan> {escape(line.name)}'
        for line in lines
    )
    return f'<text x="{WIDE - 8}" y="-8" text-anchor="end">{words}</text>'


def bar_plot(
    name: str, bars: Sequence[tuple[str, float]], *, x: str, y: str, diagonal: bool = False
) -> Markup:
    """Plot vertical bars, each with its label below; of many bars only some have one.

    With `diagonal` bars are shares from 0 to 1, and a line shows where they should end.
    """
    if not bars:
        return paragraph(f"{name}: there is nothing to show")
    top_value = [1.0] if diagonal else [value for _, value in bars]
    frame = _Frame.around([0, len(bars)], [0, *top_value])
    parts = [frame.axes(x, y, ticks=False)]
    width = (WIDE - LEFT - 10) / len(bars)
    every = max(1, len(bars) // 10)
    for number, (word, value) in enumerate(bars):
        left, top = LEFT + number * width, frame.up(value)
        height = HIGH - BOTTOM - top
        parts.append(
            f'<rect class="fa" x="{left + 1:.1f}" y="{top:.1f}" width="{max(width - 2, 1):.1f}" '
            f'height="{height:.1f}">'
            f"<title>{escape(word)}: {escape(format_number(value))}</title></rect>"
        )
        if number % every == 0:
            parts.append(
                f'<text x="{left + width / 2:.1f}" y="{HIGH - 18}" text-anchor="middle">'
                f"{escape(word)}</text>"
            )
    if diagonal:
        parts.append(
            f'<line class="b" stroke-width="1.5" x1="{LEFT}" y1="{frame.up(0):.1f}" '
            f'x2="{WIDE - 10}" y2="{frame.up(1):.1f}"/>'
        )
    return _svg(name, parts)


@dataclass(frozen=True, kw_only=True)
class Range:
    """One row of a range plot: an expected value with its range, and the real one, if known."""

    name: str
    low: float | None = None
    likely: float | None = None
    high: float | None = None
    real: float | None = None


def range_plot(name: str, ranges: Sequence[Range], *, x: str) -> Markup:
    """Plot level bars: the real value of each row, and over it the range that was expected.

    The range is a thin line with a mark at the likely value. All start at zero.
    """
    ends = [value for one in ranges for value in (one.high, one.real) if value is not None]
    if not ends or max(ends) < LEAST:
        return paragraph(f"{name}: there is nothing to show")
    most, foot = max(ends), len(ranges) * ROW

    def right(value: float) -> float:
        return NAMES + value / most * (WIDE - NAMES - 20)

    ticks = _ticks(0.0, most)
    parts = [
        f'<line class="axis" x1="{right(at):.1f}" x2="{right(at):.1f}" y1="0" y2="{foot}" '
        f'opacity=".5"/><text x="{right(at):.1f}" y="{foot + 16}" text-anchor="middle">'
        f"{escape(word)}</text>"
        for at, word in zip(ticks, axis_labels(ticks), strict=True)
    ]
    parts += [_range_row(one, row * ROW + ROW / 2, right) for row, one in enumerate(ranges)]
    parts.append(
        f'<text x="{(NAMES + WIDE) / 2:.0f}" y="{foot + BOTTOM - 3}" text-anchor="middle">'
        f'{escape(x)}</text><text x="{WIDE - 8}" y="-8" text-anchor="end">'
        '<tspan class="fb">●</tspan> planned\u2003<tspan class="fa">■</tspan> real</text>'
    )
    return _svg(name, parts, high=foot + BOTTOM)


def _range_row(one: Range, middle: float, right: Callable[[float], float]) -> str:
    """Return one row of a range plot, around a height."""
    row = f'<text x="{NAMES - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(one.name)}</text>'
    if one.real is not None:
        row += (
            f'<rect class="fa"{FAINT} x="{right(0):.1f}" y="{middle - 7:.1f}" height="14" '
            f'width="{max(0.0, right(one.real) - right(0)):.1f}"/>'
        )
    if one.low is not None and one.likely is not None and one.high is not None:
        row += (
            f'<line class="b" stroke-width="2" x1="{right(one.low):.1f}" '
            f'x2="{right(one.high):.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
            f'<circle class="fb" r="4" cx="{right(one.likely):.1f}" cy="{middle:.1f}"/>'
        )
    return row


def _svg(name: str, parts: Iterable[str], *, high: int = HIGH) -> Markup:
    drawing = (
        f'<figure><svg role="img" aria-label="{escape(name)}" '
        f'viewBox="0 {-HEAD} {WIDE} {high + HEAD}" '
        f'width="{WIDE}" height="{high + HEAD}"><title>{escape(name)}</title>'
        f'<text x="{(LEFT + WIDE) / 2:.0f}" y="-8" text-anchor="middle" class="name">'
        f"{escape(name)}</text>{''.join(parts)}</svg></figure>"
    )
    return Markup(drawing)  # noqa: S704 - every text in it went through `escape`


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
        return LEFT + (x - self.left) / (self.right_end - self.left) * (WIDE - LEFT - 10)

    def up(self, y: float) -> float:
        return HIGH - BOTTOM - (y - self.low) / (self.high - self.low) * (HIGH - BOTTOM - 10)

    def axes(self, x: str, y: str, *, ticks: bool = True) -> str:
        foot = HIGH - BOTTOM
        parts = [
            (
                f'<line class="axis" x1="{LEFT}" x2="{WIDE - 10}" y1="{foot}" y2="{foot}"/>'
                f'<text x="{(LEFT + WIDE) / 2:.0f}" y="{HIGH - 3}" text-anchor="middle">'
                f"{escape(x)}</text>"
                f'<text x="4" y="-8">{escape(y)}</text>'
            )
        ]
        upright = _ticks(self.low, self.high)
        for value, word in zip(upright, axis_labels(upright), strict=True):
            place = self.up(value)
            parts.append(
                f'<line class="axis" x1="{LEFT}" x2="{WIDE - 10}" y1="{place:.1f}" '
                f'y2="{place:.1f}" opacity=".5"/><text x="{LEFT - 6}" y="{place + 4:.1f}" '
                f'text-anchor="end">{escape(word)}</text>'
            )
        level = _ticks(self.left, self.right_end) if ticks else []
        parts += [
            f'<text x="{self.right(at):.1f}" y="{HIGH - 18}" text-anchor="middle">'
            f"{escape(word)}</text>"
            for at, word in zip(level, axis_labels(level), strict=True)
        ]
        return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Return the round numbers from `low` to `high`."""
    step = _round_step(high - low)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def _round_step(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten, so that a span has about TICKS of it."""
    rough = span / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * many for many in (1, 2, 5, 10) if power * many >= rough * 0.999)
