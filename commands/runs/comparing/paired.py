"""Intervals of the change between two models that answered the same rows; needs no library.

Every figure is a function of sums over rows, most of them a ratio (a mean is one: its denominators
are 1), so a resampled figure is made of resampled sums. The draws are seeded: all computers print
the same intervals.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from trainer.scoring.shares import paired_change

RESAMPLES = 1000
CONFIDENCE = 0.95
Part = tuple[float, ...]
"""What one row adds to the sums of a figure; of a ratio, to its numerator and its denominator."""


def ratio(sums: Sequence[float]) -> float:
    """Return a numerator over its denominator; 0 where that is 0."""
    return sums[0] / sums[1] if sums[1] else 0.0


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
    """What the rows of two models add to one figure, row by row in the same order.

    A row that lacks the figure adds only zeros.
    """

    first: Sequence[Part]
    second: Sequence[Part]
    figure: Callable[[Sequence[float]], float] = ratio


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
    count = len(dict.fromkeys(groups))
    shares = {
        name: newcombe(rows)
        for name, rows in figures.items()
        if len(groups) == count and _is_share(rows)
    }
    others = {name: rows for name, rows in figures.items() if name not in shares}
    intervals = shares | _resampled(others, groups, resamples=resamples, seed=seed)
    found = {}
    for name, rows in figures.items():
        first, second = (rows.figure(_total(one)) for one in (rows.first, rows.second))
        low, high = intervals[name]
        found[name] = PairedFigure(
            rows=sum(any(one) or any(other) for one, other in _pairs(rows)),
            first=first,
            second=second,
            change=second - first,
            low=low,
            high=high,
            interval="newcombe" if name in shares else "bootstrap",
        )
    return found


def _resampled(
    figures: Mapping[str, PairedRows], groups: Sequence[Hashable], *, resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Return the percentile interval of each figure's change under resampled documents."""
    sums = {
        name: [_by_group(one, groups) for one in (rows.first, rows.second)]
        for name, rows in figures.items()
    }
    changes: dict[str, list[float]] = {name: [] for name in figures}
    places = range(len(dict.fromkeys(groups)))
    draws = random.Random(seed)  # noqa: S311 - a bootstrap, and it has to be repeatable
    for _ in range(resamples if figures else 0):
        drawn = draws.choices(places, k=len(places))
        for name, (first, second) in sums.items():
            figure = figures[name].figure
            changes[name].append(figure(second.drawn(drawn)) - figure(first.drawn(drawn)))
    outer = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    ranked = {name: sorted(found) for name, found in changes.items()}
    return {
        name: (quantile(one, outer[0]), quantile(one, outer[1])) for name, one in ranked.items()
    }


def newcombe(rows: PairedRows) -> tuple[float, float]:
    """Return Newcombe's interval of the difference of two shares of the same rows."""
    pairs = [(bool(one[0]), bool(other[0])) for one, other in _pairs(rows)]
    found = paired_change([one for one, _ in pairs], [other for _, other in pairs])
    return found.low, found.high


def quantile(ranked: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values, interpolated linearly between two (numpy's default)."""
    place = share * (len(ranked) - 1)
    below = int(place)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (ranked[above] - ranked[below]) * (place - below)


def _is_share(rows: PairedRows) -> bool:
    """Return whether every row of both models is right or wrong, and counts once."""
    return {*rows.first, *rows.second} <= {(0.0, 1.0), (1.0, 1.0)}


def _total(parts: Sequence[Part]) -> list[float]:
    """Return the sums over all rows."""
    return [sum(column) for column in zip(*parts, strict=True)]


def _pairs(rows: PairedRows) -> list[tuple[Part, Part]]:
    return list(zip(rows.first, rows.second, strict=True))


@dataclass(frozen=True)
class _Sums:
    """What documents add to the sums of a figure, a list for each sum."""

    columns: list[list[float]]

    def drawn(self, documents: Sequence[int]) -> list[float]:
        """Return the sums over some documents, each as often as it is drawn."""
        return [sum(map(column.__getitem__, documents)) for column in self.columns]


def _by_group(parts: Sequence[Part], groups: Sequence[Hashable]) -> _Sums:
    """Add up the rows of each document, in the order in which the documents first occur."""
    places = {group: at for at, group in enumerate(dict.fromkeys(groups))}
    sums = _Sums([[0.0] * len(places) for _ in parts[0]])
    for part, group in zip(parts, groups, strict=True):
        for column, one in zip(sums.columns, part, strict=True):
            column[places[group]] += one
    return sums
