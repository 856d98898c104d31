"""Wilson's interval of a share."""

from __future__ import annotations

import math

import pytest

from trainer.scoring.shares import wilson


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
