"""Offers say what could be rented now, at which price and risk, and why something cannot."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from arm import Disruption, DisruptionKind
from arm.harness import T4, AzureHarness, azure, spec
from arm.replies import Reply
from support.runs import wait_until

from infra.azure.availability import bands_query, restrictions_of, usage_of
from infra.azure.offers import ZONED_PLACES_MAX
from infra.azure.permissions import THREAD
from infra.catalog.gpus import UnknownGpu
from infra.errors import NoCapacity
from infra.offer import Offer, Want
from infra.renting.gather import GATHER_THREAD


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AzureHarness]:
    """A cloud that sells GPUs."""
    with azure(tmp_path) as harness:
        yield harness


def ask(harness: AzureHarness, *regions: str, cap: float | None = None) -> list[Offer]:
    """Offers of a T4."""
    want = Want(gpu="T4", regions=regions, max_price_usd_per_h=cap)
    return harness.provider().offers(want)


def of(offers: list[Offer], size: str, region: str) -> Offer:
    """The one offer of that size there."""
    place = (size, region, "")
    (found,) = [one for one in offers if (one.size, one.region, one.zone) == place]
    return found


def test_offer_tells_price_age_band_and_quota(harness: AzureHarness) -> None:
    """Everything that a choice needs is in the offer, with its source."""
    harness.cloud.market.bands[T4.lower(), "eastus"] = "0-5"
    harness.cloud.market.cores["eastus"] = 10

    offer = of(ask(harness, "eastus", "westus2"), T4, "eastus")

    assert (offer.spot_usd_per_h, offer.on_demand_usd_per_h) == (0.149174, 0.526)
    assert (offer.eviction_band, offer.quota_left) == ("0-5", 2)
    assert offer.price_source == "retail prices api"
    assert offer.priced_at.startswith("2026-09-21")
    assert 0.015 < offer.idle_usd_per_h < 0.02
    assert of(ask(harness, "eastus", "westus2"), T4, "westus2").eviction_band == ""


def test_plan_is_quick_and_creates_nothing(harness: AzureHarness) -> None:
    """All regions are asked with well under 3 s of work, cloud included, and with reads only."""
    ask(harness)  # the SDK's own first use
    before = len(harness.cloud.requests)
    began_s = time.process_time()

    offers = harness.provider(state_dir=harness.state_dir / "other").offers(Want(gpu="T4"))

    assert time.process_time() - began_s < 3
    assert len({one.region for one in offers}) == 15
    requests = harness.cloud.requests[before:]
    questions = ("resourcegraph", "placementscores")
    orders = [r for r in requests if not any(word in r.path.lower() for word in questions)]
    assert {r.method for r in orders} == {"GET"}
    assert harness.cloud.leftovers() == []
    assert offers == sorted(offers, key=lambda one: bool(one.blocked_by))


def test_dead_sources_are_done_without(harness: AzureHarness) -> None:
    """With nobody answering, the catalog's dated prices come, marked as such, after no waits."""
    harness.provider().context.arm.warm()
    reply = Reply(status=403, body={"error": {"code": "AuthorizationFailed", "message": "No."}})
    harness.cloud.disruptions.add(Disruption(kind=DisruptionKind.ANSWER, times=999, reply=reply))
    began_s = harness.cloud.clock.now()

    offers = ask(harness, "eastus", "westus2")

    assert harness.cloud.clock.now() - began_s < 5
    assert all("catalog of" in one.price_source for one in offers)
    assert {one.quota_left for one in offers} == {None}
    assert {one.blocked_by for one in offers} == {""}


def test_price_that_nobody_tells_is_guessed_for_the_size_itself(harness: AzureHarness) -> None:
    """Sixteen cores are not offered at the price of four, nor spot at that of on demand."""
    reply = Reply(status=403, body=None)
    harness.cloud.disruptions.add(Disruption(kind=DisruptionKind.ANSWER, times=999, reply=reply))

    offers = ask(harness, "eastus", "westus2")

    guessed = {one.region: one for one in offers if one.size == "Standard_NC16as_T4_v3"}
    assert {one.spot_usd_per_h for one in guessed.values()} == {round(0.3 * 1.204, 4)}
    assert {one.region for one in guessed.values() if not one.blocked_by} == {"eastus", "westus2"}


