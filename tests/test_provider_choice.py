"""`vm.provider` and `vm.gpu` take one name, several or `any`, and every room reads the same."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from commands.runs.all_providers import providers_to_ask
from commands.runs.config import check
from commands.runs.config_diff import require_same_machine
from commands.runs.factory import make_provider, want
from commands.runs.home import run_folder
from commands.runs.planning.ranking import cheapest_first, job_offer
from commands.ui.errors import UsageError
from infra.config import VmTable
from infra.offer import Offer
from infra.provider import Vm
from infra.registry import registration
from infra.run.budget import Budget
from infra.run.journal import Event, Journal, Kind
from infra.run.providers_used import providers_used
from infra.run.state import RunState
from infra.several import SeveralProviders
from infra.vm_choices import gpu_faults, region_faults


def table(**vm: Any) -> VmTable:
    """A table with a cap."""
    return VmTable.model_validate({"max_price": 0.3, **vm})


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("azure", "azure"),
        (["azure"], "azure"),
        (["aws", "azure"], ["aws", "azure"]),
        ("any", ["azure", "aws"]),
    ],
)
def test_a_list_of_one_is_that_one_and_any_is_every_cloud(written: object, kept: object) -> None:
    """What is kept in the record of a run reads back as the same."""
    made = table(provider=written)

    assert made.model_dump(mode="json")["provider"] == kept
    assert table(provider=kept) == made


@pytest.mark.parametrize(
    ("vm", "problem"),
    [
        ({"provider": ["azure", "ssh"]}, "vm.provider.1: Input should be 'azure' or 'aws'"),
        ({"provider": ["aws", "aws"]}, "vm.provider: `aws` is listed twice"),
        ({"provider": []}, "vm.provider: List should have at least 1 item"),
        ({"provider": ["azure", "aws"]}, "vm: `provider: [azure, aws]` needs `max_price`"),
        ({"gpu": ["T4", "T5"]}, "vm.gpu: no GPU called `T5`"),
        ({"gpu": ["T4", "T4"]}, "vm.gpu: `T4` is listed twice"),
    ],
)
def test_a_wrong_choice_is_refused_with_its_place(vm: dict[str, Any], problem: str) -> None:
    """The line names the key, the entry and what may stand there."""
    with pytest.raises(UsageError) as caught:
        check({"name": "x", "vm": vm}, Path("run.yaml"))

    assert any(one.startswith(problem) for one in caught.value.problems)


def test_the_schema_for_editors_knows_any() -> None:
    """An editor that checks run.yaml accepts what qft accepts."""
    one, several = VmTable.model_json_schema()["properties"]["provider"]["oneOf"]

    assert {"any", "azure", "aws", "local", "ssh"} == set(one["enum"])
    assert several["items"]["enum"] == ["azure", "aws"]


def test_a_region_is_that_of_whichever_cloud_has_it() -> None:
    """Names of both clouds stand in one list, each spelled as its cloud does; no other is taken."""
    vm = {"provider": ["azure", "aws"], "gpu": "T4", "regions": ["West US 2", "us-east-1"]}

    assert table(**vm).regions == ["westus2", "us-east-1"]
    assert region_faults(vm) == []
    (problem,) = region_faults(vm | {"regions": ["us-west-9"]})
    assert "Azure has no region `us-west-9`" in problem
    assert "AWS has no region `us-west-9`" in problem


def test_a_card_is_refused_only_if_no_cloud_has_it() -> None:
    """The L4 is AWS's alone, the A100 Azure's alone."""
    assert gpu_faults({"provider": "any", "gpu": ["L4", "A100"]}) == []
    assert gpu_faults({"provider": "azure", "gpu": ["T4", "L4"]}) != []
    assert gpu_faults({"provider": "azure", "gpu": "any"}) == []


def test_one_provider_stays_itself_and_several_are_one(tmp_path: Path) -> None:
    """Only where there is a choice does anything stand between a run and its provider."""
    assert not isinstance(make_provider(table(provider="azure"), tmp_path), SeveralProviders)
    both = make_provider(table(provider=["aws", "azure"], gpu=["T4", "A10"]), tmp_path)

    assert both.name == "aws and azure"
    assert want(table(provider="any", gpu=["T4", "A10"])).gpus == ("T4", "A10")
    assert want(table(provider="any", gpu="any")).gpu == ""


def saved(vm: VmTable) -> dict[str, Any]:
    """The record of a run that was started with a table."""
    return {"config": {"vm": vm.model_dump(mode="json")}}


@pytest.mark.parametrize(
    ("now", "refused"),
    [
        (["azure", "aws"], False),
        (["aws", "azure"], False),
        ("azure", False),
        ("aws", True),
    ],
)
def test_the_machines_own_provider_must_stay_listed(now: object, *, refused: bool) -> None:
    """A run that has a machine at Azure may add AWS, and not leave Azure out."""
    vm = Vm(provider="azure", run_id="x-1", id="i", region="eastus", size="s")
    state = RunState(vm=vm)
    content = {
        "name": "x",
        "vm": {"provider": now, "max_price": 0.3},
        "model": {"id": "a/b"},
        "data": {"train": "rows.jsonl", "prompt": "{a}", "completion": "{b}"},
        "train": {"steps": 1},
    }
    loaded = check(content, Path("run.yaml"))

    if refused:
        with pytest.raises(UsageError, match="still has a machine"):
            require_same_machine(loaded, saved(table(provider="azure")), state)
    else:
        require_same_machine(loaded, saved(table(provider="azure")), state)


def event(number: int, kind: Kind, **data: Any) -> Event:
    """One line of a journal."""
    return Event(number=number, at_s=float(number), kind=kind, data=data)


def asks(number: int, provider: str) -> Event:
    """A machine is asked for."""
    return event(number, Kind.CREATE_INTENDED, offer={"provider": provider})


@pytest.mark.parametrize(
    ("events", "used"),
    [
        ([], set()),
        ([asks(1, "azure")], {"azure"}),
        ([asks(1, "azure"), event(2, Kind.CREATE_FAILED), asks(3, "aws")], {"aws"}),
        ([asks(1, "azure"), event(2, Kind.DELETED), asks(3, "aws")], {"aws"}),
        ([asks(1, "azure"), event(2, Kind.DELETED)], {"azure"}),
        ([asks(1, "azure"), asks(2, "aws")], {"azure", "aws"}),
        ([asks(1, "azure"), event(2, Kind.CREATE_FAILED)], {"azure"}),
    ],
)
def test_a_journal_says_where_a_run_may_have_something(events: list[Event], used: set[str]) -> None:
    """What was refused or removed is nowhere; what was asked for and not answered may be."""
    assert providers_used(events) == used


def offer(provider: str, region: str, usd: float, *, zone: str = "", blocked: str = "") -> Offer:
    """An offer at a price."""
    return Offer(
        provider=provider, region=region, zone=zone, size="s", gpu="T4", spot_usd_per_h=usd,
        blocked_by=blocked,
    )  # fmt: skip


def test_zones_come_behind_only_where_their_region_is_offered_as_a_whole() -> None:
    """AWS offers zones alone; Azure's are second tries. Blocked offers come last."""
    listed = [
        offer("azure", "eastus", 0.1),
        offer("azure", "eastus", 0.1, zone="1"),
        offer("aws", "us-east-1", 0.1, zone="us-east-1a"),
        offer("aws", "us-east-1", 0.1, zone="us-east-1b", blocked="full"),
    ]
    priced = [job_offer(one, None, cap=None, budget=Budget()) for one in listed]

    order = [(one.offer.provider, one.offer.zone) for one in cheapest_first(priced)]

    assert order == [("azure", ""), ("aws", "us-east-1a"), ("azure", "1"), ("aws", "us-east-1b")]


