"""Mistakes in names, prices and rows end a plan and a run before anything is rented."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from arm.harness import azure
from arm.runner import CliRunner, cli_runner
from support import model_hub
from support.model_hub import ModelHub, Repository

import cli

RENTED = {"provider": "azure", "gpu": "T4", "regions": ["eastus"], "max_price": 0.2}
ROWS = [{"text": "a fine day", "mood": "good"}, {"text": "rain again", "mood": "bad"}]
SCORED = {"kind": "label", "labels": ["good", "bad"]}


@dataclass(frozen=True)
class Ended:
    """How a command ended, and everything that it printed, in one line each."""

    code: int
    text: str

    def has(self, words: str) -> bool:
        """Whether it said so, wherever the line was broken."""
        return words in " ".join(self.text.split())


Command = Callable[..., Ended]


@pytest.fixture
def qft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """`qft` in an empty folder, without a network; the first argument is the run.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def run(tables: dict[str, Any], *arguments: str) -> Ended:
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(tables, sort_keys=False))
        with mock.patch.object(sys, "argv", ["qft", *(arguments or ("plan",))]):
            try:
                cli.main()
            except SystemExit as ended:
                code = ended.code
        caught = capsys.readouterr()
        assert isinstance(code, int)
        assert "Traceback" not in caught.err
        return Ended(code, caught.out + caught.err)

    return run


