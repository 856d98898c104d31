"""A figure with its 95 % interval, as every result has it."""

from __future__ import annotations

from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with the interval `low`..`high`."""

    value: float
    low: float
    high: float
