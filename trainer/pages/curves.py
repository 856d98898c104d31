"""Draws what a run logged step by step: losses, learning rate, gradient, speed, use of the GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from trainer.pages import html
from trainer.pages.charts import Line, line_plot
from trainer.pages.run_files import MEAN_STEPS
from trainer.untrusted import number, table

WINDOWS = 60
"""A long log is smoothed over about so many stretches of it."""
SMOOTH_MAX = 1000
"""Means that are worked out at most, or a few more."""
GB = 1e9
Points = Sequence[Sequence[float]]


def curve_parts(report: Mapping[str, Any]) -> list[Markup]:
    """Return the charts of `curves` of `report.json`, with the evictions; only of what is there."""
    curves = table(report["curves"])
    events = {
        step: "evicted"
        for one in report["evictions"]
        if (step := number(table(one).get("step"))) is not None
    }
    loss = _points(curves.get("loss"))
    steps = [
        at for points in curves.values() for at, _ in _points(points)[:1] + _points(points)[-1:]
    ]
    window = max(MEAN_STEPS, len(loss) // WINDOWS)
    lines = [
        Line(name="each step", points=loss, style="a", faint=True),
        Line(name=f"mean of {window}", points=smooth(loss, window), style="a"),
    ]
    parts = [line_plot("Training loss", lines, x="step", y="loss", events=events, x_ends=steps)]
    others = []
    for key, name, unit, style, scale, ends in (
        ("validation", "Validation loss", "loss", "c", 1.0, ()),
        ("lr", "Learning rate", "learning rate", "d", 1.0, (0.0,)),
        ("grad_norm", "Gradient norm", "norm", "d", 1.0, (0.0,)),
        ("tokens_per_s", "Throughput", "tokens/s", "a", 1.0, (0.0,)),
        ("gpu_memory_bytes", "GPU memory", "GB", "a", 1 / GB, (0.0,)),
        ("gpu_use", "GPU use", "%", "a", 100.0, (0.0, 100.0)),
    ):
        points = [(at, value * scale) for at, value in _points(curves.get(key))]
        if points or key == "tokens_per_s":
            line = Line(name=unit, points=points, style=style)
            others.append(
                line_plot(name, [line], x="step", y=unit, events=events, x_ends=steps, y_ends=ends)
            )
    return [*parts, html.pair(others)]


def _points(found: object) -> list[tuple[float, float]]:
    return [(at, value) for at, value in found] if isinstance(found, list) else []


def smooth(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Return the mean of each point and those before it, `window` in all; of a long log, of some.

    The last point is always among them.
    """
    every = max(1, len(points) // SMOOTH_MAX)
    result = []
    for end in range(len(points), 0, -every):
        part = [value for _, value in points[max(0, end - window) : end]]
        result.append((points[end - 1][0], sum(value / len(part) for value in part)))
    return result[::-1]