def test_slow_sources_are_not_waited_for(harness: AzureHarness) -> None:
    """The list of sizes takes Azure half a minute: the answer comes without it."""
    slow = Disruption(kind=DisruptionKind.SLOW, path="/skus$", times=999, slow_s=600)
    harness.cloud.disruptions.add(slow)
    harness.changes = {"offers_wait_s": 0.5}

    def quota_left() -> int | None:
        return of(ask(harness, "eastus"), T4, "eastus").quota_left

    wait_until(lambda: quota_left() == 25)  # a busy computer may need more than one try
    late = [one for one in threading.enumerate() if one.name == GATHER_THREAD]
    slow.enough.set()

    assert late


def test_too_small_quota_blocks_before_anything_is_made(harness: AzureHarness) -> None:
    """New accounts have 3 spot vCPUs, one less than the smallest T4: said with the link."""
    harness.cloud.market.spot_cores = 3

    offers = ask(harness, "eastus", "westus2")

    assert all("0 of 3 vCPUs used" in one.blocked_by for one in offers)
    assert all("https://portal.azure.com" in one.blocked_by for one in offers)


def test_region_closed_to_the_account_is_blocked(harness: AzureHarness) -> None:
    """A size that this subscription may not use somewhere says so; a closed zone does not count."""
    harness.cloud.market.restricted.add((T4.lower(), "eastus"))

    offers = ask(harness, "eastus", "westus2")

    assert "closed to this subscription" in of(offers, T4, "eastus").blocked_by
    assert of(offers, T4, "westus2").blocked_by == ""
    assert (offers[0].region, offers[0].size) == ("westus2", T4)


def test_price_above_cap_says_the_price(harness: AzureHarness) -> None:
    """Whoever sets the cap too low learns the market price without renting anything."""
    offer = of(ask(harness, "eastus", cap=0.10), T4, "eastus")

    assert "costs 0.1492 USD/h now, above the cap of 0.1000" in offer.blocked_by


def test_region_may_be_written_as_the_portal_does(harness: AzureHarness) -> None:
    """`West US 2` is `westus2`, for the price list and for the machine, and is offered once."""
    offers = ask(harness, "West US 2", "westus2")

    best = offers[0]
    assert (best.region, best.size, best.blocked_by) == ("westus2", T4, "")
    assert len([one for one in offers if (one.size, one.zone) == (T4, "")]) == 1


def test_cheapest_comes_first_unless_regions_are_named(harness: AzureHarness) -> None:
    """Named regions keep their order; otherwise the price decides."""
    harness.cloud.market.prices[T4.lower(), "japaneast"] = 0.08

    assert ask(harness)[0].region == "japaneast"
    named = ask(harness, "westus2", "japaneast")
    assert [one.region for one in named[:2]] == ["westus2", "japaneast"]


def test_a10g_means_the_a10(harness: AzureHarness) -> None:
    """The name that only AWS uses finds Azure's card."""
    offers = harness.provider().offers(Want(gpu="A10G", regions=["eastus"]))

    assert {(one.gpu, one.size) for one in offers} == {("A10", "Standard_NV36ads_A10_v5")}


def test_family_names_are_compared_folded() -> None:
    """One account spells one family with and without spaces."""
    rows = [{"name": {"value": "StandardNVADSA10v5Family "}, "currentValue": 1, "limit": 2}]

    assert usage_of(rows) == {"standardnvadsa10v5family": (1, 2)}


def test_sizes_that_are_never_spot_are_named() -> None:
    """A size without `LowPriorityCapable` cannot be rented at all."""
    row = {"resourceType": "virtualMachines", "name": "Standard_B1s", "capabilities": []}

    assert restrictions_of([row], "eastus") == {
        "standard_b1s": "Azure does not rent this size as spot"
    }


def test_restriction_counts_wherever_azure_writes_it_down() -> None:
    """The closed region may stand in either place, and rows of other regions do not matter."""
    capabilities = [{"name": "LowPriorityCapable", "value": "true"}]
    here = {"resourceType": "virtualMachines", "name": T4, "capabilities": capabilities}
    closed = {
        "type": "Location",
        "restrictionInfo": {"locations": ["EastUS"]},
        "reasonCode": "QuotaId",
    }
    other = {"resourceType": "virtualMachines", "name": T4, "locations": ["westus2"]}

    assert restrictions_of([here | {"locations": ["eastus"]}, other], "eastus") == {}
    restrictions = restrictions_of([here | {"restrictions": [closed]}], "eastus")
    assert restrictions == {T4.lower(): "closed to this subscription (QuotaId)"}


