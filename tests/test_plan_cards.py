"""A plan says what several cards share, what each holds, and when some have nothing to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from support.cards_project import SEVEN, SEVENTY, project, trainer_config
from support.memory_points import llama

from commands.runs.planning.cards import against_one, cards_fact, unused_warning
from commands.runs.planning.estimates import HERE, estimate_job, estimate_run
from commands.runs.planning.offers_table import card_lines
from commands.runs.planning.pricing import inputs_of, one_card, priced_offer
from commands.runs.planning.ranking import reference_offers
from trainer.device.shapes import read_shape
from trainer.estimate.cards import even_micro_batch, extra_passes, idle_warning, rounds
from trainer.estimate.gpus import GPUS
from trainer.estimate.memory import estimate
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.training import estimate_training, is_sharded
from trainer.group.peers import Peers


def test_a_base_is_sharded_only_where_one_card_cannot_hold_it() -> None:
    """70B is, on four cards of 24 GB, but not on cards of 80 GB; 7B never, and none on one card."""
    config = trainer_config()
    seventy, seven = (read_shape(llama(*sizes)) for sizes in (SEVENTY, SEVEN))

    assert is_sharded(config, seventy, gpu=GPUS["A10G"], cards=4)
    assert not is_sharded(config, seventy, gpu=GPUS["A100"], cards=4)
    assert not is_sharded(config, seven, gpu=GPUS["A10G"], cards=4)
    assert not is_sharded(config, seventy, gpu=GPUS["A10G"], cards=1)


def test_a_card_holds_its_part_of_the_base() -> None:
    """A fourth of the packed weights; the rest, such as the embedding, whole."""
    found = estimate_training(
        trainer_config(), read_shape(llama(*SEVENTY)), gpu=GPUS["A10G"], cards=4
    )
    shared = found["sharing"]

    assert found["fits"]
    assert shared["base_bytes"] < shared["whole_base_bytes"] * (1 / 4 + 0.1)
    assert found["memory_bytes"]["base"] == shared["base_bytes"]


def test_several_cards_need_memory_for_what_they_exchange() -> None:
    """Beside what one card needs: two gradients in float32, and a part of the sum."""
    shape = read_shape(llama(*SEVEN))
    one = estimate(shape, TrainingSetup(tokens=512))
    four = estimate(shape, TrainingSetup(tokens=512, cards=4))
    gradient = one.optimizer / 2

    assert four.allocated - one.allocated == pytest.approx(2.25 * gradient)


def test_a_step_is_as_long_as_its_rounds_and_what_is_exchanged() -> None:
    """Sixteen rows, four at a time: four rounds on one card, one on four cards."""
    shape, config = read_shape(llama(*SEVEN)), trainer_config(micro_batch=4)
    one, four = (
        estimate_training(config, shape, gpu=GPUS["A10G"], cards=cards) for cards in (1, 4)
    )
    shared = four["sharing"]

    assert (shared["portions"], shared["idle"]) == (4, 0)
    gradient = 4 * four["trained_parameters"]
    assert shared["exchange_s"] == pytest.approx(2 * 3 / 4 * gradient / 16e9)
    computed_s = four["step_seconds"] - shared["exchange_s"]
    assert computed_s == pytest.approx(one["step_seconds"] / 4, rel=0.02)
    assert "sharing" not in one


@pytest.mark.parametrize(
    ("rows", "cards", "largest", "size"), [(16, 4, 3, 2), (16, 4, 4, 4), (9, 4, 3, 3), (2, 4, 1, 1)]
)
def test_rows_are_shared_evenly(rows: int, cards: int, largest: int, size: int) -> None:
    """No more rounds than with the largest micro-batch, and each as short as can be."""
    found = even_micro_batch(rows, cards, largest=largest)

    assert found == size
    assert rounds(rounds(rows, found), cards) == rounds(rounds(rows, largest), cards)


@pytest.mark.parametrize(("portions", "size"), [(5, 2), (4, 4), (2, 3), (7, 3)])
def test_every_rank_makes_as_many_passes(portions: int, size: int) -> None:
    """Those of its own and the extra ones are alike for all."""
    ranks = [
        SimpleNamespace(size=size, mine=lambda count, rank=rank: range(rank, count, size))
        for rank in range(size)
    ]
    passes = {len(one.mine(portions)) + extra_passes(portions, cast("Peers", one)) for one in ranks}

    assert passes == {rounds(portions, size)}


def test_idle_cards_are_warned_of_with_the_fix() -> None:
    """A larger batch, or fewer cards; a sharded base may not fit fewer."""
    found = {"idle": 2, "cards": 4, "portions": 2, "sharded": False}

    assert idle_warning(found, batch_size=2) == (
        "2 of 4 cards have nothing to do: a step of 2 rows is 2 micro-batches; set "
        "`train.batch_size` to 4, or `vm.gpus` to 2"
    )
    assert idle_warning({**found, "sharded": True}, batch_size=2).endswith("to 4")
    assert not idle_warning({**found, "idle": 0}, batch_size=2)


def test_the_plan_has_a_line_on_cards(tmp_path: Path) -> None:
    """It says how a step is shared, and of a sharded base what each card holds."""
    job = estimate_job(project(tmp_path, base=SEVENTY, vm={"gpus": 4}), "A10G")
    fact = cards_fact(job)

    assert job.fits
    assert fact.startswith("4, each with 1 of 4 micro-batches of a step; what they send each other")
    assert "the base is sharded over 4 cards: 10.7 GB a card instead of 36.4 GB" in fact
    assert fact.endswith("each micro-batch gathers it anew")


def test_a_plan_for_one_card_says_nothing_of_cards(tmp_path: Path) -> None:
    """Neither in words nor among its values."""
    loaded = project(tmp_path)
    job = estimate_job(loaded, "A10G")

    assert not cards_fact(job)
    assert not {"sharing", "step_s", "idle_cards"} & set(job.to_json())
    assert "sharing" not in (estimate_run(loaded) or {"sharing": None})


def test_several_cards_are_held_against_one(tmp_path: Path) -> None:
    """Hours and dollars of the same job on one of the cards, at its dated price."""
    loaded = project(tmp_path, vm={"gpus": 4})
    inputs = replace(inputs_of(loaded), may_count=False)
    offers = reference_offers("aws", cap=None, idle_usd_per_h=0.0, cards=4)
    several = priced_offer(loaded, next(one for one in offers if one.gpu == "A10G"), inputs=inputs)
    one = one_card(loaded, several, inputs)
    assert one is not None
    assert (several.offer.gpu_count, one.offer.gpu_count) == (4, 1)

    text = against_one(several, one)

    assert text.startswith("an A10G alone would train ")
    assert "in all instead of" in text
    assert one.job is not None
    assert several.job is not None
    as_long = replace(one, job=replace(one.job, parts=several.job.parts))
    assert against_one(several, as_long).startswith("an A10G alone would train no longer, and cost")


def test_a_base_too_large_for_one_card_is_reported(tmp_path: Path) -> None:
    """Instead of hours that would never pass."""
    loaded = project(tmp_path, base=SEVENTY, vm={"gpus": 4})
    inputs = replace(inputs_of(loaded), may_count=False)
    offers = reference_offers("aws", cap=None, idle_usd_per_h=0.0, cards=4)
    several = priced_offer(loaded, next(one for one in offers if one.gpu == "A10G"), inputs=inputs)

    assert against_one(several, one_card(loaded, several, inputs)) == (
        "one A10G alone does not hold it"
    )


def test_processes_that_play_cards_share_this_computer(tmp_path: Path) -> None:
    """Each holds the base, and has its part of the rows."""
    one, two = (
        estimate_job(project(tmp_path / str(count), vm={"gpus": count}), HERE) for count in (1, 2)
    )
    assert one.memory_bytes is not None
    assert two.memory_bytes is not None

    assert (one.micro_batch, two.micro_batch) == (16, 8)
    assert two.memory_bytes.likely > one.memory_bytes.likely


def test_tables_name_the_cards_of_a_machine_with_several(tmp_path: Path) -> None:
    """Its price is that of all of them; a machine with one has the card's name alone."""
    loaded = project(tmp_path, vm={"gpus": 4})
    offers = {
        count: reference_offers("azure", cap=None, idle_usd_per_h=0.0, cards=count)[0]
        for count in (1, 4)
    }
    priced = {count: priced_offer(loaded, offer) for count, offer in offers.items()}

    assert (offers[1].gpu, offers[4].gpu) == ("T4", "T4")
    assert card_lines([priced[1]], 200)[1].startswith("T4  ")
    assert card_lines([priced[4]], 200)[1].startswith("4 × T4  ")


def test_cards_that_are_paid_for_and_not_used_are_warned_of(tmp_path: Path) -> None:
    """Where a vendor has no machine with so few."""
    loaded = project(tmp_path, vm={"gpus": 2})
    (four,) = [
        one
        for one in reference_offers("azure", cap=None, idle_usd_per_h=0.0, cards=2)
        if one.gpu == "T4"
    ]
    priced = priced_offer(loaded, four)

    assert unused_warning(priced, 2) == (
        "Standard_NC64as_T4_v3 (4 × T4) is paid for whole, and the run uses 2 of its cards: "
        "`vm.gpus: 4` costs the same an hour"
    )
    assert not unused_warning(priced, 4)
