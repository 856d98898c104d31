"""`qft plan` foretells a rehearsal as what it is, and the real card beside it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml

from commands.runs.config import LoadedConfig, load
from commands.runs.planning import estimates
from commands.runs.planning.make_page import make_plan

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


def project(folder: Path, *, words: int = 8, **tables: Any) -> LoadedConfig:
    """Write a run.yaml, rows of so many words, and the description of a model of 135 M."""
    folder.mkdir(exist_ok=True)
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps(SHAPE))
    rows = [{"text": "word " * words, "label": "good"} for _ in range(20)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": "tiny",
        "vm": {"provider": "local", "gpu": "T4", "max_price": 0.25},
        "model": {"id": "model"},
        "data": {"train": "train.jsonl", "prompt": "{text}", "completion": "{label}"},
        "train": {"steps": 90, "batch_size": 8, "max_length": 1024, "threads": 2},
        **tables,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return load(folder / "run.yaml")


@pytest.fixture(autouse=True)
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A computer without a card, with 8 GB of free memory."""
    monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(estimates, "DRIVER", tmp_path / "no driver")
    free(monkeypatch, 8e9)


def free(monkeypatch: pytest.MonkeyPatch, available: float) -> None:
    """Let so many bytes of memory be free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))


def foretold(folder: Path) -> list[str]:
    """The lines of the plan about memory and time."""
    lines = make_plan(str(folder / "run.yaml")).lines(1000)
    return [line for line in lines if line.startswith(("here: ", "memory"))]


def test_a_rehearsal_is_foretold_for_this_computer_and_for_the_card(tmp_path: Path) -> None:
    """Its plan says what this computer will do, then what the card that it stands for would."""
    project(tmp_path)

    card, here = foretold(tmp_path)

    assert here.startswith("here: this computer trains, on 2 cores: ")
    assert "of 8.0 GB that are free; " in here
    assert card.startswith("memory ")
    assert " GB of the T4's " in card


def test_a_rented_card_is_foretold_alone(tmp_path: Path) -> None:
    """Where this computer does not train, its cores are nobody's business."""
    loaded = project(tmp_path, vm={"provider": "azure", "gpu": "T4", "max_price": 0.25})
    reported = estimates.estimate_run(loaded)

    assert estimates.estimate_line(reported).startswith("memory: ")


def test_time_follows_the_rows_and_memory_the_longest_allowed(tmp_path: Path) -> None:
    """Rows a tenth as long as `max_length` are not foretold to take ten times too long."""
    short = estimates.estimate_local_run(project(tmp_path / "short", words=80))
    long = estimates.estimate_local_run(project(tmp_path / "long", words=8000))

    assert short is not None
    assert long is not None
    assert (short["usual_tokens"], long["usual_tokens"]) == (101, 1024)
    assert short["hours"] < long["hours"] / 9
    assert short["memory_bytes"] == long["memory_bytes"]


def test_a_model_too_large_to_rehearse_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever lacks the memory reads it before the machine grinds to a halt."""
    project(tmp_path)
    free(monkeypatch, 1e9)

    assert "does NOT fit, " in foretold(tmp_path)[1]


def test_a_computer_with_a_card_is_not_judged_by_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the trainer takes the card, whose speed is not known here."""
    project(tmp_path)
    (tmp_path / "driver").touch()
    monkeypatch.setattr(estimates, "DRIVER", tmp_path / "driver")

    plan = make_plan(str(tmp_path / "run.yaml"))

    assert "its own NVIDIA card" in plan.here
    assert plan.local_estimate is None


def test_a_base_on_a_hub_has_no_figures_yet(tmp_path: Path) -> None:
    """What cannot be known is called unknown, and the plan goes on."""
    project(tmp_path, model={"id": "owner/name"})

    real, here = foretold(tmp_path)
    assert here == "here: this computer trains, on 2 cores, for as long as that takes"
    assert real.startswith("memory   unknown until the base's config.json")
    assert "`hf download`" in real


def test_rows_that_cannot_be_read_spoil_no_estimate(tmp_path: Path) -> None:
    """They are told with file and row elsewhere; here each counts as long as is allowed."""
    loaded = project(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"other": 1}\n')

    reported = estimates.estimate_run(loaded)

    assert reported is not None
    assert reported["usual_tokens"] == 1024


def test_limits_read_as_money_and_as_counts(tmp_path: Path) -> None:
    """A cap has cents, one hour is no hours, and a price between cents keeps all its digits."""
    vm = {"provider": "local", "gpu": "T4"}
    budget = {"usd": 5, "hours": 1, "evictions": 1}
    project(tmp_path, vm={**vm, "max_price": 1.5}, budget=budget)
    whole = make_plan(str(tmp_path / "run.yaml")).lines()
    project(tmp_path, vm={**vm, "max_price": 0.1234}, budget={"hours": 2.5, "evictions": 3})
    odd = make_plan(str(tmp_path / "run.yaml")).lines()

    assert whole[0].endswith(", cap $1.50/h")
    assert odd[0].endswith(", cap $0.1234/h")
    assert any("$5.00, 1 machine hour, 1 eviction" in line for line in whole)
    assert any("2.5 machine hours, 3 evictions" in line for line in odd)


def test_the_budget_of_a_rehearsal_pays_for_the_hours_here(tmp_path: Path) -> None:
    """A million steps on two cores outlast a day, though the card would have done them in one."""
    project(tmp_path, words=800, train={"steps": 1_000_000, "batch_size": 8, "threads": 2})
    page = make_plan(str(tmp_path / "run.yaml"))

    assert page.answer.exit_code == 6
    assert "24 machine hours ends the run at about step " in page.answer.text


def test_a_simulated_market_above_the_cap_is_no_offer(tmp_path: Path) -> None:
    """The words are those of a real cloud."""
    project(tmp_path)
    market = tmp_path / "home" / "local" / "market.json"
    market.parent.mkdir(parents=True)
    market.write_text('{"version": 1, "regions": {"here": {"spot_usd_per_h": 0.5}}}')

    page = make_plan(str(tmp_path / "run.yaml"))

    assert page.answer.exit_code == 3
    assert page.answer.text.startswith("nothing fits under $0.25/h; the cheapest is $0.50: raise")
