"""What AWS offers now is listed zone by zone, with what stands in its way, and never waited for."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from arm import Disruption, DisruptionKind
from ec2.harness import A10G, T4, AwsHarness, aws, spec
from ec2.ledger import ADDRESS_USD_PER_H

from infra.aws.errors import AwsErrorInfo, translate
from infra.aws.quota import SpotQuota, explained, read_quota
from infra.errors import NoCapacity, OverQuota, PriceAboveCap, ProviderError, SignedOut
from infra.offer import Offer, Want

EAST, WEST = "us-east-1", "us-west-2"


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account with networks, and room for 64 vCPUs of spot machines in each region."""
    with aws(tmp_path / "state") as made:
        yield made


def listed(
    harness: AwsHarness,
    *regions: str,
    gpu: str = "T4",
    cap: float | None = None,
    disk_gb: int = 128,
) -> list[Offer]:
    """What a new process is offered."""
    want = Want(gpu=gpu, regions=regions, max_price_usd_per_h=cap, disk_gb=disk_gb)
    return harness.provider().offers(want)


def at(offers: list[Offer], zone: str, size: str = T4) -> Offer:
    """The offer of a size in a zone."""
    (found,) = [one for one in offers if (one.zone, one.size) == (zone, size)]
    return found


def test_each_zone_is_a_place_with_its_price(harness: AwsHarness) -> None:
    """Zones of one region differ in price; a zone that does not rent out the size is not there."""
    harness.cloud.set_price(T4, "us-east-1c", 0.11)

    offers = [one for one in listed(harness, EAST) if one.size == T4]

    assert [one.zone[-1] for one in offers] == ["c", "a", "b", "d", "f"]
    assert [round(one.spot_usd_per_h, 4) for one in offers][:2] == [0.11, 0.1894]
    first = offers[0]
    assert (first.provider, first.region, first.place) == ("aws", EAST, "us-east-1/us-east-1c")
    assert (first.gpu, first.gpu_memory_gb, first.on_demand_usd_per_h) == ("T4", 16, 0.526)
    assert first.price_source == "EC2 spot price history"
    assert first.priced_at.startswith("20")
    assert not first.blocked_by


def test_an_offer_names_interruptions_by_the_month_and_machines_by_the_quota(
    harness: AwsHarness,
) -> None:
    """AWS counts interruptions in a month; 64 vCPUs are 16 machines of 4."""
    harness.cloud.market.bands[T4, EAST] = 4

    offer = at(listed(harness, EAST), "us-east-1a")

    assert (offer.eviction_band, offer.eviction_period) == ("20+", "month")
    assert offer.quota_left == 16
    assert at(listed(harness, EAST), "us-east-1a", "g4dn.4xlarge").quota_left == 4


def test_a_stopped_machine_still_pays_for_its_disk(harness: AwsHarness) -> None:
    """128 GB of gp3 cost a third of a dollar a day, running or not."""
    assert at(listed(harness, EAST), "us-east-1a").idle_usd_per_h == pytest.approx(0.014027)
    assert at(listed(harness, EAST, disk_gb=256), "us-east-1a").idle_usd_per_h == pytest.approx(
        0.028055, abs=1e-6
    )


def test_an_address_is_paid_for_while_the_machine_runs(harness: AwsHarness) -> None:
    """EC2 takes the public address back at each stop: it bills beside compute, and only then."""
    offer = at(listed(harness, EAST), "us-east-1a")

    assert offer.address_usd_per_h == ADDRESS_USD_PER_H
    assert offer.beside_compute_usd_per_h == pytest.approx(0.014027 + ADDRESS_USD_PER_H)


def test_one_card_is_offered_in_every_size_and_no_size_with_several(harness: AwsHarness) -> None:
    """`A10` is the A10G here; a machine with four of them is not what was wanted."""
    offers = listed(harness, EAST, gpu="A10")

    assert {one.gpu for one in offers} == {"A10G"}
    assert {one.size for one in offers} == {
        "g5.xlarge", "g5.2xlarge", "g5.4xlarge", "g5.8xlarge", "g5.16xlarge",
    }  # fmt: skip


