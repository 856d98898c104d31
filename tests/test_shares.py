"""Wilson's interval of a share."""

from __future__ import annotations

import math

import pytest

from trainer.scoring.shares import paired_change, wilson


def test_the_interval_is_the_one_of_the_published_formula() -> None:
    """The bounds are where the score test's statistic is the normal quantile."""
    z = 1.959963984540054
    for right, n in ((1, 22), (7, 22), (21, 22), (430, 1000)):
        found = wilson(right, n)

        for bound in (found.low, found.high):
            statistic = (right / n - bound) / math.sqrt(bound * (1 - bound) / n)
            assert abs(statistic) == pytest.approx(z, rel=1e-9)
        assert found.low < found.value == right / n < found.high


def test_none_and_all_have_an_interval_too() -> None:
    """0 of 22 is [0, 0.149], and 22 of 22 is its mirror image."""
    none, everything = wilson(0, 22), wilson(22, 22)

    assert (none.value, none.low, round(none.high, 3)) == (0.0, 0.0, 0.149)
    assert (everything.value, everything.high) == (1.0, 1.0)
    assert everything.low == pytest.approx(1 - none.high)


def test_a_share_of_nothing_is_refused() -> None:
    """There is no share of no rows, nor of fewer rows than were right."""
    for right, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="not a share"):
            wilson(right, n)


def test_a_change_that_all_rows_share_is_not_certain() -> None:
    """From 0 of 22 to 22 of 22, and from all right to all right, the interval is not empty."""
    rise = paired_change([False] * 22, [True] * 22)
    same = paired_change([True] * 22, [True] * 22)

    assert rise.value == 1.0
    assert rise.low == pytest.approx(1 - math.hypot(0.149, 0.149), abs=1e-3)
    assert rise.high == 1.0
    assert (same.value, same.low, same.high) == pytest.approx((0, -0.149, 0.149), abs=5e-4)


def test_a_paired_change_uses_the_pairs() -> None:
    """Rows that are right both times say nothing about the change, so that it is better known."""
    mostly = paired_change([True] * 80 + [False] * 20, [True] * 90 + [False] * 10)
    crossed = paired_change([True] * 80 + [False] * 20, [False] * 10 + [True] * 90)

    assert mostly.value == crossed.value == pytest.approx(0.1)
    assert mostly.high - mostly.low < crossed.high - crossed.low
    with pytest.raises(ValueError, match="not a share"):
        paired_change([], [])
