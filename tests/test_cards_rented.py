"""`vm.gpus` finds machines with so many cards, and counts price, cap and quota of all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arm.harness import AzureHarness, azure
from ec2.harness import AwsHarness, aws
from pydantic import ValidationError
from support.contract import make_spec
from support.recorded import COMMITS, RECORDED

from commands.runs import factory
from infra.card_count import card_count, cards_text
from infra.catalog.aws import AWS
from infra.catalog.azure import AZURE
from infra.catalog.vendor import VendorCatalog
from infra.config import VmTable
from infra.errors import NotAllowed
from infra.local.market import Market, RegionQuote
from infra.local.provider import LocalProvider
from infra.local.sizes import cards_of, size_with
from infra.offer import Offer, Want
from infra.provider import PowerState, Vm
from infra.several import SeveralProviders
from infra.vm_choices import gpu_faults

EAST = "us-east-1"
NC64 = "Standard_NC64as_T4_v3"


@pytest.fixture
def azure_cloud(tmp_path: Path) -> Iterator[AzureHarness]:
    """A subscription with 100 spot vCPUs in each region."""
    with azure(tmp_path) as harness:
        yield harness


@pytest.fixture
def aws_cloud(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account with 64 vCPUs of spot machines in each region."""
    with aws(tmp_path / "state") as harness:
        yield harness


def machine(provider: str, size: str) -> Vm:
    """A machine of that size."""
    return Vm(provider=provider, run_id="r", id="x", region="a", size=size)


# ---- run.yaml ----


@pytest.mark.parametrize("count", [0, 17, -1, 1.5, True, "4", "many"])
def test_number_of_cards_is_a_whole_number_from_1_to_16(count: object) -> None:
    """What is none is refused where run.yaml is read."""
    with pytest.raises(ValidationError, match="gpus"):
        VmTable.model_validate({"gpus": count})


def test_offers_are_wanted_with_that_number_of_cards() -> None:
    """Without the key it is one."""
    assert factory.want(VmTable(gpus=4)).gpu_count == 4
    assert factory.want(VmTable()).gpu_count == 1


@pytest.mark.parametrize(
    ("vm", "faults"),
    [
        ({"provider": "azure", "gpu": "T4", "gpus": 4}, []),
        ({"provider": "azure", "gpu": "A10", "gpus": 2}, []),
        ({"provider": "azure", "gpu": "T4", "gpus": 17}, []),  # the table's own check refuses it
        ({"provider": "aws", "gpu": "A10", "gpus": 8}, []),
        ({"provider": "local", "gpu": "H100", "gpus": 16}, []),
        ({"provider": "any", "gpu": "L4", "gpus": 8}, []),
        ({"provider": "any", "gpu": ["T4", "H100"], "gpus": 4}, []),
        (
            {"provider": "azure", "gpu": "H100", "gpus": 3},
            ["vm.gpus: Azure rents out no machine with 3 × H100, only up to 2"],
        ),
        (
            {"provider": "aws", "gpu": "any", "gpus": 16},
            ["vm.gpus: AWS rents out no machine with 16 cards, only up to 8"],
        ),
        (
            {"provider": "any", "gpu": "T4", "gpus": 5},
            [
                "vm.gpus: "
                + "; ".join(
                    f"{one} rents out no machine with 5 × T4, only up to 4"
                    for one in ("Azure", "AWS")
                )
            ],
        ),
        (
            {"provider": "azure", "gpu": "L4", "gpus": 4},
            [
                "vm.gpu: Azure rents out no machine with one L4; name one of T4, A10, A100, H100",
            ],
        ),
    ],
)  # fmt: skip
def test_more_cards_than_any_machine_has_are_found_without_asking(
    vm: dict[str, Any], faults: list[str]
) -> None:
    """The catalogs say how many cards there are in one machine at most."""
    assert gpu_faults(vm) == faults


# ---- the catalogs ----