def test_named_regions_keep_their_order_and_others_come_by_price(harness: AwsHarness) -> None:
    """The user's order of regions is kept; without one the cheapest place of all comes first."""
    harness.cloud.set_price(T4, "eu-west-3b", 0.05)
    harness.cloud.set_price(T4, "us-east-1b", 0.06)

    named = [one for one in listed(harness, WEST, EAST) if one.size == T4]
    free = listed(harness)

    assert [one.region for one in named] == [WEST] * 3 + [EAST] * 5
    assert named[3].zone == "us-east-1b"
    assert [one.zone for one in free[:2]] == ["eu-west-3b", "us-east-1b"]
    assert [one.spot_usd_per_h for one in free] == sorted(one.spot_usd_per_h for one in free)


def test_a_region_is_taken_in_any_case_and_once(harness: AwsHarness) -> None:
    """Spellings of one region are one region; a name that does not exist is blocked, not asked."""
    offers = listed(harness, "US-East-1", EAST, "us-east-9")

    assert Counter(one.region for one in offers if one.size == T4) == {EAST: 5, "us-east-9": 1}
    (odd,) = [one for one in offers if one.region == "us-east-9" and one.size == T4]
    assert odd.blocked_by.startswith("AWS has no region `us-east-9`; did you mean `us-east-1`")
    assert not odd.clears
    assert {one.region for one in harness.cloud.requests} == {EAST}


def test_a_region_without_the_card_says_so(harness: AwsHarness) -> None:
    """No zone of us-west-1 rents out an A10G: the offer stays, blocked for good."""
    (offer,) = [one for one in listed(harness, "us-west-1", gpu="A10G") if one.size == A10G]

    assert (offer.zone, offer.clears) == ("", False)
    assert offer.blocked_by == "no zone of us-west-1 rents out a g5.xlarge"


def test_no_quota_blocks_a_region_with_its_page(harness: AwsHarness) -> None:
    """A new account has 0 vCPUs: that is told as 0 of 4, with that region's page."""
    harness.cloud.market.quotas[EAST, "L-3819A6DF"] = 0.0

    offers = listed(harness, EAST, WEST)

    blocked = at(offers, "us-east-1a")
    assert "0 of 4 vCPUs" in blocked.blocked_by
    assert "https://us-east-1.console.aws.amazon.com/servicequotas/" in blocked.blocked_by
    assert (blocked.quota_left, blocked.clears) == (0, False)
    assert offers[0].region == WEST
    assert "0 of 8 vCPUs" in at(offers, "us-east-1a", "g4dn.2xlarge").blocked_by


def test_what_runs_is_taken_from_the_quota_and_what_is_stopped_is_not(harness: AwsHarness) -> None:
    """8 vCPUs leave room for one more xlarge while one runs, and for two when it is stopped."""
    harness.cloud.market.spot_vcpus = 8
    provider = harness.provider()
    vm = provider.create(spec())
    harness.advance(60)

    running = at(listed(harness, EAST), "us-east-1a")
    provider.deallocate(vm)
    stopped = at(listed(harness, EAST), "us-east-1a")

    assert (running.quota_left, stopped.quota_left) == (1, 2)
    blocked = at(listed(harness, EAST), "us-east-1a", "g4dn.4xlarge").blocked_by
    assert "8 of 16 vCPUs needed (0 of 8 in use)" in blocked


@pytest.mark.parametrize(
    ("error", "clears", "minutes"),
    [
        (NoCapacity("none there"), True, 3),
        (PriceAboveCap("too dear", current_usd_per_h=0.5), True, 3),
        (OverQuota("a limit of the account is reached (VolumeLimitExceeded)"), False, 60),
    ],
)
def test_a_refusal_counts_for_its_zone_and_three_minutes(
    harness: AwsHarness, error: ProviderError, *, clears: bool, minutes: int
) -> None:
    """Capacity and price are a zone's own and change fast; a limit is the whole region's."""
    provider = harness.provider()
    provider._refusal_cache.note(spec().offer, error)

    soon = listed(harness, EAST)
    harness.advance(minutes * 60 + 1)
    later = listed(harness, EAST)

    assert str(error) in at(soon, "us-east-1a").blocked_by
    assert at(soon, "us-east-1a").clears is clears
    assert bool(at(soon, "us-east-1b").blocked_by) is not clears
    assert bool(at(soon, "us-east-1a", "g4dn.2xlarge").blocked_by) is not clears
    assert not at(later, "us-east-1a").blocked_by


