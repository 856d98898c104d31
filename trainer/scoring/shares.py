"""Intervals of shares such as accuracy: also of those that are 0 or 1, where resampling has none.

Needs no library, so the laptop computes the same figures.
"""

from __future__ import annotations

import math
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
