"""Small self-contained HTML pages: no script, no font, no picture from elsewhere, nothing injected.

Every text goes through `escape`; plots are inline SVG drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --dim: #667; --line: #d5d9df; --back: #fff;
  --mark: #fff0b8; --a: #1f6feb; --b: #d1242f; --c: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --dim: #9aa3ad; --line: #3a4048;
  --back: #16181b; --mark: #5a4a12; --a: #6ea8fe; --b: #ff7b72; --c: #56d364; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
figure { margin: .8rem 0; overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--dim); padding-bottom: .3rem; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .5rem; text-align: right; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.heat td + td { min-width: 3.5rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line);
  border-radius: 6px; padding: .7rem; margin: .5rem 0; font-size: 13px; }
mark { background: var(--mark); color: inherit; border-radius: 3px; }
svg { width: 100%; min-width: 34rem; max-width: 52rem; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--dim); }
svg .name { font-weight: bold; fill: var(--ink); }
.a { stroke: var(--a); fill: none; } .b { stroke: var(--b); fill: none; }
.c { stroke: var(--c); fill: none; }
.fa { fill: var(--a); } .fb { fill: var(--b); } .fc { fill: var(--c); }
.axis { stroke: var(--line); } .event { stroke: var(--dim); stroke-dasharray: 4 3; }
@media print { body { max-width: none; margin: 0; } svg { min-width: 0; }
  h2 { break-after: avoid; } figure, pre, tr { break-inside: avoid; }
  figure { overflow: visible; } }
"""
WIDE, HIGH, LEFT, BOTTOM = 760, 240, 58, 34
TICKS = 7  # about so many on an axis
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))  # thousands from 10k on: 9,500 is as short
FLAT = 1e-9  # a span below this share of its values is no span to draw
LEAST, MOST = 1e-300, 1e300  # sizes of numbers beyond which arithmetic on an axis fails
FAINT = ' opacity=".5"'
HEAD = 22  # above the plot, for its name


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of a plot; `style` is one of the page's classes a, b, c; a faint one is thin."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "a"
    faint: bool = False


def page(title: str, sections: Iterable[str]) -> str:
    """Return a whole page of ready sections under `title`."""
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Return ready parts under a heading."""
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(parts) + "</section>"


def paragraph(text: str) -> str:
    """Return a text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; numbers are written with at most four digits behind the point."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(written(cell))}</td>" for cell in row) + "</tr>\n"
        for row in rows
    )
    head_row = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f"<figure><table>{head_row}<tbody>\n{lines}</tbody></table></figure>"


def written(value: object) -> str:
    """Return a value as people read it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.2e}"


def axis_labels(ticks: Sequence[float]) -> list[str]:
    """Return evenly spaced numbers as an axis has room for them: `15k` and `1.5M`, never `e+04`.

    All are in one unit, with as many digits as tell neighbours apart.
    """
    largest = max(map(abs, ticks), default=0.0)
    unit, sign = next(
        ((unit, sign) for unit, sign in UNITS if largest >= unit * (10 if sign == "k" else 1)),
        (1.0, ""),
    )
    if not sign or len(ticks) < 2:
        return [written(tick) for tick in ticks]
    digits = max(0, -math.floor(math.log10((ticks[1] - ticks[0]) / unit) + 1e-9))
    return [f"{tick / unit:.{digits}f}{sign}" if tick else "0" for tick in ticks]


def marked(pieces: Iterable[tuple[str, bool]]) -> str:
    """Return text pieces as one block, with those that are learnt highlighted."""
    inner = "".join(
        f"<mark>{escape(text)}</mark>" if learnt else escape(text) for text, learnt in pieces
    )
    return f"<pre>{inner}</pre>"


def line_plot(
    name: str, lines: Sequence[Line], *, x: str, y: str, events: Mapping[float, str] | None = None
) -> str:
    """Return curves over one another; `events` are dashed uprights with their words."""
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
    """Return the names of the curves, above the plot where no curve can run through them."""
    words = "\u2003".join(
        f'<tspan class="f{line.style}"{FAINT if line.faint else ""}>■</tspan> {escape(line.name)}'
        for line in lines
    )
    return f'<text x="{WIDE - 8}" y="-8" text-anchor="end">{words}</text>'


def bar_plot(
    name: str, bars: Sequence[tuple[str, float]], *, x: str, y: str, diagonal: bool = False
) -> str:
    """Return upright bars, each with its word below; many bars show every other word.

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
            f'height="{height:.1f}"><title>{escape(word)}: {escape(written(value))}</title></rect>'
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


def heat_table(
    name: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[float]]
) -> str:
    """Return a table whose cells are the darker the larger their share of the row."""
    head = "".join(f"<th>{escape(word)}</th>" for word in ("", *columns))
    body = ""
    for word, values in zip(rows, cells, strict=True):
        total = sum(values) or 1
        body += (
            f"<tr><td>{escape(word)}</td>"
            + "".join(
                f'<td style="background: color-mix(in srgb, var(--a) {60 * value / total:.0f}%, '
                f'transparent)">{escape(written(value))}</td>'
                for value in values
            )
            + "</tr>\n"
        )
    return (
        f'<figure><table class="heat"><caption>{escape(name)}</caption><thead><tr>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></figure>"
    )


def _svg(name: str, parts: Iterable[str]) -> str:
    return (
        f'<figure><svg role="img" aria-label="{escape(name)}" '
        f'viewBox="0 {-HEAD} {WIDE} {HIGH + HEAD}" '
        f'width="{WIDE}" height="{HIGH + HEAD}"><title>{escape(name)}</title>'
        f'<text x="{(LEFT + WIDE) / 2:.0f}" y="-8" text-anchor="middle" class="name">'
        f"{escape(name)}</text>{''.join(parts)}</svg></figure>"
    )


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Where numbers lie on the drawing."""

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
