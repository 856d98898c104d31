"""A region that Azure does not have, or where it has no such card, is refused before money."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from arm import Disruption, DisruptionKind
from arm.harness import T4, azure
from arm.replies import Reply

from commands.runs.config import check, load
from commands.ui.errors import UsageError
from infra.catalog.azure import AZURE, SIZES
from infra.offer import Want
from infra.vm_choices import region_faults

REGIONS = AZURE.region_list


def written(folder: Path, *regions: str, gpu: str = "T4", provider: str = "azure") -> Path:
    """Write a run.yaml that names these regions, and a row."""
    (folder / "train.jsonl").write_text('{"text": "a", "label": "b"}\n')
    vm = {"provider": provider, "gpu": gpu, "regions": [*regions], "max_price": 0.2}
    data = {"train": "train.jsonl", "prompt": "{text}", "completion": "{label}"}
    tables = {"name": "tiny", "vm": vm, "model": {"id": "microsoft/phi-2"}, "data": data}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tables))
    return path


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("westus9", "`westus`, `westus2` or `westus3`"),
        ("East US 9", "`eastus` or `eastus2`"),
        ("us-east-1", "`eastus` or `eastus2`"),
        ("eu-west-1", "`westeurope`"),
        ("west-europe1", "`westeurope`"),
        ("germanywestcentrall", "`germanywestcentral`"),
    ],
)
def test_a_region_that_does_not_exist_gets_the_nearest_and_the_list(
    tmp_path: Path, name: str, near: str
) -> None:
    """The fault names the key, the region, those that were probably meant, and those with a T4."""
    with pytest.raises(UsageError) as caught:
        load(written(tmp_path, "eastus", name))

    (problem,) = caught.value.problems
    assert problem.startswith(f"vm.regions: Azure has no region `{name}`; did you mean {near}? ")
    assert "Regions with a T4: australiacentral, " in problem
    assert problem.endswith("westus, westus2, westus3")


def test_a_region_without_the_card_has_words_of_its_own(
    tmp_path: Path,
) -> None:
    """It exists, and sells no such size: the date of the prices and the places that do are told."""
    with pytest.raises(UsageError) as caught:
        load(written(tmp_path, "ukwest"))

    (problem,) = caught.value.problems
    assert problem.startswith(
        "vm.regions: `ukwest` exists, but has no size with a T4 (prices of 2026-06-18); regions "
        "with a T4: "
    )
    assert load(written(tmp_path, "koreasouth", gpu="H100")).config.vm.regions == ["koreasouth"]


@pytest.mark.parametrize("name", ["West US 2", "westus2", "WestUS2", "west us 2", "(US) West US 2"])
def test_a_region_is_taken_as_the_portal_writes_it(tmp_path: Path, name: str) -> None:
    """Every spelling of the portal and of `az` becomes the code."""
    assert load(written(tmp_path, name)).config.vm.regions == ["westus2"]


def test_a_run_that_rents_already_is_read_again_whatever_its_region(tmp_path: Path) -> None:
    """A saved config with a region that this version does not list can still be taken down."""
    tables = yaml.safe_load(written(tmp_path, "newland").read_text())

    assert check(tables, tmp_path / "run.yaml").config.vm.regions == ["newland"]
    with pytest.raises(UsageError, match="1 fault"):
        load(tmp_path / "run.yaml")


def test_other_providers_have_regions_of_their_own(tmp_path: Path) -> None:
    """The played cloud calls its places as it likes, and a user's machine has none."""
    assert load(written(tmp_path, "local-2", provider="local")).config.vm.regions == ["local-2"]
    assert region_faults({"provider": "ssh", "regions": ["anywhere"]}) == []


@pytest.mark.parametrize("vm", [None, [], {}, {"provider": "azure", "regions": "eastus"},
                                {"provider": "azure", "regions": [1, None]},
                                {"provider": [], "regions": ["x"]}])  # fmt: skip
def test_what_is_no_list_of_regions_is_left_to_the_schema(vm: object) -> None:
    """The check of names says nothing of values of another type, and does not fail on them."""
    assert region_faults(vm) == []


def test_every_card_and_every_region_to_try_is_in_the_list() -> None:
    """Each card of the catalog has its regions, all of them exist, and the usual ones have a T4."""
    assert set(REGIONS.by_gpu) == {one.gpu for one in SIZES}
    assert {one for some in REGIONS.by_gpu.values() for one in some} <= set(REGIONS.regions)
    assert all(REGIONS.sells("T4", one) for one in AZURE.regions)
    assert all(
        REGIONS.sells(one.gpu, region) for one in SIZES for region in one.on_demand_usd_per_h
    )


def test_without_a_price_list_no_machine_is_offered_where_none_is_sold(tmp_path: Path) -> None:
    """Of two regions the one without the card is blocked, with the reason, and never the first."""
    reply = Reply(status=403, body=None)
    with azure(tmp_path) as harness:
        harness.cloud.disruptions.add(
            Disruption(kind=DisruptionKind.ANSWER, times=999, reply=reply)
        )
        offers = harness.provider().offers(Want(gpu="T4", regions=("ukwest", "eastus")))

    assert offers[0].region == "eastus"
    blocked = {one.region: one.blocked_by for one in offers if one.size == T4}
    assert blocked["eastus"] == ""
    assert blocked["ukwest"].startswith("`ukwest` exists, but has no size with a T4")
