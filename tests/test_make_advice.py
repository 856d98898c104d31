"""What a plan advises makes the next plan go ahead, with real rows and the real page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml

from commands.runs.config import load
from commands.runs.planning import counted_memory, estimates
from commands.runs.planning.estimates import estimate_job
from commands.runs.planning.job_inputs import job_inputs
from commands.runs.planning.make_advice import (
    advice_on,
    inputs_with,
    memory_estimate,
    smaller_bases,
)
from commands.runs.planning.make_page import make_plan
from commands.runs.planning.page import PlanPage
from commands.runs.planning.priced_change import Advice
from commands.ui.errors import Exit
from trainer.config import TrainerConfig

LLAMA_7B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000,
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "tie_word_embeddings": False,
}  # fmt: skip
ROWS = 200


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own, no network, and memory for anything."""
    monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1e12))
    (tmp_path / "driver").touch()  # so that no rehearsal on the processor is planned as well
    monkeypatch.setattr(estimates, "DRIVER", tmp_path / "driver")


def planned(folder: Path, **tables: Any) -> tuple[Path, PlanPage]:
    """A run.yaml with rows of 40 to 1,600 words, and its plan."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps(LLAMA_7B))
    for name, rows in (("train", ROWS), ("eval", 40)):
        lines = [{"text": "word " * (40 + 8 * at), "label": "good"} for at in range(rows)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    content: dict[str, Any] = {
        "name": "tiny",
        "vm": {"provider": "local", "gpu": "T4", "max_price": 1.5},
        "budget": {"usd": 50, "hours": 200},
        "model": {"id": "model"},
        "method": {"kind": "qlora"},
        "data": {"train": "train.jsonl", "eval": "eval.jsonl", "prompt": "{text}",
                 "completion": "{label}"},
        "train": {"epochs": 3, "micro_batch": 1, "max_length": 2048},
        "eval": {"kind": "label", "labels": ["good", "bad"]},
    }  # fmt: skip
    for table, values in tables.items():
        content[table] = {**content[table], **values}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path, make_plan(str(path))


def plan_with(path: Path, change: str) -> PlanPage:
    """The plan after the lines of an advice were typed into the file."""
    content = yaml.safe_load(path.read_text())
    for line in re.findall(r"`([^`]*)`", change):
        ((key, value),) = yaml.safe_load(line).items()
        table, _, name = key.partition(".")
        if name:
            content.setdefault(table, {})[name] = value
        else:
            content[table] = value
    path.with_name("other.yaml").write_text(yaml.safe_dump(content))
    return make_plan(str(path.with_name("other.yaml")))


def check_advice(path: Path, page: PlanPage, wanted: set[str]) -> None:
    """Fail unless each advice makes the whole plan, made again, fit, be paid for and be free."""
    keys = {key for one in page.advice for key in re.findall(r"`([\w.]+):", one.change)}

    assert wanted <= keys
    for one in page.advice:
        first = plan_with(path, one.change).first
        assert first is not None
        assert first.is_free, one
        assert first.cost is not None
        assert first.cost.budget_suffices, one


@pytest.mark.parametrize(
    ("tables", "wanted"),
    [
        ({"train": {"micro_batch": 8, "gradient_checkpointing": False}},
         {"train.gradient_checkpointing"}),
        ({"method": {"kind": "lora", "r": 64}}, {"method.kind", "vm.gpu"}),
        ({"vm": {"max_price": 0.05}}, {"vm.max_price"}),
    ],
    ids=["memory", "unquantised", "cap"],
)  # fmt: skip
def test_a_plan_with_the_advice_typed_in_goes_ahead(
    tmp_path: Path, tables: dict[str, Any], wanted: set[str]
) -> None:
    """Every advice on memory and on the cap holds where the file has its lines."""
    path, page = planned(tmp_path, **tables)

    check_advice(path, page, wanted)


@pytest.mark.parametrize("key", ["usd", "hours"])
def test_a_budget_that_is_changed_as_advised_pays_for_the_job(tmp_path: Path, key: str) -> None:
    """A budget that ends the run in its training gets advice on both, and all of it holds."""
    first = planned(tmp_path)[1].first
    assert first is not None
    assert first.cost is not None
    assert first.job is not None
    hours = {part.name: part.hours.likely for part in first.job.parts}
    enough_h = sum(hours.values()) - hours["train"] / 2
    limit = enough_h * (first.offer.spot_usd_per_h if key == "usd" else 1.0)

    path, page = planned(tmp_path, budget={key: round(limit, 3)})

    check_advice(path, page, {f"budget.{key}", "train.epochs"})


def test_a_rehearsal_that_this_computer_lacks_the_memory_for_gets_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits the card but not this computer is changed until it fits here, as is said."""
    monkeypatch.setattr(estimates, "DRIVER", tmp_path / "no driver")
    _, page = planned(tmp_path, train={"micro_batch": 4, "max_length": 512})
    assert page.local_estimate is not None
    need = page.local_estimate["memory_bytes"]["reserved"]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=need * 0.95))
    path, page = planned(tmp_path, train={"micro_batch": 4, "max_length": 512})

    assert page.advice
    assert page.advice[0].effect.startswith("fits this computer, ")
    for one in page.advice:
        here = plan_with(path, one.change).local_estimate
        assert here is not None
        assert here["fits"], one


