"""Intervals of shares such as accuracy: also of those that are 0 or 1, where resampling has none.

Needs no library, so the laptop computes the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from trainer.scoring.interval import CONFIDENCE, Interval


def wilson(right: float, n: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the share `right` of `n` with Wilson's score interval.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference" (1927),
    without correction for continuity. The interval is within 0..1 and never empty: 0 of 22 is
    [0, 0.149], where resampling gives [0, 0]. `right` may be a sum of scores between 0 and 1: they
    vary at most as much as zeros and ones of the same mean, so that the interval is not too short.

    Raises:
        ValueError: there is nothing to take a share of, or more of it than there is.
    """
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"{right} of {n} is not a share")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, squared = right / n, z * z / n
    middle = (share + squared / 2) / (1 + squared)
    half = math.sqrt(share * (1 - share) * squared + squared * squared / 4) / (1 + squared)
    return Interval(
        value=share,
        low=0.0 if right == 0 else max(0.0, middle - half),
        high=1.0 if right == n else min(1.0, middle + half),
    )


def paired_change(first: Sequence[bool], second: Sequence[bool]) -> Interval:
    """Return by how much the share of right rows changed, both times of the same rows in order.

    R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions
    based on paired data" (1998), method 10: Wilson's intervals of both shares, joined by their
    correlation. It is never empty, where resampling has none if all rows changed alike.

    Raises:
        ValueError: there is no row, or one side has more.
    """
    pairs = list(zip(map(bool, first), map(bool, second), strict=True))
    n = len(pairs)
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    one, other = (wilson(both + more, n) for more in (only_first, only_second))
    product = math.prod(
        (both + only_first, only_second + neither, both + only_second, only_first + neither)
    )
    apart: float = both * neither - only_first * only_second
    if apart > 0:
        apart = max(apart - n / 2, 0)
    correlation = apart / math.sqrt(product) if product else 0.0
    change = other.value - one.value

    def reach(of_one: float, of_other: float) -> float:
        squares = of_one * of_one - 2 * correlation * of_one * of_other + of_other * of_other
        return math.sqrt(max(0.0, squares))

    return Interval(
        value=change,
        low=change - reach(other.value - other.low, one.high - one.value),
        high=change + reach(other.high - other.value, one.value - one.low),
    )
