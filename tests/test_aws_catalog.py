"""The catalog of AWS names its cards, sizes, quotas and prices, and says what it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from commands.runs.config import load
from commands.ui.errors import UsageError
from infra.catalog.aws import AWS
from infra.catalog.gpus import Driver
from infra.catalog.vendors import (
    cheapest_size,
    find_size,
    quota_covers,
    reference_spot_usd_per_h,
    resolve_gpu_at,
)
from infra.vm_choices import gpu_faults


def written(folder: Path, **vm: object) -> Path:
    """A `run.yaml` that names a GPU or regions of AWS."""
    (folder / "train.jsonl").write_text('{"text": "a", "label": "b"}\n')
    data = {"train": "train.jsonl", "prompt": "{text}", "completion": "{label}"}
    table = {"provider": "aws", "max_price": 0.6, **vm}
    tables = {"name": "tiny", "vm": table, "model": {"id": "microsoft/phi-2"}, "data": data}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tables))
    return path


@pytest.mark.parametrize(
    ("gpu", "size", "vcpus", "memory_gb", "spot"),
    [
        ("T4", "g4dn.xlarge", 4, 16, 0.263),
        ("A10G", "g5.xlarge", 4, 16, 0.503),
        ("L4", "g6.xlarge", 4, 16, 0.4024),
    ],
)
def test_the_cheapest_machine_of_each_card_is_an_xlarge(
    gpu: str, size: str, vcpus: int, memory_gb: float, spot: float
) -> None:
    """It has one card and 16 GiB, and its spot price is taken to be half of on demand."""
    cheapest = AWS.matching(gpu)[0]

    assert (cheapest.size, cheapest.gpu_count) == (size, 1)
    assert (cheapest.vcpus, cheapest.memory_gb) == (vcpus, memory_gb)
    assert AWS.reference_spot(cheapest) == spot


def test_sizes_with_several_cards_are_listed() -> None:
    """The larger sizes have 4 or 8 cards; a machine with one card can be larger than those."""
    cards = {one.size: one.gpu_count for one in AWS.sizes}

    assert {size for size, count in cards.items() if count == 4} == {
        "g4dn.12xlarge", "g5.12xlarge", "g5.24xlarge", "g6.12xlarge", "g6.24xlarge",
    }  # fmt: skip
    assert {size for size, count in cards.items() if count == 8} == {"g5.48xlarge", "g6.48xlarge"}
    assert cards["g5.16xlarge"] == 1
    found = find_size("G5.12xlarge", provider="aws")
    assert found is not None
    assert found.gpu_memory_gb == 96


def test_every_size_takes_the_ordinary_driver_without_a_limit() -> None:
    """The deep-learning image brings the data-center driver, which admits any CUDA runtime."""
    assert {(one.driver, one.cuda_max) for one in AWS.sizes} == {(Driver.DATACENTER, "")}


def test_a10_means_a10g_on_aws_and_says_so() -> None:
    """AWS has no A10: it is answered with its sibling and a note; the A10G is itself."""
    resolved = resolve_gpu_at("aws", "a10")

    assert resolved.gpu.name == "A10G"
    assert "A10G" in resolved.note
    assert resolve_gpu_at("aws", "A10G").note == ""
    assert [one.size for one in AWS.matching("A10")] == [one.size for one in AWS.matching("A10G")]


def test_the_cheapest_size_of_a_card_is_that_card() -> None:
    """Where each vendor has its own, no vendor's substitute stands for the card that was named."""
    assert cheapest_size("A10")[1].size == "Standard_NV36ads_A10_v5"
    assert cheapest_size("A10G")[1].size == "g5.xlarge"
    assert cheapest_size("T4")[1].size == "Standard_NC4as_T4_v3"
    assert reference_spot_usd_per_h("A10G") == 0.503


def test_one_quota_is_for_all_sizes_of_a_region() -> None:
    """A refusal for quota on a g5 covers a g4dn: both draw on the vCPUs of G and VT machines."""
    message = "the account's quota `All G and VT Spot Instance Requests` is too small"

    assert quota_covers(message, provider="aws", refused="g5.xlarge", size="g4dn.2xlarge")


def test_a_gpu_that_aws_lacks_is_refused_without_a_request(tmp_path: Path) -> None:
    """No machine with one A100 is rented out by AWS: the cards that it has are named."""
    with pytest.raises(UsageError) as caught:
        load(written(tmp_path, gpu="A100"))

    (problem,) = caught.value.problems
    assert problem == ("vm.gpu: AWS rents out no machine with one A100; name one of T4, A10G, L4")
    assert load(written(tmp_path, gpu="A10")).config.vm.gpu == "A10"
    assert gpu_faults({"provider": "azure", "gpu": "L4"}) == [
        "vm.gpu: Azure rents out no machine with one L4; name one of T4, A10, A100, H100"
    ]


@pytest.mark.parametrize("vm", [None, {}, {"provider": "aws", "gpu": ["T4"]},
                                {"provider": "aws", "gpu": "T5"}, {"provider": "ssh"}])  # fmt: skip
def test_what_names_no_gpu_of_a_vendor_is_left_to_the_schema(vm: object) -> None:
    """The check of a vendor's cards says nothing of values that it cannot judge."""
    assert gpu_faults(vm) == []


def test_a_region_of_aws_is_checked_against_its_list(tmp_path: Path) -> None:
    """A region without the card names those with one; one that does not exist names the nearest."""
    with pytest.raises(UsageError) as caught:
        load(written(tmp_path, gpu="A10G", regions=["us-west-1"]))
    (problem,) = caught.value.problems
    assert problem.startswith(
        "vm.regions: `us-west-1` exists, but has no size with an A10G (prices of 2026-08-01); "
        "regions with an A10G: "
    )

    with pytest.raises(UsageError) as caught:
        load(written(tmp_path, gpu="T4", regions=["us-west-3"]))
    (problem,) = caught.value.problems
    assert problem.startswith("vm.regions: AWS has no region `us-west-3`; did you mean ")
    assert "`us-west-1`" in problem
    assert "`us-west-2`" in problem


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("westus2", "us-west-2"),
        ("northeurope", "eu-north-1"),
        ("southeastasia", "ap-southeast-1"),
        ("US East (N. Virginia)", "us-east-1"),
    ],
)
def test_a_region_of_another_cloud_leads_to_the_nearest(name: str, near: str) -> None:
    """Whoever comes from Azure, or copies from the console, gets the code that was meant first."""
    problem = AWS.region_list.name_problem(name)

    assert problem.startswith(f"AWS has no region `{name}`; did you mean `{near}`")