def tables(folder: Path, rows: list[dict[str, str]] = ROWS, **changed: Any) -> dict[str, Any]:
    """A run.yaml of two rows; `changed` tables take the place of its own."""
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": "train.jsonl", "prompt": "{text}", "completion": "{mood}"}
    whole = {"name": "tiny", "vm": RENTED, "model": {"id": "microsoft/phi-2"}, "data": data}
    return {**whole, "train": {"steps": 9}, **changed}


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "region": (
        {"vm": {**RENTED, "regions": ["westus9"]}},
        ("vm.regions: Azure has no region `westus9`; did you mean `westus`, `westus2` or "
         "`westus3`? Regions with a T4: australiacentral, "),
    ),
    "region without the card": (
        {"vm": {**RENTED, "regions": ["ukwest"]}},
        "vm.regions: `ukwest` exists, but has no size with a T4 (prices of 2026-06-18)",
    ),
    "gpu": (
        {"vm": {**RENTED, "gpu": "A1000"}},
        ("vm.gpu: no GPU called `A1000` is in the catalog: did you mean `A100` or `A10` or `H100`? "
         "Known: T4, A10, A10G, L4, A100, H100"),
    ),
    "price as text": (
        {"vm": {**RENTED, "max_price": "$0,20"}},
        ("vm.max_price: `$0,20` is no number; write `0.20`, without a unit and with a point for "
         "the decimals"),
    ),
    "price as a word": (
        {"vm": {**RENTED, "max_price": "cheap"}},
        "vm.max_price: `cheap` is no number; write digits only, such as `0.25`",
    ),
    "negative price": (
        {"vm": {**RENTED, "max_price": -0.2}},
        "vm.max_price: Input should be greater than 0, not `-0.2`",
    ),
    "no price": (
        {"vm": {**RENTED, "max_price": float("nan")}},
        "vm.max_price: `.nan` is no finite number",
    ),
    "budget as text": (
        {"budget": {"usd": "5 dollars"}},
        "budget.usd: `5 dollars` is no number; write `5`, without a unit",
    ),
    "budget of nothing": (
        {"budget": {"usd": 0}},
        "budget.usd: Input should be greater than 0, not `0`",
    ),
    "misspelt key": (
        {"vm": {**RENTED, "max_prize": 0.3}},
        "vm.max_prize: unknown key; did you mean `max_price`?",
    ),
    "unknown base": (
        {"model": {"id": "C:\\models\\phi"}},
        "and a hub id reads `owner/name` or `name`, of A-Z, a-z, 0-9, `_`, `-` and `.`",
    ),
    "unknown column": (
        {"data": {"train": "train.jsonl", "prompt": "{txt}", "completion": "{mood}"}},
        "train.jsonl:1: no field `txt` (the row has `text`, `mood`); did you mean `text`?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_a_plan_with_what_to_write(qft: Command, tmp_path: Path, name: str) -> None:
    """The key, what is wrong with its value and the nearest right one; exit 2, before any offer."""
    changed, words = MISTAKES[name]

    ended = qft(tables(tmp_path, **changed))

    assert ended.code == 2
    assert ended.has(words), ended.text
    assert not ended.has("Standard_")


@pytest.mark.parametrize(
    ("name", "command"),
    [("region", "run"), ("gpu", "run"), ("price as text", "run"), ("unknown column", "run"),
     ("region", "doctor")],
)  # fmt: skip
def test_run_and_doctor_refuse_the_same(
    qft: Command, tmp_path: Path, name: str, command: str
) -> None:
    """What a plan refuses is refused by a run before it asks anybody, and by the doctor."""
    changed, words = MISTAKES[name]

    ended = qft(tables(tmp_path, **changed), command)

    assert ended.code == 2
    assert ended.has(words), ended.text
    assert not list((tmp_path / "home").glob("runs/*/journal.jsonl"))


def test_a_comma_in_a_price_is_explained(qft: Command, tmp_path: Path) -> None:
    """Inside braces YAML reads `0,20` as a price of 0 and a key 20; the fault says so."""
    tables(tmp_path)
    (tmp_path / "other.yaml").write_text(
        "name: tiny\nvm: {provider: azure, max_price: 0,20}\nmodel: {id: microsoft/phi-2}\n"
        "data: {train: train.jsonl, prompt: '{text}', completion: '{mood}'}\n"
    )

    ended = qft(tables(tmp_path), "plan", "other.yaml")

    assert ended.code == 2
    assert ended.has("vm: the key `20` is no word; a number has a point for its decimals (`0.20`)")


def test_no_rows_is_reported_with_the_file(qft: Command, tmp_path: Path) -> None:
    """A file without a row, and one that is not there, are named; exit 2."""
    empty = qft(tables(tmp_path, []))
    none = qft({**tables(tmp_path), "data": {"train": "no.jsonl", "prompt": "{text}",
                                             "completion": "{mood}"}})  # fmt: skip

    assert empty.code == none.code == 2
    assert empty.has(f"data.train: {tmp_path}/train.jsonl: the file is empty")
    assert none.has(f"data.train: {tmp_path}/no.jsonl: there is no such file")


def test_a_label_that_is_not_listed_comes_with_the_one_that_was_meant(
    qft: Command, tmp_path: Path
) -> None:
    """A row whose answer is no label stops the plan, and names the row and the nearest label."""
    rows = [*ROWS, {"text": "so so", "mood": "goood"}]
    run = tables(tmp_path, rows, eval=SCORED)
    run["data"]["eval"] = "train.jsonl"

    ended = qft(run)

    assert ended.code == 2
    assert ended.has("train.jsonl:3: 'goood' is not among the labels (good, bad); did you mean")
    assert ended.has("did you mean 'good'?")


def test_a_label_that_no_row_has_is_warned_of(qft: Command, tmp_path: Path) -> None:
    """Nothing teaches it: a plan goes on and says so, since it may be meant."""
    played = {"provider": "local", "gpu": "T4"}
    scored = {"kind": "label", "labels": ["good", "bad", "mixed"]}
    run = tables(tmp_path, vm=played, eval=scored)
    run["data"]["eval"] = "train.jsonl"

    ended = qft(run)

    assert ended.code == 0
    assert ended.has("warning: eval.labels: no row to learn from has `mixed`")


def test_rows_that_are_all_too_long_are_refused_before_money(qft: Command, tmp_path: Path) -> None:
    """Where longer rows are dropped and every one has more words than tokens may be, none is left.

    A tokenizer makes at least a token of each word, so that this is sure without one.
    """
    rows = [{"text": "word " * (20 + n), "mood": "good"} for n in range(3)]
    run = tables(tmp_path, rows, train={"steps": 9, "max_length": 16})

    run["data"]["too_long"] = "drop"
    dropped = qft(run)
    run["data"]["too_long"] = "refuse"
    refused = qft(run)

    assert dropped.code == refused.code == 2
    assert dropped.has("all of its 3 rows have more than 16 tokens (`too_long: drop`; the shortest "
                       "has 20 words); raise `train.max_length`")  # fmt: skip
    assert refused.has(
        "train.jsonl:1: the row has more than 20 tokens, and `train.max_length` is 16"
    )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    """A hub that has one model, of the owner of Phi."""
    with model_hub.running() as running:
        running.models["microsoft/phi-2"] = Repository(files={"config.json": b"{}"})
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def test_a_model_id_that_the_hub_does_not_have_is_refused(
    qft: Command, hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One small request tells: the id, and the models of that owner with a similar name; exit 2."""
    monkeypatch.delenv("HF_HUB_OFFLINE")

    ended = qft(tables(tmp_path, model={"id": "microsoft/ph-2"}))

    assert ended.code == 2
    assert ended.has("model.id: ")
    assert ended.has("`microsoft/phi-2`")
    assert all(path.startswith("/api/") for _, path, _ in hub.requests)


def test_a_misspelt_model_id_is_noticed_without_a_network(qft: Command, tmp_path: Path) -> None:
    """The table of common bases knows what was meant where no hub can be asked."""
    played = {"provider": "local", "gpu": "T4"}

    ended = qft(tables(tmp_path, vm=played, model={"id": "microsoft/ph-2"}))

    assert ended.has("did you mean `microsoft/phi-2`?")


@pytest.fixture
def runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    """A command line with a simulated cloud behind it."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tables(tmp_path)))
    with (
        azure(tmp_path / "unused") as harness,
        cli_runner(tmp_path, tmp_path / "home", harness, capsys) as runner,
        mock.patch.dict("os.environ", {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}),
    ):
        yield runner


def test_without_a_subscription_nothing_goes_ahead(runner: CliRunner) -> None:
    """A plan shows what the job costs, then how to choose one; both exit 3, nothing made."""
    runner.harness.changes = {"subscription_id": ""}

    plan, run = runner.qft("plan"), runner.qft("run")

    assert plan.code == run.code == 3
    assert "dollars" in plan.out
    last = " ".join(plan.out[plan.out.rindex("nothing was created") :].split())
    assert last == (
        "nothing was created: no Azure subscription is chosen: `az account list -o table`, then "
        "set AZURE_SUBSCRIPTION_ID"
    )
    assert "no Azure subscription is chosen" in run.err
    assert runner.harness.cloud.leftovers() == []


def test_a_subscription_that_is_not_there_is_named(runner: CliRunner) -> None:
    """Azure's own word for it is the last line of the plan, with the command that lists them."""
    runner.harness.changes = {"subscription_id": "my-subscription"}

    plan = runner.qft("plan")

    last = " ".join(plan.out[plan.out.rindex("nothing was created") :].split())
    assert plan.code == 3
    assert "The subscription 'my-subscription' could not be found: `az account list`" in last
