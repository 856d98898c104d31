"""Bands of evictions become evictions per hour, whatever time the vendor counts them in."""

from __future__ import annotations

import pytest

from commands.runs.planning.job_parts import evicted_per_h
from infra.offer import Offer
from infra.renting.eviction_rate import NO_BAND, evictions_per_h, hourly_band


def test_a_share_of_an_hour_is_taken_as_it_is() -> None:
    """Azure's 5-10 % an hour is 0.075 evictions an hour, and nothing about it is rough."""
    rate = evictions_per_h("5-10", "hour")

    assert (rate.low_per_h, rate.high_per_h, rate.rough) == (0.05, 0.10, False)
    assert rate.per_h == pytest.approx(0.075)


def test_a_share_of_a_month_is_spread_over_it_and_rough() -> None:
    """AWS's 5-10 % a month is about one eviction in 400 days; at worst it befell a single day."""
    rate = evictions_per_h("5-10", "month")

    assert rate.rough
    assert rate.per_h == pytest.approx(0.075 / 730)
    assert rate.low_per_h == pytest.approx(0.05 / 730)
    assert rate.high_per_h == pytest.approx(0.10 / 24)


@pytest.mark.parametrize("period", ["hour", "month"])
def test_a_band_without_an_end_is_above_all_others(period: str) -> None:
    """`20+` and `>20` of the same period stand above 15-20, and are bounded."""
    below, above = evictions_per_h("15-20", period), evictions_per_h("20+", period)

    assert above.per_h > below.per_h
    assert above.low_per_h == pytest.approx(below.low_per_h * 20 / 15)
    assert evictions_per_h(">20%", period) == above
    assert above.high_per_h <= 0.25


@pytest.mark.parametrize("band", ["<5", "<5%", "0-5", " 0 - 5 "])
def test_the_lowest_band_is_written_in_several_ways(band: str) -> None:
    """AWS's page says `<5%`, Azure `0-5`; both begin at nothing."""
    assert evictions_per_h(band, "hour") == evictions_per_h("0-5", "hour")


@pytest.mark.parametrize(
    ("band", "period"), [("", "hour"), ("often", "month"), ("-5", "hour"), ("0-5", "year")]
)
def test_what_cannot_be_read_counts_as_not_published(band: str, period: str) -> None:
    """An unknown rate is rough, and neither free nor forbidding."""
    assert evictions_per_h(band, period) == NO_BAND
    assert NO_BAND.rough
    assert hourly_band(band, period) == ""


def test_a_band_upside_down_does_not_end_before_it_begins() -> None:
    """A stranger's `20-10` gives a rate whose high end is not below its low one."""
    rate = evictions_per_h("20-10", "hour")

    assert rate.low_per_h == rate.per_h == rate.high_per_h == 0.2


@pytest.mark.parametrize(
    ("band", "period", "expected"),
    [
        ("5-10", "hour", "5-10"),
        ("20+", "hour", "20+"),
        ("<5", "month", "0-5"),
        ("20+", "month", "0-5"),
    ],
)
def test_checkpoints_follow_an_hourly_band(band: str, period: str, expected: str) -> None:
    """A month's share is the lowest hourly band even if all of it befell one day."""
    assert hourly_band(band, period) == expected


def test_a_plan_counts_evictions_in_the_unit_of_the_offer() -> None:
    """The same figures of a month cost far less hours than those of an hour."""
    offers = [
        Offer(provider="any", region="r", size="s", spot_usd_per_h=1.0, eviction_band="10-15",
              eviction_period=period)
        for period in ("hour", "month")
    ]  # fmt: skip
    hourly, monthly = (evicted_per_h(one) for one in offers)

    assert hourly.likely == pytest.approx(0.125)
    assert monthly.likely < hourly.likely / 500