@pytest.mark.parametrize(
    ("catalog", "gpu", "count", "sizes"),
    [
        (AZURE, "T4", 2, [NC64]),
        (AZURE, "A10", 2, ["Standard_NV72ads_A10_v5"]),
        (AZURE, "A100", 2, ["Standard_NC48ads_A100_v4", "Standard_NC96ads_A100_v4"]),
        (AZURE, "A100", 3, ["Standard_NC96ads_A100_v4"]),
        (AZURE, "H100", 2, ["Standard_NC80adis_H100_v5"]),
        (AZURE, "H100", 4, []),
        (AWS, "T4", 4, ["g4dn.12xlarge"]),
        (AWS, "A10", 4, ["g5.12xlarge", "g5.24xlarge", "g5.48xlarge"]),
        (AWS, "L4", 8, ["g6.48xlarge"]),
    ],
)
def test_sizes_with_at_least_so_many_cards_come_cheapest_first(
    catalog: VendorCatalog, gpu: str, count: int, sizes: list[str]
) -> None:
    """A machine with more cards than wanted may be the only one there is."""
    assert [one.size for one in catalog.with_cards(gpu, count)] == sizes


@pytest.mark.parametrize("catalog", [AZURE, AWS])
def test_one_card_means_a_machine_with_exactly_one(catalog: VendorCatalog) -> None:
    """Neither slices of a card nor machines with several are rented for one."""
    assert {one.gpu_count for one in catalog.with_cards()} == {1}


@pytest.mark.parametrize("catalog", [AZURE, AWS])
def test_cards_of_one_machine_add_up(catalog: VendorCatalog) -> None:
    """Memory and price of a size with several are those of all of its cards."""
    for size in catalog.with_cards(count=2):
        (single, *_) = catalog.with_cards(size.gpu)
        assert size.gpu_memory_gb == size.gpu_count * single.gpu_memory_gb
        assert catalog.reference_spot(size) > 1.9 * catalog.reference_spot(single)


def test_an_exact_number_of_cards_is_preferred_at_the_same_price() -> None:
    """Cards that nobody uses are taken only where they cost less."""
    eight, four = AWS.find("g6.48xlarge"), AWS.find("g6.12xlarge")
    assert eight is not None
    assert four is not None
    price = {"us-east-1": 4.0}
    some = tuple(
        one.__class__(**{**vars(one), "size": name, "on_demand_usd_per_h": price})
        for name, one in (("a-eight", eight), ("b-four", four))
    )
    catalog = AWS.__class__(**{**vars(AWS), "sizes": some})

    assert [one.size for one in catalog.with_cards("L4", 4)] == ["b-four", "a-eight"]


@pytest.mark.parametrize(
    ("provider", "size", "count", "text"),
    [
        ("azure", NC64, 4, "4 × T4"),
        ("azure", "Standard_NC4as_T4_v3", 1, ""),
        ("azure", "Standard_NV6ads_A10_v5", 1, ""),
        ("aws", "g5.48xlarge", 8, "8 × A10G"),
        ("aws", "g9.unheard", 1, ""),
        ("local", "local-gpu", 1, ""),
        ("local", "local-gpu-x4", 4, "4 cards"),
        ("local", "local-gpu-xx", 1, ""),
        ("ssh", "yours", 1, ""),
    ],
)
def test_the_size_of_a_machine_says_how_many_cards_it_has(
    provider: str, size: str, count: int, text: str
) -> None:
    """So it is known of machines that only a cloud's list tells of."""
    vm = machine(provider, size)

    assert (card_count(vm), cards_text(vm)) == (count, text)


def test_sizes_of_the_local_cloud_are_read_as_they_are_named() -> None:
    """Every number of cards has a name of its own; that of one is as it was."""
    assert [cards_of(size_with(count)) for count in range(1, 17)] == [*range(1, 17)]
    assert size_with(1) == "local-gpu"


# ---- offers ----


