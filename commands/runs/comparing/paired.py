"""Intervals of the change between two models that answered the same rows; needs no library.

Every figure is a ratio of sums over rows (a mean is one: its denominators are 1), so a resampled
figure is made of resampled sums. The draws are seeded: all computers print the same intervals.
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from trainer.scoring.shares import wilson

RESAMPLES = 1000
CONFIDENCE = 0.95
Part = tuple[float, float]
"""What one row adds to a figure: to its numerator and to its denominator."""


@dataclass(frozen=True, kw_only=True)
class PairedFigure:
    """A figure of two models over the same rows, and the change from the first to the second.

    `low`..`high` is the 95 % interval of the change, computed as `interval` says, over the `rows`
    that have the figure.
    """

    rows: int

    first: float
    second: float
    change: float
    low: float
    high: float
    interval: str


@dataclass(frozen=True, kw_only=True)
class PairedRows:
    """What the rows of two models add to one figure, row by row in the same order."""

    first: Sequence[Part]
    second: Sequence[Part]


def paired_figures(
    figures: Mapping[str, PairedRows],
    groups: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, PairedFigure]:
    """Return each figure with the interval of its change.

    It is the percentile interval of resampled documents (Efron's method): `groups` names the
    document of each row, documents are drawn with replacement, whole, and both models get the same
    ones. All figures are taken from the same draws. A share of rows that are right or wrong has
    Newcombe's interval, since resampling has none where all are right, or the two models agree.

    Raises:
        ValueError: there is no row.
    """
    if not groups:
        raise ValueError("there is no row to compare")
    sums = {
        name: [_by_group(one, groups) for one in (rows.first, rows.second)]
        for name, rows in figures.items()
    }
    changes: dict[str, list[float]] = {name: [] for name in figures}
    count = len(dict.fromkeys(groups))
    draws = random.Random(seed)  # noqa: S311 - a bootstrap, and it has to be repeatable
    for _ in range(resamples):
        drawn = draws.choices(range(count), k=count)
        for name, (first, second) in sums.items():
            changes[name].append(_ratio(second, drawn) - _ratio(first, drawn))
    found = {}
    for name, (first, second) in sums.items():
        values = [_ratio(one, range(count)) for one in (first, second)]
        ranked = sorted(changes[name])
        low, high = (quantile(ranked, (1 + side * CONFIDENCE) / 2) for side in (-1, 1))
        shares = _is_share(figures[name]) and len(groups) == count
        if shares:
            low, high = newcombe(figures[name])
        found[name] = PairedFigure(
            rows=sum(below > 0 for _, below in figures[name].first),
            first=values[0],
            second=values[1],
            change=values[1] - values[0],
            low=low,
            high=high,
            interval="newcombe" if shares else "bootstrap",
        )
    return found


def newcombe(rows: PairedRows) -> tuple[float, float]:
    """Return the interval of the difference of two shares of the same rows.

    R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions
    based on paired data" (1998), method 10: Wilson's intervals of both shares, joined by their
    correlation. It is never empty.
    """
    pairs = [
        (bool(one), bool(two)) for (one, _), (two, _) in zip(rows.first, rows.second, strict=True)
    ]
    n = len(pairs)
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    first, second = (wilson(both + one, n) for one in (only_first, only_second))
    product = math.prod(
        (both + only_first, only_second + neither, both + only_second, only_first + neither)
    )
    apart = both * neither - only_first * only_second
    if apart > 0:
        apart = max(apart - n / 2, 0)
    correlation = apart / math.sqrt(product) if product else 0.0
    change = second.value - first.value

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * correlation * one * other + other * other))

    down = reach(second.value - second.low, first.high - first.value)
    up = reach(second.high - second.value, first.value - first.low)
    return change - down, change + up


def quantile(ranked: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values, interpolated linearly between two (numpy's default)."""
    place = share * (len(ranked) - 1)
    below = int(place)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (ranked[above] - ranked[below]) * (place - below)


@dataclass(frozen=True)
class _Sums:
    """Numerators and denominators of documents."""

    above: list[float]
    below: list[float]


def _is_share(rows: PairedRows) -> bool:
    """Return whether every row of both models is right or wrong, and counts once."""
    return {*rows.first, *rows.second} <= {(0.0, 1.0), (1.0, 1.0)}


def _by_group(parts: Sequence[Part], groups: Sequence[Hashable]) -> _Sums:
    """Add up the rows of each document, in the order in which the documents first occur."""
    places = {group: at for at, group in enumerate(dict.fromkeys(groups))}
    sums = _Sums([0.0] * len(places), [0.0] * len(places))
    for (above, below), group in zip(parts, groups, strict=True):
        sums.above[places[group]] += above
        sums.below[places[group]] += below
    return sums


def _ratio(sums: _Sums, drawn: Sequence[int]) -> float:
    """Return the figure of the documents drawn; 0 where its denominator is."""
    below = sum(map(sums.below.__getitem__, drawn))
    return sum(map(sums.above.__getitem__, drawn)) / below if below else 0.0
