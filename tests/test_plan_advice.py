"""Advice on a plan is priced again: what it says then holds, and a step further does not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from commands.runs.config import LoadedConfig, RunConfig
from commands.runs.planning.advice import advise
from commands.runs.planning.job_estimate import JobEstimate, JobPart
from commands.runs.planning.priced_change import Advice, Pricing, with_overrides
from commands.runs.planning.ranking import JobOffer, job_offer
from infra.catalog.azure import AZURE
from infra.offer import Offer
from infra.renting.prices import price_obstacle
from infra.run.budget import Budget
from trainer.config import TrainerConfig
from trainer.device.shapes import read_shape
from trainer.estimate.advice import MemoryNeed, Override
from trainer.estimate.span import Span

PHI_2 = read_shape(
    {"model_type": "phi", "vocab_size": 51200, "hidden_size": 2560, "intermediate_size": 10240,
     "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False}
)  # fmt: skip
CARDS = {"T4": (16e9, 1.0), "A10": (24e9, 4.0), "A100": (80e9, 12.0)}
"""Bytes of memory, and how many times as fast as a T4."""
PRICES = {"T4": 0.15, "A10": 0.40, "A100": 1.10}
PER_TOKEN = 5e6
"""Bytes of memory, of a row that is trained."""


def loaded_with(**tables: Any) -> LoadedConfig:
    """A config whose steps of 1,000 tokens take six seconds on a T4."""
    content: dict[str, Any] = {
        "name": "tiny",
        "vm": {"provider": "azure", "gpu": "T4", "max_price": 0.25},
        "budget": {"usd": 5.0, "hours": 24},
        "model": {"id": "owner/base"},
        "data": {"train": "a.jsonl", "eval": "b.jsonl", "prompt": "{a}", "completion": "{b}"},
        "train": {"steps": 1000, "micro_batch": 1, "max_length": 1000},
    }
    for table, values in tables.items():
        content[table] = {**dict(content.get(table) or {}), **values}
    return LoadedConfig(config=RunConfig.model_validate(content), path=Path("run.yaml"))


def need_of(card: str, config: TrainerConfig) -> MemoryNeed:
    """A memory that grows with the length of the rows and the rank."""
    need = 1e9 + config.train.max_length * PER_TOKEN + config.method.r * 1e8
    if config.model.id == "owner/small":
        need /= 4
    return MemoryNeed(need_bytes=need, fits=need <= CARDS[card][0])


def job_of(loaded: LoadedConfig, card: str) -> JobEstimate:
    """The hours of a job by its steps and the length of its rows."""
    config, train = loaded.config, loaded.config.train
    steps = train.steps or 2000 * (train.epochs or 1.0)
    trained_h = steps * 6.0 / 3600 * train.max_length / 1000 / CARDS[card][1]
    need = need_of(card, TrainerConfig.model_validate(config.trainer_tables))
    table = config.scored if config.eval is not None else None  # unasked, it takes no time here
    scored_h = 0.0 if table is None else 0.5 + table.shots * 0.25
    parts = (
        JobPart(name="set-up", hours=Span.exactly(0.1)),
        JobPart(name="train", hours=Span.within_factor(trained_h, 1.5)),
        JobPart(name="score after", hours=Span.exactly(scored_h)),
    )
    return JobEstimate(
        card=card,
        card_bytes=CARDS[card][0],
        memory_bytes=Span.exactly(need.need_bytes),
        fits=need.fits,
        parts=parts,
    )


def price(loaded: LoadedConfig, offer: Offer) -> JobOffer:
    """What the job needs and costs there."""
    table = loaded.config.budget
    budget = Budget(usd=table.usd, hours=table.hours)
    cap = loaded.config.vm.max_price
    return job_offer(offer, job_of(loaded, offer.gpu), cap=cap, budget=budget)


def offer_of(loaded: LoadedConfig, card: str, *, region: str = "eastus", **more: Any) -> JobOffer:
    """An offer of a card, blocked if it is above the cap."""
    made = Offer(
        provider="azure", region=region, size=f"{card}-size", gpu=card, idle_usd_per_h=0.01,
        spot_usd_per_h=more.pop("usd_per_h", PRICES[card]), **more,
    )  # fmt: skip
    obstacle = price_obstacle(made.spot_usd_per_h, loaded.config.vm.max_price)
    clears = not made.blocked_by and bool(obstacle)
    return price(loaded, replace(made, blocked_by=made.blocked_by or obstacle, clears=clears))


def advice_on(loaded: LoadedConfig, offers: Sequence[JobOffer], **more: Any) -> list[Advice]:
    """The advice where every card can be had."""
    cards = sorted((offer_of(loaded, card) for card in CARDS), key=lambda one: one.likely_usd)
    pricing = Pricing(
        price=price,
        need=lambda job: lambda config: need_of(job.card, config),
        shape=PHI_2,
        **more,
    )
    return [*advise(loaded, offers, cards, pricing=pricing)]


def pasted(loaded: LoadedConfig, change: str) -> LoadedConfig:
    """The config after the lines of an advice were typed into it."""
    overrides = []
    for line in re.findall(r"`([^`]*)`", change):
        ((key, value),) = yaml.safe_load(line).items()
        overrides.append(Override(key=key, value=value))
    found = with_overrides(loaded, overrides)
    assert found is not None, change
    return found


def suffices(loaded: LoadedConfig, card: str = "T4") -> bool:
    """Whether the budget pays for the job on that card."""
    found = offer_of(loaded, card)
    return found.cost is not None and found.cost.budget_suffices


def test_a_run_that_goes_ahead_gets_no_advice() -> None:
    """A job that fits, at a price under the cap and within the budget, is left alone."""
    loaded = loaded_with()

    assert advice_on(loaded, [offer_of(loaded, "T4")]) == []


def test_a_job_that_does_not_fit_is_changed_until_it_does() -> None:
    """Each change pasted into run.yaml makes it fit the card named there, by the same estimate."""
    loaded = loaded_with(train={"max_length": 3200}, method={"r": 16})
    found = advice_on(
        loaded, [offer_of(loaded, "T4")], longer_share=lambda limit: 0.07 if limit < 3000 else 0.0
    )
    changes = [one.change for one in found]

    assert changes[:2] == ["`train.max_length: 2624`", "`vm.gpu: A10` and `vm.max_price: 0.48`"]
    assert "cuts 7% of the rows" in found[0].effect
    for one in found:
        changed = pasted(loaded, one.change)
        card = changed.config.vm.card
        assert offer_of(changed, card).is_free, one
    assert not job_of(pasted(loaded, "`train.max_length: 2688`"), "T4").fits
    assert found[1].keeps_result
    assert "in all at $0.40/h" in found[1].effect


def test_a_card_that_the_named_regions_do_not_sell_comes_with_its_region() -> None:
    """What is typed in is a config that `qft plan` takes: a card, and a place that has it."""
    sold = AZURE.region_list
    region = next(
        one for one in sold.regions if sold.sells("T4", one) and not sold.sells("A10", one)
    )
    loaded = loaded_with(train={"max_length": 3200}, vm={"regions": [region]})
    changes = [one.change for one in advice_on(loaded, [offer_of(loaded, "T4")])]

    assert "`vm.gpu: A10` and `vm.regions: [eastus]` and `vm.max_price: 0.48`" in changes


def test_a_smaller_base_of_the_family_is_advised_if_it_fits() -> None:
    """Of the smaller bases the largest that fits is named, and that it is another model."""
    loaded = loaded_with(train={"max_length": 9000})
    bases = ["owner/medium", "owner/small"]
    found = advice_on(loaded, [offer_of(loaded, "T4")], other_bases=bases)
    (base,) = [one for one in found if "model.id" in one.change]

    assert base.change == "`model.id: owner/small`"
    assert not base.keeps_result
    assert job_of(pasted(loaded, base.change), "T4").fits


def test_a_budget_that_is_too_small_gets_what_it_pays_for() -> None:
    """Fewer steps, shorter rows and a larger budget are exact: a step more is not paid for."""
    loaded = loaded_with(budget={"usd": 0.15})
    found = {one.change.strip("`").partition(":")[0]: one
             for one in advice_on(loaded, [offer_of(loaded, "T4")])}  # fmt: skip

    assert not suffices(loaded)
    for key, step in (("train.steps", 1), ("train.max_length", 64)):
        changed = pasted(loaded, found[key].change)
        assert suffices(changed), key
        value = int(re.findall(r"\d+", found[key].change)[0]) + step
        assert not suffices(pasted(loaded, f"`{key}: {value}`")), key
        assert not found[key].keeps_result
    raised = pasted(loaded, found["budget.usd"].change)
    cost = offer_of(raised, "T4").cost
    assert cost is not None
    assert 0 <= (raised.config.budget.usd or 0.0) - cost.total.high < 0.01
    assert found["budget.usd"].keeps_result


def test_a_card_that_costs_more_by_the_hour_may_cost_less_in_all() -> None:
    """An A10 that is four times as fast is advised to a budget that does not pay for the T4."""
    loaded = loaded_with(vm={"max_price": 0.5}, budget={"usd": 0.25}, train={"steps": 1000})
    first, *_ = advice_on(loaded, [offer_of(loaded, "T4")])

    assert first.change == "`vm.gpu: A10`"
    assert first.keeps_result
    assert not suffices(loaded)
    assert suffices(pasted(loaded, first.change), "A10")


def test_another_region_is_advised_where_the_job_costs_less_there() -> None:
    """Of the same card the place is named, where the budget pays for it."""
    loaded = loaded_with(budget={"usd": 0.25}, vm={"max_price": 0.30})
    offers = [offer_of(loaded, "T4", usd_per_h=0.29), offer_of(loaded, "T4", region="westus2",
                                                               usd_per_h=0.10)]  # fmt: skip
    changes = [one.change for one in advice_on(loaded, offers)]

    assert "`vm.regions: [westus2]`" in changes


def test_scores_are_left_out_only_if_that_is_enough() -> None:
    """First the score with examples goes, then all of them; neither where it would not help."""
    scored = {"kind": "label", "labels": ["a", "b"], "shots": 4}
    total = 0.16 * (0.1 + 1000 * 6 / 3600)

    def change_at(usd: float) -> list[str]:
        loaded = loaded_with(budget={"usd": usd}, eval=scored)
        found = advice_on(loaded, [offer_of(loaded, "T4")])
        return [one.change for one in found if one.change.startswith("`eval")]

    assert change_at(round(total + 0.16 * 0.6, 3)) == ["`eval.shots: 0`"]
    assert change_at(round(total + 0.16 * 0.2, 3)) == ["`eval: none`"]
    assert change_at(round(total - 0.01, 3)) == []


def test_scores_go_too_where_they_alone_take_more_than_there_is() -> None:
    """A budget below the scores gets fewer steps without scores, and what both say holds."""
    scored = {"kind": "label", "labels": ["a", "b"], "shots": 20}
    loaded = loaded_with(budget={"usd": 0.1}, eval=scored)
    found = [one for one in advice_on(loaded, [offer_of(loaded, "T4")])
             if "train.steps" in one.change]  # fmt: skip

    assert [re.sub(r"\d+", "N", one.change) for one in found] == [
        "`train.steps: N` and `eval: none`"
    ]
    assert suffices(pasted(loaded, found[0].change))


def test_epochs_are_cut_where_steps_are_not_given() -> None:
    """A run of epochs is told the epochs, and the next twentieth more is not paid for."""
    loaded = loaded_with(budget={"usd": 0.30}, train={"steps": None, "epochs": 1.0})
    (found,) = [one for one in advice_on(loaded, [offer_of(loaded, "T4")])
                if "epochs" in one.change]  # fmt: skip
    epochs = float(re.findall(r"[\d.]+\d", found.change)[0])

    assert suffices(pasted(loaded, found.change))
    assert not suffices(pasted(loaded, f"`train.epochs: {epochs + 0.05}`"))


def test_a_cap_below_the_market_gets_the_price_with_a_margin() -> None:
    """The cap at which the cheapest offer is free is named, a fifth above its price of now."""
    loaded = loaded_with(vm={"max_price": 0.10})
    offers = [offer_of(loaded, "T4", usd_per_h=0.17), offer_of(loaded, "T4", region="westus2")]
    first, *_ = advice_on(loaded, offers)

    assert first.change == "`vm.max_price: 0.18`"
    assert "T4-size in westus2 costs $0.15/h now" in first.effect
    assert offer_of(pasted(loaded, first.change), "T4").is_free


def test_a_card_that_the_budget_does_not_pay_for_comes_with_its_budget() -> None:
    """What fits elsewhere is advised with every line that is needed for it to go ahead."""
    loaded = loaded_with(train={"max_length": 3200}, budget={"usd": 0.2, "hours": 0.5})
    (card,) = [one for one in advice_on(loaded, [offer_of(loaded, "T4")]) if "gpu" in one.change]
    keys = re.findall(r"`([\w.]+):", card.change)
    changed = pasted(loaded, card.change)

    assert keys == ["vm.gpu", "vm.max_price", "budget.usd", "budget.hours"]
    assert offer_of(changed, changed.config.vm.card).is_free
    assert suffices(changed, changed.config.vm.card)


def test_a_card_above_the_cap_is_advised_if_the_job_costs_less_on_it() -> None:
    """A cap below the market gets the card of a higher price on which the job costs less in all."""
    loaded = loaded_with(vm={"max_price": 0.10})
    changes = [one.change for one in advice_on(loaded, [offer_of(loaded, "T4")])]

    assert changes == ["`vm.max_price: 0.18`", "`vm.gpu: A10` and `vm.max_price: 0.48`"]


def test_a_place_without_quota_is_not_advised_for_its_price() -> None:
    """What blocks an offer besides its price is not removed by a higher cap."""
    loaded = loaded_with(vm={"max_price": 0.10})
    dear = offer_of(loaded, "T4", blocked_by="no quota")

    changes = [one.change for one in advice_on(loaded, [dear])]
    assert [change for change in changes if "max_price" in change and "gpu" not in change] == []


def test_an_advice_reads_as_one_line_and_as_json() -> None:
    """The printed line has the change, its effect, and whether the result stays the same."""
    advice = Advice(change="`train.micro_batch: 1`", effect="fits the T4", keeps_result=True)

    assert advice.text == "`train.micro_batch: 1`: fits the T4; the result stays the same"
    assert advice.to_json() == {
        "change": "`train.micro_batch: 1`", "effect": "fits the T4", "keeps_result": True
    }  # fmt: skip