def test_a_refusal_for_quota_ends_when_the_quota_can_be_read(harness: AwsHarness) -> None:
    """The quota that AWS grants meanwhile counts at once, not an hour later."""
    info = AwsErrorInfo(
        code="MaxSpotInstanceCountExceeded", message="Max spot instance count", region=EAST
    )
    refusal = translate(info, doing="rent")
    harness.provider()._refusal_cache.note(spec().offer, refusal)

    assert not at(listed(harness, EAST), "us-east-1a").blocked_by
    harness.cloud.deny("servicequotas:GetServiceQuota")
    offers = listed(harness, EAST, gpu="A10G")
    assert str(refusal) in at(offers, "us-east-1b", A10G).blocked_by


def test_a_price_above_the_cap_blocks_until_it_falls(harness: AwsHarness) -> None:
    """Zones under the cap come first; the others say what they cost."""
    harness.cloud.set_price(T4, "us-east-1a", 0.5)

    offers = listed(harness, EAST, cap=0.3)

    blocked = at(offers, "us-east-1a")
    assert blocked.blocked_by == "costs 0.5000 USD/h now, above the cap of 0.3000"
    assert blocked.clears
    assert not offers[0].blocked_by


@pytest.mark.parametrize("code", ["OptInRequired", "AuthFailure"])
@pytest.mark.parametrize("may_list", [True, False])
def test_a_region_that_is_not_enabled_says_how_to(
    harness: AwsHarness, code: str, *, may_list: bool
) -> None:
    """AWS's own refusal there looks like a lack of credentials; the other regions go on."""
    harness.cloud.world.opt_in_code = code
    if not may_list:
        harness.cloud.deny("ec2:DescribeRegions")
    provider = harness.provider()

    offers = provider.offers(Want(gpu="T4", regions=["ap-east-1", EAST]))

    blocked = [one for one in offers if one.region == "ap-east-1"]
    hint = "`aws account enable-region --region-name ap-east-1`"
    assert {one.blocked_by for one in blocked} == {
        f"the account has not enabled the region ap-east-1: {hint}"
    }
    assert offers[0].region == EAST
    assert offers[0].price_source == "EC2 spot price history"
    assert provider.account_problem() is None


def test_without_a_login_the_catalog_offers_and_the_account_fails(harness: AwsHarness) -> None:
    """Expired credentials are found by one request; prices are half of on demand, and say so."""
    harness.cloud.expire_credentials()
    provider = harness.provider()

    offers = provider.offers(Want(gpu="A10G", regions=[EAST, WEST]))

    problem = provider.account_problem()
    assert isinstance(problem, SignedOut)
    assert "aws sso login" in problem.hint
    first = offers[0]
    assert (first.size, first.region, first.zone, first.spot_usd_per_h) == (A10G, EAST, "", 0.503)
    assert first.price_source == "half of on demand, catalog of 2026-07-20"
    assert first.priced_at == "2026-07-20"
    assert offers[1].price_source == "half of on demand, catalog of 2026-07-20, us-east-1"
    assert harness.cloud.requests == []

    harness.cloud.renew_credentials()
    assert provider.offers(Want(gpu="A10G", regions=[EAST]))[0].zone
    assert provider.account_problem() is None


def test_an_aws_that_is_silent_is_not_waited_for(harness: AwsHarness) -> None:
    """After `offers_wait_s` the catalog answers, without zones; nobody waits for the rest."""
    harness.changes = {"offers_wait_s": 0.5}
    slow = Disruption(kind=DisruptionKind.SLOW, times=999, slow_s=600)
    harness.cloud.disruptions.add(slow)
    began_s = time.monotonic()

    offers = listed(harness, EAST)
    waited_s = time.monotonic() - began_s
    slow.enough.set()

    assert waited_s < 60
    assert {one.zone for one in offers} == {""}
    assert {one.price_source for one in offers} == {"half of on demand, catalog of 2026-07-20"}


def test_what_was_learnt_earlier_stands_in_for_what_does_not_answer(harness: AwsHarness) -> None:
    """Yesterday's prices and zones are better than the catalog, and show their age."""
    before = listed(harness, EAST)
    harness.advance(20 * 3600)
    for right in ("ec2:Describe*", "servicequotas:*"):
        harness.cloud.deny(right)

    after = listed(harness, EAST)

    assert [(one.zone, one.spot_usd_per_h) for one in after] == [
        (one.zone, one.spot_usd_per_h) for one in before
    ]
    assert at(after, "us-east-1a").priced_at == at(before, "us-east-1a").priced_at
    assert at(after, "us-east-1a").quota_left is None


