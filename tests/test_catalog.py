"""The catalog finds sizes by what people call them, and never guesses silently."""

from __future__ import annotations

import pytest

from infra.catalog.azure import AZURE
from infra.catalog.gpus import GPUS, Driver, UnknownGpu, resolve_gpu, with_article
from infra.catalog.vendor import VendorCatalog, folded
from infra.catalog.vendors import (
    CATALOGS,
    find_size,
    quota_covers,
    reference_on_demand_usd_per_h,
    reference_spot_usd_per_h,
    resolve_gpu_at,
)
from infra.errors import BadRequest


@pytest.mark.parametrize(
    ("name", "gpu"),
    [("T4", "T4"), ("t4", "T4"), ("nvidia_t4", "T4"), ("Tesla T4", "T4"), ("A100 80GB", "A100")],
)
def test_spellings_of_one_gpu_are_one_gpu(name: str, gpu: str) -> None:
    """Case, vendor prefixes and separators do not matter, and cause no note."""
    resolved = resolve_gpu(name)

    assert (resolved.gpu.name, resolved.note) == (gpu, "")


def test_a10g_means_a10_on_azure_and_says_so() -> None:
    """The card that only AWS has is answered with its sibling and a note."""
    resolved = resolve_gpu_at("azure", "A10G")

    assert resolved.gpu.name == "A10"
    assert "only AWS" in resolved.note
    assert resolve_gpu_at("aws", "A10G") == resolve_gpu("A10G")


@pytest.mark.parametrize(
    ("name", "candidates"), [("A10X", ["A10", "A10G", "A100"]), ("T44", ["T4"]), ("teapot", [])]
)
def test_unknown_gpu_lists_candidates(name: str, candidates: list[str]) -> None:
    """An unknown name is refused with the likeliest and all known names."""
    with pytest.raises(UnknownGpu, match=name) as caught:
        resolve_gpu(name)

    assert caught.value.candidates == candidates
    assert ("did you mean" in str(caught.value)) == bool(candidates)
    assert isinstance(caught.value, BadRequest)
    assert isinstance(caught.value, ValueError)
    assert caught.value.hint == f"known: {', '.join(GPUS)}"


def test_a10_needs_the_grid_driver_and_cuda_12() -> None:
    """Every A10 size takes the vGPU driver, which ends at CUDA 12.8; no other size does."""
    grid = {one.gpu for one in AZURE.sizes if one.driver is Driver.GRID}

    assert grid == {"A10"}
    assert {one.cuda_max for one in AZURE.matching("A10", whole_cards=False)} == {"12.8"}
    assert {one.cuda_max for one in AZURE.sizes if one.gpu != "A10"} == {""}


def test_cheapest_size_comes_first_and_slices_are_left_out() -> None:
    """A wanted GPU means a whole one, at the lowest reference price first."""
    assert [one.size for one in AZURE.matching("A10")] == [
        "Standard_NV36ads_A10_v5",
        "Standard_NV72ads_A10_v5",
    ]
    assert AZURE.matching("T4")[0].size == "Standard_NC4as_T4_v3"
    assert [one.gpu_memory_gb for one in AZURE.matching("A10", whole_cards=False)] == [
        4,
        8,
        12,
        24,
        48,
    ]


def test_sizes_are_found_in_any_case() -> None:
    """A size is found however its name is written, and only at its vendor."""
    found = find_size("standard_nc4as_t4_v3", provider="azure")

    assert found is not None
    assert (found.size, found.vcpus, found.compute_capability) == (
        "Standard_NC4as_T4_v3",
        4,
        (7, 5),
    )
    assert find_size("Standard_NC4as_T4_v3", provider="aws") is None


def test_reference_price_is_the_seen_spot_price() -> None:
    """Where a spot price was seen it is used; elsewhere a cautious share of on demand."""
    assert reference_spot_usd_per_h("T4") == 0.149174
    assert reference_spot_usd_per_h("H100") == 2.094
    assert reference_on_demand_usd_per_h("T4") == 0.526


@pytest.mark.parametrize("catalog", CATALOGS.values(), ids=list(CATALOGS))
def test_every_size_is_complete(catalog: VendorCatalog) -> None:
    """No row of any vendor lacks what choosing, setting up and paying for a machine needs."""
    for one in catalog.sizes:
        assert one.provider == catalog.provider
        assert one.gpu in GPUS
        assert one.vcpus > 0
        assert one.quota_family
        assert min(one.on_demand_usd_per_h.values()) > (one.spot_usd_per_h or 0)
    assert len({one.size.lower() for one in catalog.sizes}) == len(catalog.sizes)
    assert catalog.spot_region in catalog.regions


def test_quota_of_a_family_covers_its_sizes_only() -> None:
    """A family's quota is refused for its own sizes, a region's for all; no catalog, no doubt."""
    message = "exceeding approved Standard NCASv3_T4 Family Cores quota"
    other = {"refused": "Standard_NC4as_T4_v3", "size": "Standard_NV36ads_A10_v5"}
    same = {"refused": "Standard_NC4as_T4_v3", "size": "Standard_NC8as_T4_v3"}

    assert quota_covers(message, provider="azure", **same)
    assert not quota_covers(message, provider="azure", **other)
    assert quota_covers("exceeding LowPriorityCores quota", provider="azure", **other)
    assert quota_covers(message, provider="local", **other)


def test_quota_names_compare_folded() -> None:
    """Names of one quota that differ in case and spaces are equal."""
    assert folded("Standard NCASv3_T4 Family") == folded("standardncasv3_t4family ")


@pytest.mark.parametrize(
    ("card", "words"),
    [("T4", "a T4"), ("A10G", "an A10G"), ("L4", "an L4"), ("H100", "an H100"), ("V100", "a V100")],
)
def test_a_card_has_the_article_that_it_is_spoken_with(card: str, words: str) -> None:
    """The letter that a name begins with is spoken by its own name."""
    assert with_article(card) == words
