"""Writes the marks of SVG drawings that are stretched to whatever width a page has."""

from __future__ import annotations

from markupsafe import Markup

WIDE, HIGH = 1000, 100
"""Of every drawing; on the page it has another size, and lines keep their width."""
LEAST, MOST = 1e-300, 1e300
"""Sizes of numbers beyond which arithmetic on an axis fails."""
Point = tuple[float, float]


def line(style: str, start: Point, end: Point, *, wide: float | None = None) -> str:
    """Return a straight line of a style of the page, `wide` pixels wide."""
    width = "" if wide is None else f' stroke-width="{wide}"'
    return (
        f'<line class="{style}"{width} x1="{start[0]:.1f}" x2="{end[0]:.1f}" '
        f'y1="{start[1]:.2f}" y2="{end[1]:.2f}"/>'
    )


def bar(style: str, start: Point, end: Point) -> str:
    """Return a filled box between two corners, the upper left one first."""
    return (
        f'<rect class="{style}" x="{start[0]:.1f}" y="{start[1]:.2f}" '
        f'width="{max(0.0, end[0] - start[0]):.1f}" height="{max(0.0, end[1] - start[1]):.2f}"/>'
    )


def drawn(marks: str) -> Markup:
    """Return marks as markup: they are made of numbers and names of styles alone."""
    return Markup(marks)  # noqa: S704 - see above


def stretched(marks: str) -> Markup:
    """Return a drawing that fills its place and that words beside it describe."""
    return drawn(
        f'<svg aria-hidden="true" viewBox="0 0 {WIDE} {HIGH}" preserveAspectRatio="none">'
        f"{marks}</svg>"
    )
