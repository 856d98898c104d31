"""An address that bills only while the machine runs is in the bill for those hours alone."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from commands.runs.planning.costs import cost_of_job
from commands.runs.planning.job_estimate import JobEstimate, JobPart
from infra.offer import Offer
from infra.provider import Vm
from infra.run.budget import Budget, bill
from infra.run.fold import fold
from infra.run.journal import Event, Kind
from trainer.estimate.span import Span

OFFER = Offer(
    provider="fake",
    region="a",
    size="small",
    spot_usd_per_h=0.20,
    idle_usd_per_h=0.02,
    address_usd_per_h=0.01,
)
VM = Vm(provider="fake", run_id="r", id="vm1", region="a", size="small", price_usd_per_h=0.20)


def journal(*lines: tuple[float, Kind, dict[str, object]]) -> list[Event]:
    """Events at these hours."""
    return [
        Event(number=number, at_s=hours * 3600.0, kind=kind, data=data)
        for number, (hours, kind, data) in enumerate(lines, 1)
    ]


def test_a_stopped_machine_bills_its_disk_alone() -> None:
    """Two hours of running and three of standing still: the address bills for two."""
    events = journal(
        (0, Kind.RUN_STARTED, {"run_id": "r", "name": "r"}),
        (0, Kind.CREATE_INTENDED, {"generation": 1, "offer": asdict(OFFER)}),
        (0, Kind.CREATE_ACCEPTED, {"vm": asdict(VM)}),
        (2, Kind.DEALLOCATE_INTENDED, {"reason": "done"}),
        (2, Kind.DEALLOCATED, {"reason": "done", "until_s": None}),
    )

    found = bill(fold(events), 5 * 3600.0)

    assert found.usd == pytest.approx(2 * 0.23 + 3 * 0.02)


def test_a_started_machine_and_a_new_price_bill_the_address_again() -> None:
    """After a stop of one hour it runs for one at the old price, then for one at the new."""
    events = journal(
        (0, Kind.RUN_STARTED, {"run_id": "r", "name": "r"}),
        (0, Kind.CREATE_INTENDED, {"generation": 1, "offer": asdict(OFFER)}),
        (0, Kind.CREATE_ACCEPTED, {"vm": asdict(VM)}),
        (1, Kind.DEALLOCATE_INTENDED, {"reason": "done"}),
        (1, Kind.DEALLOCATED, {"reason": "done", "until_s": None}),
        (2, Kind.START_INTENDED, {}),
        (2, Kind.START_ACCEPTED, {}),
        (3, Kind.PRICE_SEEN, {"usd_per_h": 0.30}),
    )

    found = bill(fold(events), 4 * 3600.0)

    assert found.usd == pytest.approx(0.23 + 0.02 + 0.23 + 0.33)


def test_a_disk_that_had_to_be_larger_bills_as_it_was_made() -> None:
    """Two hours of running and three of standing still cost 0.03 an hour for it, not 0.02."""
    events = journal(
        (0, Kind.RUN_STARTED, {"run_id": "r", "name": "r"}),
        (0, Kind.CREATE_INTENDED, {"generation": 1, "offer": asdict(OFFER)}),
        (0.1, Kind.CREATE_ACCEPTED, {"vm": asdict(replace(VM, idle_usd_per_h=0.03))}),
        (1, Kind.PRICE_SEEN, {"usd_per_h": 0.30}),
        (2, Kind.DEALLOCATE_INTENDED, {"reason": "done"}),
        (2, Kind.DEALLOCATED, {"reason": "done", "until_s": None}),
    )

    found = bill(fold(events), 5 * 3600.0)

    assert found.usd == pytest.approx(0.24 + 0.34 + 3 * 0.03)


def test_a_refused_create_bills_disk_and_address_until_it_was_refused() -> None:
    """Azure makes both before it says that it has no room; compute never ran."""
    events = journal(
        (0, Kind.RUN_STARTED, {"run_id": "r", "name": "r"}),
        (0, Kind.CREATE_INTENDED, {"generation": 1, "offer": asdict(OFFER)}),
        (0.1, Kind.CREATE_FAILED, {"error": "NoCapacity", "message": "no room"}),
    )

    found = bill(fold(events), 5 * 3600.0)

    assert found.usd == pytest.approx(0.1 * 0.03)
    assert found.compute_h == 0


def test_a_plan_counts_the_address_with_the_disk() -> None:
    """Ten hours that bill compute cost ten hours of address more than without one."""
    hours = Span(low=10.0, likely=10.0, high=10.0)
    job = JobEstimate(
        card="T4", card_bytes=1.0, parts=(JobPart(name="train", hours=hours, source=""),)
    )
    budget = Budget(usd=None, hours=None, evictions=None)

    costs = [
        cost_of_job(one, job, cap=None, budget=budget)
        for one in (replace(OFFER, address_usd_per_h=0.0), OFFER)
    ]

    without, with_address = (one.total.likely for one in costs if one is not None)
    assert with_address - without == pytest.approx(0.1)
