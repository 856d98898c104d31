"""Draws how values grow with size, on logarithmic scales, as an SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median

from bench.measure import Growth
from bench.results import growth_points
from bench.rounds import Collected

WIDTH, HEIGHT, MARGIN = 420, 260, 46
Points = Sequence[tuple[float, float]]


def growth_series(results: Sequence[Collected]) -> dict[str, list[tuple[float, float]]]:
    """Return size and median value of every `Growth` that was measured, by measure and name."""
    found: dict[str, list[tuple[float, float]]] = {}
    for collected in results:
        for goal in collected.measure.goals:
            if not isinstance(goal, Growth):
                continue
            values: dict[float, list[float]] = {}
            for number in {at for name in goal.of for at in collected.samples.get(name, {})}:
                for size, value in growth_points(goal, collected, number):
                    values.setdefault(size, []).append(value)
            if len(values) > 1:
                name = f"{collected.measure.name}: {goal.name}"
                found[name] = [(size, median(values[size])) for size in sorted(values)]
    return found


def as_svg(series: Mapping[str, Points]) -> str:
    """Return one panel for each series, one below the other; a decade has the same length."""
    panels = [
        f'<g transform="translate(0,{number * HEIGHT})">{_panel(name, points)}</g>'
        for number, (name, points) in enumerate(series.items())
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
        f'height="{HEIGHT * len(panels)}" font-family="sans-serif" font-size="11">'
        f"{''.join(panels)}</svg>\n"
    )


def _panel(name: str, points: Points) -> str:
    x = [math.log10(size) for size, _ in points]
    y = [math.log10(value) for _, value in points]
    decades = max(max(x) - min(x), max(y) - min(y)) or 1.0
    unit = min(WIDTH, HEIGHT) - 2 * MARGIN
    places = [
        (
            MARGIN + (one - min(x)) / decades * unit,
            HEIGHT - MARGIN - (other - min(y)) / decades * unit,
        )
        for one, other in zip(x, y, strict=True)
    ]
    line = " ".join(f"{one:.1f},{other:.1f}" for one, other in places)
    dots = "".join(
        f'<circle cx="{one:.1f}" cy="{other:.1f}" r="3"/>'
        f'<text x="{one + 6:.1f}" y="{other + 14:.1f}">{size:g}: {value:.3g} s</text>'
        for (one, other), (size, value) in zip(places, points, strict=True)
    )
    return (
        f'<text x="{MARGIN}" y="18">{escape(name)}, seconds over size</text>'
        f'<polyline points="{line}" fill="none" stroke="black"/>{dots}'
    )
