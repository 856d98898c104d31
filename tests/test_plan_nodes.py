"""A plan of several machines counts all of them: hours shared out, dollars and quota added up."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.cards_project import SEVEN, SEVENTY, project, trainer_config
from support.memory_points import llama

from commands.runs.config import LoadedConfig
from commands.runs.factory import want
from commands.runs.planning.cards import against_one, cards_fact, machines_note, quota_warning
from commands.runs.planning.estimates import HERE, estimate_job, estimate_run
from commands.runs.planning.make_advice import advice_on
from commands.runs.planning.make_page import plan_of
from commands.runs.planning.pricing import inputs_of, one_card, priced_offer
from commands.runs.planning.ranking import JobOffer
from commands.runs.planning.summary import price_fact
from infra.local.provider import LocalProvider
from infra.offer import Offer, Want
from trainer.device.shapes import read_shape
from trainer.estimate.cards import idle_warning
from trainer.estimate.gpus import GPUS
from trainer.estimate.training import RowTokens, estimate_rows

OFFER = Offer(
    provider="aws",
    region="us-east-1",
    size="g5.xlarge",
    gpu="A10G",
    spot_usd_per_h=0.5,
    on_demand_usd_per_h=1.0,
    idle_usd_per_h=0.01,
    quota_left=8,
)


def priced(loaded: LoadedConfig, offer: Offer = OFFER) -> JobOffer:
    """The offer with the job, by the formula."""
    return priced_offer(loaded, offer, inputs=replace(inputs_of(loaded), may_count=False))


def train_h(one: JobOffer) -> float:
    """The likely hours of the steps."""
    assert one.job is not None
    return next(part.hours.likely for part in one.job.parts if part.name == "train")


def test_three_machines_train_shorter_and_all_of_them_are_paid_for(tmp_path: Path) -> None:
    """Dollars are three times price times hours; the disks of all bill, too."""
    train = {"steps": 5000, "batch_size": 48, "max_length": 512, "micro_batch": 4}
    one = priced(project(tmp_path / "one", train=train))
    three = priced(project(tmp_path / "three", train=train, vm={"nodes": 3}))
    assert three.job is not None
    assert three.job.hours is not None
    assert three.job.billed_hours is not None
    assert three.cost is not None

    assert train_h(three) == pytest.approx(train_h(one) / 3, rel=0.02)
    assert three.job.billed_hours.likely == pytest.approx(3 * three.job.hours.likely)
    assert three.cost.compute.likely == pytest.approx(3 * three.job.hours.likely * 0.5)
    assert three.cost.disk.likely == pytest.approx(3 * three.job.hours.likely * 0.01)
    assert three.cost.on_demand_usd == pytest.approx(
        3 * three.job.hours.likely * 1.0 + three.cost.disk.likely
    )


def test_the_budget_in_hours_is_one_of_machine_hours(tmp_path: Path) -> None:
    """A budget that lasts for the hours of one machine ends three of them early."""
    train = {"steps": 5000, "batch_size": 48, "max_length": 512, "micro_batch": 4}
    free = priced(project(tmp_path / "free", train=train, vm={"nodes": 3}))
    assert free.job is not None
    assert free.job.hours is not None
    hours = round(2 * free.job.hours.likely, 2)
    budget = {"usd": 1000, "hours": hours}
    loaded = project(tmp_path / "short", train=train, vm={"nodes": 3}, budget=budget)
    short = priced(loaded)
    assert short.cost is not None

    assert not short.cost.budget_suffices
    assert 0.3 < short.cost.trained_share < 0.8
    assert short.cost.worst_usd <= hours * 20 + short.cost.disk.high

    advice = advice_on(loaded, [short], [], replace(inputs_of(loaded), may_count=False))
    larger = next(one for one in advice if one.change.startswith("`budget.hours"))
    assert larger.effect.endswith(" h of machine time")
    enough = float(larger.change.strip("`").partition(": ")[2])
    again = priced(
        project(
            tmp_path / "enough",
            train=train,
            vm={"nodes": 3},
            budget={"usd": 1000, "hours": enough},
        )
    )
    assert again.cost is not None
    assert again.cost.budget_suffices
    assert enough > hours


def test_a_machine_of_several_holds_what_one_alone_does_and_no_base_is_sharded_over_them() -> None:
    """As the trainer does: what several cards of one machine could hold is too large for four."""
    rows = RowTokens(longest=512, usual=512)
    four_cards, four_machines = (
        estimate_rows(
            trainer_config(),
            read_shape(llama(*SEVENTY)),
            rows,
            gpu=GPUS["A10G"],
            cards=cards,
            machines=machines,
        )
        for cards, machines in ((4, 1), (1, 4))
    )

    assert four_cards["fits"]
    assert not four_machines["fits"]
    assert not four_machines["sharing"]["sharded"]


def test_rows_go_at_once_as_the_cards_of_all_machines_share_them() -> None:
    """Two machines of two cards share a batch as one machine of four does."""
    rows = RowTokens(longest=512, usual=512)
    shape = read_shape(llama(*SEVEN))
    pairs, four = (
        estimate_rows(
            trainer_config(), shape, rows, gpu=GPUS["A100"], cards=cards, machines=machines
        )
        for cards, machines in ((2, 2), (4, 1))
    )

    assert pairs["micro_batch"] == four["micro_batch"] == 4
    assert pairs["sharing"]["cards"] == 4
    sent = pairs["sharing"]["sent_bytes"]
    assert four["sharing"]["exchange_s"] == pytest.approx(sent / GPUS["A100"].pcie_bytes_per_s)
    assert pairs["step_seconds"] == pytest.approx(
        four["step_seconds"] - four["sharing"]["exchange_s"]
    )


def test_the_network_between_machines_is_named_as_not_counted(tmp_path: Path) -> None:
    """No catalog has its speed; the plan says how much is sent instead of how long it takes."""
    one = priced(project(tmp_path, vm={"nodes": 3}))
    assert one.job is not None
    assert one.job.sharing is not None

    assert one.job.sharing["exchange_s"] is None
    fact = cards_fact(one.job)
    assert fact == "3 machines of 1 × A10G, each card with 1 of 3 micro-batches of a step"
    note = machines_note(one)
    assert note.startswith("3 machines of 1 × A10G bill $1.53/h together, and dollars and budget")
    assert f"sends the others {one.job.sharing['sent_bytes'] / 1e9:.1f} GB a step" in note
    assert note.endswith("see docs/scale.md")
    assert price_fact(one).startswith("at 3 × $0.50/h, disk")


def test_machines_that_would_idle_are_warned_of() -> None:
    """The fix is fewer machines, or more rows; fewer that idle as much are not proposed."""
    found = {"idle": 1, "cards": 3, "portions": 2, "sharded": False, "machines": 3}

    assert idle_warning(found, batch_size=2) == (
        "1 of 3 cards has nothing to do: a step of 2 rows is 2 micro-batches; set "
        "`train.batch_size` to 3, or `vm.nodes` to 2"
    )
    fours = {"idle": 2, "cards": 12, "portions": 10, "sharded": False, "machines": 3}
    assert idle_warning(fours, batch_size=10).endswith("`train.batch_size` to 12")


def test_a_quota_for_fewer_machines_is_warned_of(tmp_path: Path) -> None:
    """The run goes ahead with those that are admitted; a blocked offer says it by itself."""
    loaded = project(tmp_path, vm={"nodes": 3})
    two, three = (priced(loaded, replace(OFFER, quota_left=left)) for left in (2, 3))

    assert quota_warning(two, 3) == (
        "the quota in us-east-1 admits 2 of 3 machines: the others wait until it is raised"
    )
    assert not quota_warning(three, 3)
    assert not quota_warning(two, 1)
    assert not quota_warning(priced(loaded, replace(OFFER, quota_left=0, blocked_by="none")), 3)


def test_several_machines_are_held_against_one(tmp_path: Path) -> None:
    """What they save in hours, and what that costs, on one machine at its dated price."""
    loaded = project(tmp_path, train={"steps": 5000, "batch_size": 48, "max_length": 512},
                     vm={"nodes": 3})  # fmt: skip
    several = priced(loaded)
    alone = one_card(loaded, several, replace(inputs_of(loaded), may_count=False))
    assert alone is not None
    assert alone.job is not None

    assert (alone.job.nodes, alone.job.cards) == (1, 1)
    assert against_one(several, alone).startswith("an A10G alone would train ")


def test_machines_that_this_computer_plays_share_it(tmp_path: Path) -> None:
    """Each is a process of its own, with its part of the rows."""
    one, two = (
        estimate_job(project(tmp_path / str(count), vm={"nodes": count}), HERE) for count in (1, 2)
    )
    assert one.memory_bytes is not None
    assert two.memory_bytes is not None

    assert (one.micro_batch, two.micro_batch) == (16, 8)
    assert two.memory_bytes.likely > one.memory_bytes.likely


def test_a_place_for_fewer_machines_than_nodes_min_is_blocked(
    tmp_path: Path,
) -> None:
    """A place whose quota admits fewer is blocked; one machine is asked for as ever."""
    for vm, needed in (({"nodes": 3, "nodes_min": 2}, 2), ({"nodes": 3}, 1), ({}, 1)):
        loaded = project(tmp_path / f"{len(vm)}", vm=vm)
        assert want(loaded.config.vm).nodes == needed


def test_the_safeguards_of_a_plan_are_set_for_the_budget_of_all_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve machine hours of three machines are four hours of each."""
    limits: list[float] = []

    def keep(_self: LocalProvider, _want: Want, *, until_s: float, **_more: object) -> list[str]:
        limits.append(until_s)
        return []

    monkeypatch.setattr(LocalProvider, "preview_safeguards", keep)
    vm = {"provider": "local", "gpu": "T4", "nodes": 3, "max_price": 0.1}
    loaded = project(tmp_path / "run", vm=vm, budget={"usd": 1000, "hours": 12})
    began_s = time.time()

    page = plan_of(loaded, tmp_path / "home")

    assert limits == [pytest.approx(began_s + 4 * 3600, abs=300)]
    assert page.to_json()["nodes"] == 3
    lines = " ".join(" ".join(page.lines()).split())
    assert "note: 3 machines of 1 × T4 bill" in lines


def test_a_plan_of_one_machine_says_nothing_of_machines(tmp_path: Path) -> None:
    """Neither in words nor among its values, whether it has one card or four."""
    for gpus in (1, 4):
        loaded = project(tmp_path / str(gpus), vm={"gpus": gpus})
        one = priced(loaded)
        assert one.job is not None
        assert "nodes" not in one.job.to_json()
        assert not {"machines", "sent_bytes"} & set((estimate_run(loaded) or {}).get("sharing", {}))
        assert not machines_note(one)
        assert price_fact(one).startswith("at $0.50/h")
