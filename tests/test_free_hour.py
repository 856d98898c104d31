"""A first hour that the vendor cuts short is not counted where the vendor bills none."""

from __future__ import annotations

from typing import Any

import pytest

from infra.provider import Vm
from infra.run.billing_spans import Span
from infra.run.state import RunState
from infra.run.stop_reasons import without_free_hour

START_S = 1_800_000_000.0
STOP: dict[str, Any] = {"reason": "evicted", "certain": True, "since_s": START_S}


def hours(
    stop: dict[str, Any], *, minutes: float, free: bool = True, before: tuple[Span, ...] = ()
) -> float:
    """The hours of compute that count for a machine which ran for so long."""
    end_s = START_S + 60 * minutes
    vm = Vm(
        provider="aws",
        run_id="run-a",
        id="a/r/i-1",
        region="r",
        size="g4dn.xlarge",
        interruption_is_free=free,
    )
    spans = (*before, Span(start_s=START_S, end_s=end_s, usd_per_h=0.2, compute=True))
    counted = without_free_hour(RunState(vm=vm), spans, stop, end_s)
    return sum((one.end_s or 0) - one.start_s for one in counted if one.compute) / 3600


@pytest.mark.parametrize("reason", ["evicted", "price"])
def test_first_hour_that_the_vendor_cuts_short_is_free(reason: str) -> None:
    """Whether for capacity or for its price; an hour that is full counts."""
    assert hours({**STOP, "reason": reason}, minutes=59) == 0
    assert hours({**STOP, "reason": reason}, minutes=60) == 1


@pytest.mark.parametrize(
    "change", [{"reason": "user"}, {"reason": "returned"}, {"certain": False}, {"since_s": None}]
)
def test_what_is_not_reported_as_an_interruption_counts(change: dict[str, Any]) -> None:
    """A person's stop, a shutdown inside, and what is only inferred are counted in full."""
    assert hours({**STOP, **change}, minutes=30) == 0.5


def test_only_the_last_start_is_free() -> None:
    """An earlier start counts, and so does every hour of a vendor that waives none."""
    idle = Span(start_s=START_S - 60, end_s=START_S, usd_per_h=0.01, compute=False)
    ran = Span(start_s=START_S - 3660, end_s=START_S - 60, usd_per_h=0.2, compute=True)

    assert hours(STOP, minutes=30, before=(ran, idle)) == 1
    assert hours(STOP, minutes=30, free=False) == 0.5