def test_a_region_costs_a_few_requests_whatever_it_sells(harness: AwsHarness) -> None:
    """Price, offerings, quota and its use: five requests for all sizes and zones of a region."""
    listed(harness, EAST)

    assert Counter(one.operation for one in harness.cloud.requests) == {
        "GetCallerIdentity": 1,
        "DescribeSpotPriceHistory": 1,
        "DescribeInstanceTypeOfferings": 1,
        "GetServiceQuota": 1,
        "DescribeInstances": 1,
        "DescribeSpotInstanceRequests": 1,
    }
    harness.cloud.requests.clear()
    listed(harness, EAST)
    assert {one.operation for one in harness.cloud.requests} == {
        "GetCallerIdentity", "GetServiceQuota", "DescribeInstances", "DescribeSpotInstanceRequests",
    }  # fmt: skip


def test_a_running_machine_is_priced_by_its_own_zone_and_seldom(harness: AwsHarness) -> None:
    """Observations come every few seconds; the price is asked for every 15 minutes."""
    offers = harness.provider()._offers

    prices = [offers.price_now(T4, EAST, "us-east-1b") for _ in range(3)]
    harness.cloud.set_price(T4, "us-east-1b", 0.25)
    before = offers.price_now(T4, EAST, "us-east-1b")
    harness.advance(901)
    after = offers.price_now(T4, EAST, "us-east-1b")

    assert {*prices, before} == {0.193147}
    assert after == 0.25
    assert len(harness.cloud.calls("DescribeSpotPriceHistory")) == 2


def test_a_price_that_nobody_answers_is_none_and_not_fetched_again_soon(
    harness: AwsHarness,
) -> None:
    """Without the right to read prices a machine is observed without one."""
    harness.cloud.deny("ec2:DescribeSpotPriceHistory")
    offers = harness.provider()._offers

    assert offers.price_now(T4, EAST, "us-east-1b") is None
    harness.cloud.allow("ec2:DescribeSpotPriceHistory")
    assert offers.price_now(T4, EAST, "us-east-1b") is None
    harness.advance(901)
    assert offers.price_now(T4, EAST, "us-east-1b") is not None


def test_the_quota_of_a_region_counts_what_the_account_runs(harness: AwsHarness) -> None:
    """Machines of other runs and open requests count; a limit of 0 is read by one request."""
    provider = harness.provider()
    provider.create(spec())
    harness.advance(60)

    quota = read_quota(provider.context.clients, EAST)

    assert (quota.limit, quota.used, quota.left) == (64, 4, 60)
    harness.cloud.market.spot_vcpus = 0
    harness.cloud.requests.clear()
    assert read_quota(provider.context.clients, EAST).left == 0
    assert [one.operation for one in harness.cloud.requests] == ["GetServiceQuota"]


def test_a_refusal_for_quota_gets_the_figures_that_aws_leaves_out(harness: AwsHarness) -> None:
    """EC2 names neither limit nor use of the spot quota: both are added, nothing is lost."""
    harness.cloud.market.spot_vcpus = 2
    quota = read_quota(harness.clients(), EAST)
    info = AwsErrorInfo(
        code="MaxSpotInstanceCountExceeded", message="Max spot instance count", region=EAST
    )
    refusal = translate(info, doing="rent")
    assert isinstance(refusal, OverQuota)

    found = explained(refusal, quota, 4)

    assert str(refusal) in str(found)
    assert "2 of 4 vCPUs needed (0 of 2 in use)" in str(found)
    assert (found.family, found.limit, found.hint) == (refusal.family, 2, refusal.hint)
    assert explained(refusal, quota, 2) is refusal


def test_a_limit_on_something_else_is_not_explained_by_vcpus() -> None:
    """Too many volumes have nothing to do with the spot quota, however small that is."""
    refusal = translate(AwsErrorInfo(code="VolumeLimitExceeded", region=EAST), doing="rent")
    assert isinstance(refusal, OverQuota)

    assert explained(refusal, SpotQuota(region=EAST, limit=0, used=0), 4) is refusal