def test_local_cloud_offers_so_many_cards_at_so_many_times_the_price(tmp_path: Path) -> None:
    """Price, on-demand price and memory are those of the whole machine."""
    provider = LocalProvider(tmp_path)
    (one, *_) = provider.offers(Want(gpu="T4"))
    (four, *_) = provider.offers(Want(gpu="T4", gpu_count=4, max_price_usd_per_h=0.7))
    (dear, *_) = provider.offers(Want(gpu="T4", gpu_count=4, max_price_usd_per_h=0.5))

    assert (four.gpu_count, four.size, four.cards) == (4, "local-gpu-x4", "4 × T4")
    assert four.spot_usd_per_h == 4 * one.spot_usd_per_h
    assert four.on_demand_usd_per_h == 4 * (one.on_demand_usd_per_h or 0.0)
    assert four.gpu_memory_gb == 64
    assert (four.blocked_by, dear.blocked_by) == ("", "price above the cap of $0.5000 per hour")


def test_a_price_of_the_local_market_is_that_of_one_card() -> None:
    """The file of prices names no number of cards."""
    market = Market(quotes={"here": RegionQuote(spot_usd_per_h=0.2)})

    assert market.price("here", "T4") == 0.2
    assert market.price("here", "T4", 3) == pytest.approx(0.6)


def test_quota_of_azure_counts_all_vcpus_of_the_machine(azure_cloud: AzureHarness) -> None:
    """100 vCPUs admit one machine of 64, and 63 none."""
    azure_cloud.cloud.market.cores["eastus"] = 63
    want = Want(gpu="T4", gpu_count=4, regions=["eastus", "westus2"])

    offers = azure_cloud.provider().offers(want)

    places = {one.region: one for one in offers if not one.zone}
    assert {one.size for one in offers} == {NC64}
    assert places["eastus"].quota_left == 0
    assert "0 of 63 vCPUs used, 64 needed" in places["eastus"].blocked_by
    assert (places["westus2"].quota_left, places["westus2"].blocked_by) == (1, "")


def test_quota_of_aws_counts_all_vcpus_of_the_machine(aws_cloud: AwsHarness) -> None:
    """64 vCPUs admit one machine of 48, and 47 none."""
    aws_cloud.cloud.market.quotas[EAST, "L-3819A6DF"] = 47.0
    want = Want(gpu="T4", gpu_count=4, regions=[EAST, "us-west-2"])

    offers = aws_cloud.provider().offers(want)

    east = [one for one in offers if one.region == EAST]
    west = [one for one in offers if one.region == "us-west-2"]
    assert {(one.size, one.gpu_count) for one in offers} == {("g4dn.12xlarge", 4)}
    assert all("47 of 48 vCPUs needed" in one.blocked_by for one in east)
    assert {(one.quota_left, one.blocked_by) for one in west} == {(1, "")}


def test_request_to_azure_names_size_and_cap_of_the_whole_machine(
    azure_cloud: AzureHarness,
) -> None:
    """One machine is asked for, under one cap."""
    provider = azure_cloud.provider()
    provider.create(make_spec(provider, region="eastus", gpu_count=4, max_price_usd_per_h=1.5))

    bodies = [
        one.body["properties"]
        for one in azure_cloud.cloud.requests
        if one.method == "PUT" and "/virtualMachines/" in one.path
    ]
    assert [one["hardwareProfile"] for one in bodies] == [{"vmSize": NC64}]
    assert [one["billingProfile"] for one in bodies] == [{"maxPrice": 1.5}]


