"""A plan that cannot be carried out says so in its last line, with the figures and the fix.

Each mistake ends with the exit code of what stands in the way: 2 for a config that cannot work, 3
for a cloud or a price that refuses, 6 for a budget that would end the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from arm.harness import azure
from arm.runner import CliResult, CliRunner, cli_runner

from commands.runs.config import load
from commands.runs.planning.pricing import order_for
from infra.offer import Offer

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
"""The sizes of TinyLlama-1.1B."""
LARGE = LLAMA | {
    "hidden_size": 6656,
    "intermediate_size": 17920,
    "num_hidden_layers": 54,
    "num_attention_heads": 52,
    "num_key_value_heads": 52,
}
"""Those of LLaMA-33B but for six of its layers: 16 GB in 4 bits, too much for a T4."""

NO_TENSORS = (2).to_bytes(8, "little") + b"{}"
"""A safetensors file without any: what a plan looks for is only that weights are there."""


@pytest.fixture
def runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    """A command line beside a base that is only described, on a simulated Azure."""
    folder = tmp_path / "project"
    (folder / "model").mkdir(parents=True)
    with (
        azure(tmp_path / "unused") as harness,
        cli_runner(folder, tmp_path / "home", harness, capsys) as runner,
    ):
        yield runner


def write_config(*, model: dict[str, Any] = LLAMA, **tables: Any) -> None:
    """Write the run.yaml of 1000 steps on a T4, changed by `tables`, and what it names."""
    Path("model/config.json").write_text(json.dumps(model))
    Path("model/model.safetensors").write_bytes(NO_TENSORS)
    row = json.dumps({"text": "it came late " * 40, "label": "bad"})
    Path("train.jsonl").write_text(f"{row}\n" * 50)
    config: dict[str, Any] = {
        "name": "job",
        "vm": {"provider": "azure", "gpu": "T4", "regions": ["eastus"], "max_price": 0.25},
        "budget": {"usd": 20.0, "hours": 100},
        "model": {"id": "model"},
        "data": {"train": "train.jsonl", "prompt": "{text}", "completion": "{label}"},
        "train": {"steps": 1000, "batch_size": 8, "max_length": 512},
    }
    for table, changes in tables.items():
        config[table] = {**config[table], **changes}
    Path("run.yaml").write_text(yaml.safe_dump(config))


def plan(runner: CliRunner, *options: str) -> tuple[CliResult, str]:
    """Plan, and return the result with its last paragraph as one line."""
    result = runner.qft("plan", *options)
    return result, " ".join(result.out.rstrip().split("\n\n")[-1].split())


def test_a_plan_that_can_be_carried_out_goes_ahead(runner: CliRunner) -> None:
    """Room on the card, a free machine and enough money: exit code 0, and `qft run` goes ahead."""
    write_config()

    result, last = plan(runner)

    assert result.code == 0, result.err
    assert last == "nothing was created; `qft run` goes ahead"


def test_a_cap_below_the_market_is_refused_with_the_price(runner: CliRunner) -> None:
    """Exit code 3: what the cheapest costs, and what to raise."""
    write_config(vm={"max_price": 0.05})

    result, last = plan(runner)

    assert result.code == 3
    assert last == ("nothing fits under $0.05/h; the cheapest is $0.1492: raise `vm.max_price`")
    assert "goes ahead" not in result.out


def test_a_dear_card_is_refused_with_a_cheaper_one(runner: CliRunner) -> None:
    """Exit code 3: under the cap of a T4 no A10 can be had, and the T4 is named with its cost."""
    write_config(vm={"gpu": "A10"})

    result, last = plan(runner)

    assert result.code == 3
    assert last.startswith(
        "nothing fits under $0.25/h; the cheapest is $0.5914: raise `vm.max_price` or take a T4 "
        "(about $"
    )
    assert last.endswith(" in all)")


def likely(runner: CliRunner) -> tuple[float, float]:
    """What the planned run likely costs, in dollars, and for how many hours a machine is rented."""
    page = json.loads(runner.qft("plan", "--json").out)
    return page["costs"]["total"]["likely"], page["job"]["billed_hours"]["likely"]


def test_a_budget_too_small_says_where_it_ends(runner: CliRunner) -> None:
    """Exit code 6: the step at which the money is gone, and how much would do."""
    write_config()
    usd = round(0.7 * likely(runner)[0], 2)
    write_config(budget={"usd": usd})

    result, last = plan(runner)

    assert result.code == 6
    assert last.startswith("nothing was created: the budget of $")
    assert " ends the run at about step " in last
    words = last.split()
    assert 0 < int(words[words.index("step") + 1]) < 1000
    assert " of 1000; raise `budget.usd` to " in last
    assert "the budget ends it" in " ".join(result.out.split())
    write_config(budget={"usd": float(last.partition("`budget.usd` to ")[2].split()[0])})
    assert plan(runner)[0].code == 0


def test_too_few_hours_are_like_too_few_dollars(runner: CliRunner) -> None:
    """Exit code 6, too: `budget.hours` ends a run as `budget.usd` does."""
    write_config()
    hours = round(0.7 * likely(runner)[1], 2)
    write_config(budget={"hours": hours})

    result, last = plan(runner)

    assert result.code == 6
    assert f"the budget of {hours:g} machine hours ends the run at about step " in last
    assert "; raise `budget.hours` to " in last


def test_a_card_too_small_is_refused_with_one_that_fits(runner: CliRunner) -> None:
    """Exit code 2: how much is needed, how much there is, and the cheapest card that has it."""
    write_config(model=LARGE)

    result, last = plan(runner)

    assert result.code == 2
    assert "does NOT fit a T4" in " ".join(result.out.split())
    assert "a T4 is too small: " in last
    assert " needed, 15.8 there; take an A100 (about $" in last
    assert ", with `vm.max_price: 1." in last


def test_a_region_that_is_full_is_no_offer(runner: CliRunner) -> None:
    """Exit code 3 where the quota of the only region is used up: the reason stands there."""
    write_config()
    runner.harness.cloud.market.cores["eastus"] = 3

    result, last = plan(runner)

    assert result.code == 3
    assert last.startswith("no machine can be rented now (Standard_NC4as_T4_v3 in eastus: spot ")
    assert "goes ahead" not in result.out


def test_the_answer_for_a_script_is_the_same(runner: CliRunner) -> None:
    """With `--json` exit code and words are those of the page, beside all figures."""
    write_config(vm={"max_price": 0.05})
    shown = plan(runner)[1]

    result = runner.qft("plan", "--json")

    page = json.loads(result.out)
    assert result.code == page["answer"]["exit_code"] == 3
    assert page["answer"]["text"] == shown
    assert {one["card"] for one in page["ranking"]} == {"T4", "A10", "A100", "H100"}
    assert page["costs"]["total"]["likely"] == pytest.approx(
        page["costs"]["compute"]["likely"] + page["costs"]["disk"]["likely"]
    )
    assert page["job"]["fits"] is True


def test_any_card_is_ordered_by_what_the_job_costs(runner: CliRunner) -> None:
    """Without `vm.gpu` a faster card that costs little more per hour comes first, and is rented."""
    write_config(vm={"gpu": ""})
    runner.harness.cloud.market.prices["standard_nv36ads_a10_v5", "eastus"] = 0.17
    page = json.loads(runner.qft("plan", "--json").out)

    assert page["answer"]["exit_code"] == 0
    assert [one["gpu"] for one in page["offers"][:2]] == ["A10", "T4"]
    prices = [one["spot_usd_per_h"] for one in page["offers"][:2]]
    assert prices[0] > prices[1]
    ranked = [one for one in page["ranking"] if not one["blocked_by"]]
    assert [one["card"] for one in ranked] == ["A10", "T4"]
    assert ranked[0]["usd"]["likely"] < ranked[1]["usd"]["likely"]

    up = runner.qft("up", "--plain")

    assert up.code == 0, up.err
    offer = runner.state().offer
    assert offer is not None
    assert offer.gpu == "A10"
    assert runner.qft("down", "--delete").code == 0


def test_a_card_too_small_is_not_rented_where_any_will_do(runner: CliRunner) -> None:
    """Without `vm.gpu` the cheap T4 that cannot hold the base is listed last, with the reason."""
    write_config(model=LARGE, vm={"gpu": "", "max_price": 0.7})

    result, last = plan(runner, "--all")

    assert result.code == 0, result.out
    assert last == "nothing was created; `qft run` goes ahead"
    table = [line for line in result.out.splitlines() if line.split()[:1] == ["1"]]
    assert "_A10_" in table[0]
    assert "a T4 is too small" in result.out


def test_a_machine_that_cannot_load_the_base_is_passed_over(runner: CliRunner) -> None:
    """Pickles of an old format are read whole: 30 GiB of them need more than the 28 of an NC4as."""
    write_config(vm={"max_price": 0.25})
    Path("model/model.safetensors").unlink()
    with Path("model/pytorch_model.bin").open("wb") as file:
        file.write(b"\x80\x02")  # a pickle that is no zip file
        file.truncate(30 * 2**30)  # nothing on the disk but its size

    result, last = plan(runner, "--all")

    assert result.code == 0, result.out + result.err
    assert last.startswith("nothing was created; `qft run` goes ahead")
    rows = [line.split() for line in result.out.splitlines() if "_T4_v3 " in line]
    assert rows[0][:2] == ["1", "Standard_NC8as_T4_v3"]
    assert "the machine has 28 GiB of memory, and loading the base takes " in " ".join(
        result.out.split()
    )


def test_a_card_that_is_named_is_tried_however_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run warns of a card that its estimate calls too small, and tries it: it was asked for."""
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
    write_config(model=LARGE)
    offers = [
        Offer(provider="azure", region="eastus", size=size, gpu="T4", spot_usd_per_h=0.15)
        for size in ("Standard_NC4as_T4_v3", "Standard_NC8as_T4_v3")
    ]
    named = order_for(load(Path("run.yaml")))(offers)
    write_config(model=LARGE, vm={"gpu": ""})
    any_card = order_for(load(Path("run.yaml")))(offers)

    assert named == offers
    assert all(one.blocked_by.startswith("a T4 is too small") for one in any_card)