def test_a_rehearsal_is_paid_for_by_the_hours_of_this_computer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget that pays for the card but not for the processor is too small, and is told so."""
    monkeypatch.setattr(estimates, "DRIVER", tmp_path / "no driver")
    path, page = planned(tmp_path, budget={"usd": 50, "hours": 200})
    (budget,) = [one for one in page.advice if "budget" in one.change]

    assert page.first is not None
    assert page.first.cost is not None
    assert page.first.cost.budget_suffices
    assert page.answer.exit_code is Exit.BUDGET
    again = plan_with(path, budget.change).answer
    assert again.exit_code is not Exit.BUDGET


def test_a_plan_that_goes_ahead_has_no_advice(tmp_path: Path) -> None:
    """What fits, is paid for and is free is left alone."""
    _, page = planned(tmp_path)

    assert page.advice == ()
    assert "advice" not in "\n".join(page.lines())


def test_the_page_has_the_first_ways_and_json_all(tmp_path: Path) -> None:
    """Three ways stand above the last line, the others behind --all; programs get each whole."""
    ways = tuple(
        Advice(change=f"`train.steps: {at}`", effect="it is paid for", keeps_result=False)
        for at in range(5)
    )
    page = replace(planned(tmp_path)[1], advice=ways)
    every = [line for line in page.lines(200, all_of_them=True) if line.startswith("advice: ")]

    assert every == [f"advice: {one.text}" for one in ways]
    assert page.lines(200)[-6:-2] == [*every[:3], "advice: 2 more with `qft plan --all`"]
    assert page.to_json()["advice"] == [one.to_json() for one in ways]


def test_rows_are_cut_as_if_they_were_read_again(tmp_path: Path) -> None:
    """A shorter limit gives the rows that a config with that limit would count."""
    path, _ = planned(tmp_path)
    loaded = load(path)
    shorter = yaml.safe_load(path.read_text())
    shorter["train"]["max_length"] = 512
    path.with_name("short.yaml").write_text(yaml.safe_dump(shorter))
    again = job_inputs(load(path.with_name("short.yaml")))

    names = ("model", "method", "data", "train", "eval")
    tables = TrainerConfig.model_validate({name: shorter[name] for name in names})
    cut = inputs_with(job_inputs(loaded), tables)

    assert cut.lengths is not None
    assert again.lengths is not None
    assert cut.lengths.mean_tokens == pytest.approx(again.lengths.mean_tokens, rel=0.01)
    assert cut.lengths.longest_tokens == again.lengths.longest_tokens == 512
    assert cut.adapter_bytes == again.adapter_bytes


def test_advice_is_scaled_to_what_was_counted_and_counts_nothing_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count takes seconds each: the formula searches, held to the one count of the plan."""
    path, page = planned(tmp_path, budget={"usd": 0.2}, train={"micro_batch": 4})
    loaded = load(path)
    inputs = job_inputs(loaded)
    monkeypatch.setattr(counted_memory, "counted", lambda *_: pytest.fail("it was counted"))
    job = estimate_job(loaded, "T4", inputs=replace(inputs, may_count=False))
    assert job.memory_bytes is not None
    plain = memory_estimate(loaded, job, inputs)
    scaled = memory_estimate(loaded, replace(job, memory_bytes=job.memory_bytes * 1.2), inputs)
    assert plain is not None
    assert scaled is not None
    lesser, greater = plain(inputs.tables), scaled(inputs.tables)

    assert lesser is not None
    assert greater is not None
    assert greater.need_bytes == pytest.approx(1.2 * lesser.need_bytes)
    assert advice_on(loaded, page.offers, page.cards, inputs) == page.advice != ()


def test_smaller_bases_are_of_the_family_and_ordered() -> None:
    """Phi-1.5 stands for Phi-2; a base that nobody knows has no family."""
    found = smaller_bases("microsoft/phi-2")

    assert found[0] == "microsoft/phi-1_5"
    assert smaller_bases("nobody/nothing-of-note") == ()