def test_doctor_looks_at_the_quota_for_a_machine_with_so_many_cards(
    azure_cloud: AzureHarness, aws_cloud: AwsHarness
) -> None:
    """The room for one card does not do for four."""
    azure_cloud.cloud.market.spot_cores = 16
    aws_cloud.cloud.market.spot_vcpus = 16

    def quota_is_enough(harness: AzureHarness | AwsHarness, count: int, region: str) -> bool:
        checks = harness.provider().checks(Want(gpu="T4", gpu_count=count, regions=[region]))
        (check,) = [one for one in checks if "quota" in one.name]
        return check.ok

    assert quota_is_enough(azure_cloud, 1, "eastus")
    assert not quota_is_enough(azure_cloud, 4, "eastus")
    assert quota_is_enough(aws_cloud, 1, EAST)
    assert not quota_is_enough(aws_cloud, 4, EAST)


def test_a_provider_that_does_not_answer_is_shown_with_a_machine_of_so_many_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in for its offers has the cards that were asked for."""
    local, other = LocalProvider(tmp_path), LocalProvider(tmp_path)
    other.name = "aws"

    def fail(want: Want) -> list[Offer]:
        raise NotAllowed(f"nobody is signed in: {want.gpu}")

    monkeypatch.setattr(other, "offers", fail)

    offers = SeveralProviders([local, other]).offers(Want(gpu="T4", gpu_count=4))

    (blocked,) = [one for one in offers if one.provider == "aws"]
    assert (blocked.size, blocked.gpu_count) == ("g4dn.12xlarge", 4)


# ---- what is written ----


def test_an_offer_of_one_card_is_written_as_before_there_were_several() -> None:
    """A journal has the new field only where there is something to tell."""
    one = Offer(provider="azure", region="a", size="s", gpu="T4", spot_usd_per_h=0.1)
    four = Offer(provider="azure", region="a", size="s", gpu="T4", gpu_count=4, spot_usd_per_h=0.1)

    assert "gpu_count" not in one.to_json()
    assert four.to_json()["gpu_count"] == 4
    assert [Offer.from_json(offer.to_json()) for offer in (one, four)] == [one, four]
    assert [key for key in four.to_json() if key != "gpu_count"] == [*one.to_json()]


@pytest.mark.parametrize("commit", COMMITS)
def test_recorded_offers_are_written_again_byte_for_byte(commit: str) -> None:
    """Offers that earlier commits wrote have one card, and gain no field that tells of it."""
    offers = [
        event["offer"]
        for path in sorted((RECORDED / commit / "journals").glob("*.jsonl"))
        for event in map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if event["kind"] == "create_intended"
    ]

    assert offers
    for offer in offers:
        again = Offer.from_json(offer).to_json()
        assert Offer.from_json(offer).gpu_count == 1
        assert "gpu_count" not in again
        assert json.dumps({key: again[key] for key in offer}) == json.dumps(offer)


# ---- how many of them are used ----


@pytest.mark.parametrize(
    ("provider", "size", "gpus", "used"),
    [
        ("azure", NC64, 4, 4),
        ("azure", NC64, 2, 2),
        ("azure", NC64, 1, 1),
        ("azure", "Standard_NC4as_T4_v3", 4, 1),
        ("local", "local-gpu-x2", 4, 2),
        ("local", "local-gpu", 4, 1),
        ("ssh", "yours", 4, 4),
    ],
)
def test_a_run_uses_no_more_cards_than_it_wants_and_than_there_are(
    provider: str, size: str, gpus: int, used: int
) -> None:
    """A machine of before a change of `vm.gpus` is used with what it has."""
    assert factory.cards_on(VmTable(gpus=gpus), machine(provider, size)) == used


def test_a_local_machine_bills_all_of_its_cards_while_it_runs(tmp_path: Path) -> None:
    """Its price follows the market, times the number of cards."""
    provider = LocalProvider(tmp_path)
    spec = make_spec(provider, region="local-1", gpu_count=2)
    vm = provider.create(spec)
    try:
        seen = provider.observe(vm)

        assert seen.power is not PowerState.GONE
        assert seen.price_usd_per_h == pytest.approx(2 * 0.149174)
        assert vm.price_usd_per_h == pytest.approx(2 * 0.149174)
    finally:
        provider.delete(spec.run_id)
