"""What a job costs is hours times price, and cards are ordered by the sum: by values alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from commands.runs.planning.costs import Cost, cost_of_job
from commands.runs.planning.job_estimate import JobEstimate, JobPart
from commands.runs.planning.ranking import (
    JobOffer,
    as_tried,
    cheapest_by_card,
    in_order_of_cost,
    job_offer,
    reference_offers,
)
from commands.runs.planning.services import SERVICES, service_costs
from infra.offer import Offer
from infra.run.budget import Budget
from trainer.estimate.span import Span

T4 = Offer(
    provider="azure",
    region="eastus",
    size="Standard_NC4as_T4_v3",
    gpu="T4",
    gpu_memory_gb=16,
    spot_usd_per_h=0.15,
    on_demand_usd_per_h=0.526,
    idle_usd_per_h=0.02,
    price_source="retail prices api",
    priced_at="2026-11-30T08:00:00+00:00",
)
A10 = replace(T4, size="Standard_NV36ads_A10_v5", gpu="A10", spot_usd_per_h=0.59)
FREE = Budget(usd=None, hours=None)


def job(card: str = "T4", *, train: Span | None = None, **changes: Any) -> JobEstimate:
    """A job of half an hour before and a quarter after its training, of 10 M tokens."""
    parts = (
        JobPart(name="wait", hours=Span.exactly(0.25), billed=False),
        JobPart(name="set-up", hours=Span.exactly(0.5)),
        JobPart(name="train", hours=train or Span(low=2.0, likely=3.0, high=6.0)),
        JobPart(name="evictions", hours=Span(low=0.0, likely=1.0, high=2.0)),
        JobPart(name="fetch", hours=Span.exactly(0.25)),
    )
    made = JobEstimate(
        card=card,
        card_bytes=15.8e9,
        memory_bytes=Span(low=6e9, likely=7e9, high=8e9),
        fits=True,
        trained_tokens=10e6,
        parts=parts,
    )
    return replace(made, **changes)


def cost(budget: Budget = FREE, *, cap: float | None = 0.25, offer: Offer = T4) -> Cost:
    """The cost of that job."""
    found = cost_of_job(offer, job(), cap=cap, budget=budget)
    assert found is not None
    return found


def test_dollars_are_billed_hours_times_price_and_disk_as_long_as_it_exists() -> None:
    """4.75 billed hours at $0.15, and 5 hours of disk and address at $0.02."""
    found = cost()

    assert found.compute.likely == pytest.approx(4.75 * 0.15)
    assert found.disk.likely == pytest.approx(5.0 * 0.02)
    assert found.total.low == pytest.approx(2.75 * 0.15 + 3.0 * 0.02)
    assert found.total.high == pytest.approx(8.75 * 0.15 + 9.0 * 0.02)
    assert found.on_demand_usd == pytest.approx(4.75 * 0.526 + 0.1)
    assert found.usd_per_million_tokens == pytest.approx((4.75 * 0.15 + 0.1) / 10)


def test_the_worst_case_is_the_high_hours_at_the_cap() -> None:
    """Not at the price of now; and without a cap at that on demand, which no spot price passes."""
    assert cost().worst_usd == pytest.approx(8.75 * 0.25 + 0.18)
    assert cost(cap=None).worst_usd == pytest.approx(8.75 * 0.526 + 0.18)
    assert not cost().budget_limits


def test_a_budget_ends_the_worst_case() -> None:
    """Dollars end it where they are fewer; hours where they are fewer than the job may take."""
    by_usd, by_hours = cost(Budget(usd=2.0)), cost(Budget(hours=5.0))

    assert (by_usd.worst_usd, by_usd.budget_limits) == (2.0, True)
    assert by_hours.worst_usd == pytest.approx(5.0 * 0.25 + 0.18)
    assert by_hours.budget_limits
    assert by_usd.budget_suffices
    assert by_hours.budget_suffices


@pytest.mark.parametrize(
    ("hours", "share"), [(0.25, 0.0), (0.5, 0.0), (2.5, 0.5), (4.5, 1.0), (4.7, 1.0)]
)
def test_a_budget_too_small_reaches_a_share_of_the_steps(hours: float, share: float) -> None:
    """After half an hour of set-up, three hours of steps and one of evictions are the training."""
    by_hours = cost(Budget(hours=hours))
    by_usd = cost(Budget(usd=hours * (0.15 + 0.02)))

    assert by_hours.trained_share == pytest.approx(share)
    assert by_usd.trained_share == pytest.approx(share)
    assert not by_hours.budget_suffices
    assert not by_usd.budget_suffices


def test_unknown_hours_have_no_cost() -> None:
    """Without the parts of a job there are no dollars, and no guess."""
    assert cost_of_job(T4, job(parts=()), cap=0.25, budget=FREE) is None


def priced(offer: Offer, made: JobEstimate, *, cap: float | None = 1.0) -> JobOffer:
    """An offer with its cost."""
    return job_offer(offer, made, cap=cap, budget=FREE)


def test_cards_are_ordered_by_the_whole_job_and_places_stay() -> None:
    """An A10 that is five times as fast costs less in all, though four times as much an hour."""
    slow, fast = job("T4", train=Span.exactly(20.0)), job("A10", train=Span.exactly(4.0))
    west = replace(T4, region="westus2")
    full = replace(A10, region="westus3", blocked_by="no capacity")
    zonal = replace(A10, zone="1")

    listed = in_order_of_cost(
        [priced(one, slow if one.gpu == "T4" else fast) for one in (west, T4, full, zonal, A10)]
    )

    assert [one.offer for one in listed] == [A10, west, T4, zonal, full]


def test_an_offer_on_which_the_job_cannot_work_is_blocked() -> None:
    """It is tried last, and never rented where any card will do."""
    small = job("T4", fits=False, memory_bytes=Span.exactly(20e9))

    first, last = as_tried(in_order_of_cost([priced(T4, small), priced(A10, job("A10"))]))

    assert first == A10
    assert last.blocked_by == "a T4 is too small: 20.0 GB needed, 15.8 there"
    assert not last.clears


def test_a_machine_with_too_little_memory_is_no_offer() -> None:
    """The base passes through the memory of the machine: 28 GiB of it are not 40."""
    assert priced(T4, job()).is_free
    short = job_offer(T4, job(), cap=None, budget=FREE, host_bytes=40 * 2**30)

    assert not short.is_free
    assert short.too_small == (
        "the machine has 28 GiB of memory, and loading the base takes 40 GiB; take a larger size, "
        "or save the base as safetensors"
    )


def test_cards_that_nobody_offers_stand_at_their_reference_prices() -> None:
    """Every card of the catalog is there once, the cheapest size, dated, blocked above the cap."""
    found = {one.gpu: one for one in reference_offers("azure", cap=0.25, idle_usd_per_h=0.02)}

    assert set(found) == {"T4", "A10", "A100", "H100"}
    assert found["T4"].size == "Standard_NC4as_T4_v3"
    assert not found["T4"].blocked_by
    assert "above the cap" in found["A10"].blocked_by
    assert all(one.priced_at[:2] == "20" for one in found.values())
    others = {gpu: priced(one, job(gpu), cap=0.25) for gpu, one in found.items()}
    ranked = cheapest_by_card([priced(T4, job(), cap=0.25)], others)
    assert [one.offer.gpu for one in ranked] == ["T4", "A10", "A100", "H100"]
    assert ranked[0].offer == T4


def test_a_service_is_priced_by_its_tier() -> None:
    """Ten million tokens of an 8 B base, of a 30 B base, and of one that neither takes."""
    small = {one.name: one.usd for one in service_costs(8e9, 10e6)}
    large = {one.name: one.usd for one in service_costs(30e9, 10e6)}

    assert small == pytest.approx({"Together": 4.80, "Fireworks": 5.00})
    assert large == pytest.approx({"Together": 15.00, "Fireworks": 30.00})
    assert service_costs(900e9, 10e6) == ()
    assert service_costs(None, 10e6) == ()
    assert all(one.page and one.seen for one in SERVICES)
    dear = replace(SERVICES[0], minimum_usd=4.0)
    assert service_costs(8e9, 1e6, services=(dear,))[0].usd == 4.0
