"""Turns the eviction bands that vendors publish into evictions per hour, one unit for all; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

HOUR = "hour"
MONTH = "month"
DAY_H = 24.0
MONTH_H = 730.0
OPEN_END: Mapping[str, float] = MappingProxyType({HOUR: 0.25, MONTH: 0.5})
"""Where a band without an upper end, such as `20+`, is taken to end, as a share of machines."""


@dataclass(frozen=True, kw_only=True)
class EvictionRate:
    """How often a machine is evicted, in evictions per hour that it runs."""

    per_h: float
    low_per_h: float
    high_per_h: float
    rough: bool
    """Whether the figure is an estimate of the order of magnitude: the vendor publishes no hourly
    share, or none at all."""


NO_BAND = EvictionRate(per_h=0.05, low_per_h=0.0, high_per_h=OPEN_END[HOUR], rough=True)
"""Where nothing is published. Azure's bands go from 0-5 to 20+ percent an hour."""


def evictions_per_h(band: str, period: str) -> EvictionRate:
    """Turn a band, in percent of machines evicted in a `period`, into evictions per hour.

    `band` is written as in `Offer.eviction_band`: `5-10`, `20+` or `<5`; what cannot be read is
    taken as not published. `period` is `hour` or `month`. Azure publishes the share of machines
    evicted within an hour. AWS publishes the share interrupted in the trailing month, and not how
    long those machines ran, so its rate is rough: it is the share spread over a month, and the high
    end spreads it over one day.
    """
    ends = _ends(band)
    if ends is None or period not in OPEN_END:
        return NO_BAND
    low = ends[0] / 100
    high = OPEN_END[period] if ends[1] is None else ends[1] / 100
    high = max(low, high)
    if period == HOUR:
        return EvictionRate(per_h=(low + high) / 2, low_per_h=low, high_per_h=high, rough=False)
    return EvictionRate(
        per_h=(low + high) / 2 / MONTH_H,
        low_per_h=low / MONTH_H,
        high_per_h=high / DAY_H,
        rough=True,
    )


def hourly_band(band: str, period: str) -> str:
    """Return the band of hourly evictions, five percent wide, for a band of any period.

    Empty if nothing is published. A rough rate counts with its high end, so that checkpoints come
    rather too often than too seldom.
    """
    rate = evictions_per_h(band, period)
    if rate == NO_BAND or period == HOUR:
        return "" if rate == NO_BAND else band
    least = int(rate.high_per_h * 100) // 5 * 5
    return f"{least}-{least + 5}" if least < 20 else "20+"


def _ends(band: str) -> tuple[int, int | None] | None:
    """Both ends of a band in percent, the second None if it is open; None if unreadable."""
    text = band.replace(" ", "").removesuffix("%")
    if found := re.fullmatch(r"(\d+)-(\d+)", text):
        return int(found[1]), int(found[2])
    if found := re.fullmatch(r"<(\d+)", text):
        return 0, int(found[1])
    if found := re.fullmatch(r"(\d+)\+|>(\d+)", text):
        return int(found[1] or found[2]), None
    return None
