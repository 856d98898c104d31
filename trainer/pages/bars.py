"""Draws level bars with their words: values with intervals, real values with planned ranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from trainer.pages import html
from trainer.pages.drawing import LEAST, WIDE, bar, line, stretched


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One row of level bars: a value from zero on, with its interval and its words, if any."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    figure: str = ""
    style: str = "fa"
    strong: bool = False


def level_bars(name: str, bars: Sequence[Bar], *, most: float | None = None) -> Markup:
    """Draw level bars on one scale from zero, or from the lowest value if that is below zero.

    Intervals are thin lines over the bars. `most` is the end of the scale.
    """
    ends = [end for one in bars for end in (one.value, one.low, one.high) if end is not None]
    if not ends:
        return html.paragraph(f"{name}: there is nothing to show")
    first, last = min(0.0, *ends), max(most or 0.0, *ends)
    span = last - first if last - first > LEAST else 1.0

    def right(value: float) -> float:
        return (value - first) / span * WIDE

    rows = [
        {
            "name": html.short(one.name),
            "figure": html.short(one.figure),
            "strong": one.strong,
            "drawing": _bar_drawing(one, right),
        }
        for one in bars
    ]
    return html.render("bars", name, rows)


def _bar_drawing(one: Bar, right: Callable[[float], float]) -> Markup:
    marks = bar("fg", (right(0.0), 99), (WIDE, 100))
    if one.value is not None:
        left, end = sorted((right(0.0), right(one.value)))
        marks += bar(one.style, (left, 12), (end, 88))
    if one.low is not None and one.high is not None:
        low, high = right(one.low), right(one.high)
        marks += line("whisker", (low, 50), (high, 50))
        marks += line("whisker", (low, 30), (low, 70)) + line("whisker", (high, 30), (high, 70))
    return stretched(marks)


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
        return html.paragraph(f"{name}: there is nothing to show")
    most = max(ends)
    rows = []
    for one in ranges:
        figure = "" if one.real is None else html.format_number(float(f"{one.real:.3g}"))
        drawing = _range_drawing(one, lambda value: value / most * WIDE)
        rows.append({"name": one.name, "figure": figure, "strong": False, "drawing": drawing})
    return html.render("ranges", name, x, html.render("bars", name, rows))


def _range_drawing(one: Range, right: Callable[[float], float]) -> Markup:
    marks = "" if one.real is None else bar("fa", (0, 12), (right(one.real), 88))
    if one.low is not None and one.likely is not None and one.high is not None:
        likely = right(one.likely)
        marks += line("plan", (right(one.low), 50), (right(one.high), 50))
        marks += line("plan", (likely, 10), (likely, 90))
    return stretched(marks)
