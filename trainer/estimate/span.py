"""A figure that is not known exactly: the least, the likely and the most that it may be."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Span:
    """A figure with the range in which nine of ten such figures lie; the unit is its owner's."""

    low: float
    likely: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Span:
        """Return a figure without doubt."""
        return cls(low=value, likely=value, high=value)

    @classmethod
    def within_factor(cls, likely: float, factor: float) -> Span:
        """Return a figure that may be `factor` times smaller or larger."""
        return cls(low=likely / factor, likely=likely, high=likely * factor)

    def __add__(self, other: Span) -> Span:
        """Add two figures; their ranges add up, as if both were off in the same direction."""
        return Span(
            low=self.low + other.low,
            likely=self.likely + other.likely,
            high=self.high + other.high,
        )

    def __mul__(self, factor: float) -> Span:
        """Return the figure `factor` times, which is not negative."""
        return Span(low=self.low * factor, likely=self.likely * factor, high=self.high * factor)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


NOTHING = Span.exactly(0.0)