def test_query_names_sizes_and_regions_in_lower_case() -> None:
    """Resource Graph is asked for all places in one question."""
    query = bands_query(["Standard_A"], ["EastUS", "westus2"])

    assert "in~ ('standard_a')" in query
    assert "in~ ('eastus', 'westus2')" in query


def test_unknown_gpu_names_what_there_is(harness: AzureHarness) -> None:
    """A misspelt card is a mistake of the config, told with candidates."""
    with pytest.raises(UnknownGpu, match="T5"):
        harness.provider().offers(Want(gpu="T5"))


def test_zones_come_after_the_regions_without_the_closed_ones(harness: AzureHarness) -> None:
    """Single zones are later fallbacks; zone 3 is closed to this subscription."""
    offers = ask(harness, "eastus", "westus2")

    zonal = [one for one in offers if one.zone]
    assert {one.zone for one in zonal} == {"1", "2"}
    assert len(zonal) == 2 * ZONED_PLACES_MAX
    assert [bool(one.zone) for one in offers] == sorted(bool(one.zone) for one in offers)


def test_zone_with_room_is_taken_when_its_region_is_full(harness: AzureHarness) -> None:
    """A refusal of the region says nothing about its zones, and one of a zone only about it."""
    harness.set_capacity("eastus", free=False)
    harness.cloud.market.free_zones.add(("eastus", "2"))
    provider = harness.provider()
    refused = []
    for _ in range(9):
        first = ask(harness, "eastus", cap=0.25)[0]
        try:
            vm = provider.create(spec(zone=first.zone, size=first.size))
        except NoCapacity:
            refused.append((first.size, first.zone))
        else:
            break

    assert (vm.zone, vm.size) == ("2", T4)
    assert len(refused) == len(set(refused)) == 3  # the two sizes under the cap, and zone 1
    assert harness.cloud.machines()[0].more["zones"] == ["2"]


def test_poor_placement_score_puts_a_place_behind(harness: AzureHarness) -> None:
    """Azure's own guess counts more than the user's order of regions, and is asked once."""
    harness.cloud.market.scores |= {(T4.lower(), "eastus"): "Low", (T4.lower(), "westus2"): "High"}

    offers = ask(harness, "eastus", "westus2")
    ask(harness, "eastus", "westus2")

    assert [(one.region, one.placement_score) for one in offers[:2]] == [
        ("westus2", "High"),
        ("eastus", "Low"),
    ]
    requests = [one for one in harness.cloud.requests if "/placementscores/" in one.path.lower()]
    assert len(requests) == 1
    harness.advance(1201)
    harness.cloud.market.scores.clear()
    assert ask(harness, "eastus", "westus2")[0].region == "eastus"


def test_closed_placement_scores_are_done_without(harness: AzureHarness) -> None:
    """Without the role nothing is missing but the score, and nobody asks again at once."""
    harness.cloud.market.may_score = False

    first = ask(harness, "eastus", "westus2")[0]
    ask(harness, "eastus", "westus2")

    assert (first.region, first.placement_score) == ("eastus", "")
    requests = [one for one in harness.cloud.requests if "/placementscores/" in one.path.lower()]
    assert len(requests) == 1


def test_cloud_closes_after_the_last_late_request(tmp_path: Path) -> None:
    """A plan that ends early leaves somebody asking, who is answered before the cloud goes."""
    with azure(tmp_path) as harness:
        slow = Disruption(kind=DisruptionKind.SLOW, path="/permissions$", slow_s=600)
        harness.cloud.disruptions.add(slow)
        with pytest.raises(UnknownGpu):
            harness.provider().offers(Want(gpu="RTX9090"))
        late = [one for one in threading.enumerate() if one.name in {GATHER_THREAD, THREAD}]
        threading.Timer(0.2, slow.enough.set).start()

    assert late
    assert not any(one.is_alive() for one in late)
