"""Percentile intervals of figures over resampled documents: of means, of ratios, of differences.

Documents are drawn with replacement, whole (Efron's percentile method). The draws depend on the
number of documents and the seed alone, so that two results on the same rows are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from trainer.scoring.interval import CONFIDENCE, Interval

Floats = npt.NDArray[np.float64]

WEIGHTS_AT_ONCE = 1_000_000  # of resampled documents in memory: 16 MB while they are drawn


def resampled_weights(count: int, *, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each of `count` documents is drawn, [resamples, documents], in chunks.

    All at once would be gigabytes for many documents; the draws are the same either way.
    """
    draws = np.random.default_rng(seed)
    even, chunk = np.full(count, 1 / count), max(1, WEIGHTS_AT_ONCE // count)
    for begun in range(0, resamples, chunk):
        size = min(chunk, resamples - begun)
        yield draws.multinomial(count, even, size=size).astype(float)


def resampled_interval(
    figure: Callable[[Floats], Floats], count: int, *, resamples: int, seed: int = 0
) -> Interval:
    """Return a figure of `count` documents with its interval.

    `figure` takes the documents' weights [resamples, documents] and returns its value for each.
    """
    value = float(figure(np.ones((1, count)))[0])
    drawn = resampled_weights(count, resamples=resamples, seed=seed)
    spread = np.concatenate([figure(weights) for weights in drawn])
    low, high = np.quantile(spread, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value=value, low=float(low), high=float(high))