def test_profiles_of_aws_are_accounts_and_the_default_is_one_of_them(tmp_path: Path) -> None:
    """Profiles that this computer rented with are asked, and the one that the environment names."""
    aws = registration("aws")
    (tmp_path / "a.json").write_text(json.dumps({"version": 1, "ids": {"profile": "work"}}))
    (tmp_path / "refusals.json").write_text("[]")
    (tmp_path / "interruption-rates.json").write_text(json.dumps({"at_s": 1.0, "rows": []}))
    assert aws.accounts(tmp_path, {}) == {"work"}
    (tmp_path / "b.json").write_text(json.dumps({"version": 1, "ids": {"account": "1" * 12}}))

    assert aws.accounts(tmp_path, {}) == {"work", ""}
    assert aws.accounts(tmp_path / "none", {"AWS_PROFILE": "other"}) == {""}
    assert aws.accounts(tmp_path / "none", {}) == set()
    assert aws.account_of(aws.bare_table("work")) == "work"


def test_every_provider_of_a_run_is_listed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run over both clouds lets `ls --all` and `down --all` ask both."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AZURE_SUBSCRIPTION_ID"):
        monkeypatch.delenv(name, raising=False)
    folder = run_folder(tmp_path, "x")
    folder.root.mkdir(parents=True)
    Journal(folder.journal, clock=time.time).append(Kind.RUN_STARTED, run_id="x-1", name="x")
    vm = table(provider="any", aws={"profile": "work"}).model_dump(mode="json")
    content = {
        "name": "x",
        "vm": vm,
        "model": {"id": "a/b"},
        "data": {"train": "rows.jsonl", "prompt": "{a}", "completion": "{b}"},
        "train": {"steps": 1},
    }
    folder.config.write_text(json.dumps({"path": "run.yaml", "config": content}))

    assert [one.name for one in providers_to_ask(tmp_path)] == ["local", "azure", "aws"]
