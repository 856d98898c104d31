"""`qft merge` fetches a base from its hub, merges it, and says how alike it and the adapter are."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import support.hub as hubs
import torch
from support import tiny
from support.models import load, make_adapter
from support.trainer_here import in_here

from commands import merge
from commands.runs import python_program
from commands.runs.base_description import cached
from commands.runs.home import run_folder
from infra.durable import write_json
from infra.run.journal import Journal, Kind
from trainer.data.codec import Example
from trainer.results.merge_check import choose_dtype, evenly_spaced

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
HUB_ID = "me/base"


@dataclass(frozen=True)
class FetchedRun:
    """A home with one fetched adapter, whose base lies on a hub in three shards."""

    place: Path
    out: Path
    hub: hubs.Hub

    def merge(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `qft merge` in a process of its own."""
        return self._run("cli.py", "merge", "moods", "--json", *arguments, **env)

    def download(self, **env: str) -> subprocess.CompletedProcess[str]:
        """Only fetch the base, as `qft merge` does."""
        return self._run("-m", "trainer", "fetch-base", "--model", HUB_ID, **env)

    def _run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        around = tiny.quiet_environment() | {
            "QFT_HOME": str(self.place / "home"), "HF_HOME": str(self.place / "hf"),
            "HF_ENDPOINT": self.hub.endpoint, "HF_HUB_OFFLINE": "0",
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, *arguments], cwd=tiny.ROOT,
            env=around | env, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip

    def fetched(self) -> list[str]:
        """The files that were asked for, by their names, each once."""
        names = [one.rpartition("/")[2] for one in self.hub.requests if one.startswith("GET")]
        assert len(names) == len(set(names))
        return sorted(names)


@pytest.fixture
def fetched_run(tmp_path: Path) -> Iterator[FetchedRun]:
    """A qlora run of the tiny model that is at home, with six held-out rows."""
    base, cut = tiny.make_model(tmp_path / "base"), tmp_path / "cut"
    load(base).save_pretrained(str(cut), max_shard_size="40KB")
    out = tmp_path / "out" / "moods"
    make_adapter(base, out / "adapter")
    rows = tiny.make_rows(tmp_path / "rows.jsonl", 6)
    tables = tiny.make_config(
        base, rows, model={"id": HUB_ID}, data={"eval": str(rows)},
        method={"kind": "qlora", "dropout": 0.0},
    )  # fmt: skip
    content: dict[str, Any] = {"name": "moods", "vm": {"provider": "local", "gpu": "T4"}, **tables}
    folder = run_folder(tmp_path / "home", "moods")
    Journal(folder.journal, clock=time.time).append(Kind.RUN_STARTED, run_id="m-1", name="moods")
    write_json(folder.config, {"config": content, "path": str(tmp_path / "run.yaml")})
    with hubs.running() as hub:
        for path in (*cut.iterdir(), *base.glob("token*")):
            hub.models[f"{HUB_ID}/{path.name}"] = path.read_bytes()
        for name in ("pytorch_model.bin", "consolidated.safetensors", "onnx/config.json", "a.png"):
            hub.models[f"{HUB_ID}/{name}"] = b"no business of ours"
        yield FetchedRun(tmp_path, out, hub)


def test_a_base_on_a_hub_is_fetched_merged_and_compared(fetched_run: FetchedRun) -> None:
    """Only its shards, configs and tokenizer are fetched, once; offline, the copy will do."""
    first = fetched_run.merge()
    assert first.returncode == 0, first.stderr
    output = json.loads(first.stdout)
    shards = sorted(path.name for path in (fetched_run.out / "merged").glob("*.safetensors"))
    wanted = ["config.json", "generation_config.json", "model.safetensors.index.json"]
    wanted += ["tokenizer.json", "tokenizer_config.json"]
    again = fetched_run.download(HF_HUB_OFFLINE="1")

    assert len(shards) > 2
    assert fetched_run.fetched() == sorted([*shards, *wanted])
    assert output["parity"]["rows"] == output["parity"]["equal"] == 6
    assert output["parity"]["logits_difference_max"] < 1e-4
    assert output["parity"]["onto"] == "original"
    assert output["parity"]["on_original"]["logits_difference_max"] < 1e-4
    assert output["parity"]["as_trained"]["quant"] == "nf4"
    assert output["parity"]["as_trained"]["logits_difference_max"] > 1e-3
    assert json.loads((fetched_run.out / "merged-parity.json").read_text()) == output["parity"]
    assert again.returncode == 0, again.stderr
    assert (Path(again.stdout.strip()) / shards[0]).is_file()


def test_merged_into_the_quantised_base_it_is_compared_with_that_first(
    fetched_run: FetchedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Top figures are of the base of the training, and go with their merge; else it is hinted."""
    monkeypatch.setenv("QFT_HOME", str(fetched_run.place / "home"))
    monkeypatch.setattr(python_program, "start", in_here)
    options = merge.MergeOptions(base=str(fetched_run.place / "base"), quantised=True, rows=3)
    target, found = merge.merge("moods", options, as_json=True)
    kept = json.loads((fetched_run.out / "merged-parity.json").read_text())
    shutil.rmtree(target)
    merge.merge("moods", replace(options, rows=0), as_json=True)
    message, stale = capsys.readouterr().err, (fetched_run.out / "merged-parity.json").exists()
    shutil.rmtree(target)
    _, other = merge.merge("moods", replace(options, quantised=False, rows=6), as_json=True)

    assert found is not None
    assert kept == found
    assert (found["onto"], found["rows"], found["equal"]) == ("quantized", 3, 3)
    assert found["logits_difference_max"] < 1e-5
    assert found["as_trained"]["logits_difference_max"] == found["logits_difference_max"]
    assert found["on_original"]["logits_difference_max"] > 1e-3
    assert "merged onto the nf4 base of the training, 14 matrices" in message
    assert "hint" not in message
    assert not stale
    assert other is not None
    assert other["as_trained"]["equal"] < 6
    assert "hint: `qft merge moods --onto quantized`, with `" in capsys.readouterr().err


def test_a_base_that_was_not_quantised_is_no_quantised_one(fetched_run: FetchedRun) -> None:
    """After `kind: lora` the option is refused before a base is fetched, with what to type."""
    folder = run_folder(fetched_run.place / "home", "moods")
    kept = json.loads(folder.config.read_text(encoding="utf-8"))
    kept["config"]["method"]["kind"] = "lora"
    write_json(folder.config, kept)
    refused = fetched_run.merge("--onto", "quantized")

    assert refused.returncode == 2
    assert "`moods` was trained on a base that is not quantised" in refused.stdout
    assert "`qft merge moods` merges onto that base" in refused.stdout
    assert fetched_run.fetched() == []


def test_a_base_that_is_not_given_names_the_way_around(fetched_run: FetchedRun) -> None:
    """Without a hub, behind a gate or without weights, it is said why; offline, what to type."""
    offline = fetched_run.merge(HF_HUB_OFFLINE="1")
    unreached = fetched_run.merge(HF_ENDPOINT="http://127.0.0.1:9")
    fetched_run.hub.gated = True
    gated = fetched_run.download()
    fetched_run.hub.gated = False
    config = fetched_run.hub.models[f"{HUB_ID}/config.json"]
    fetched_run.hub.models.clear()
    fetched_run.hub.models[f"{HUB_ID}/config.json"] = config
    weightless = fetched_run.download()

    assert [one.returncode for one in (offline, unreached, gated, weightless)] == [2, 4, 78, 78]
    for one in (offline, unreached):
        assert "`hf download me/base --revision main --local-dir base`" in one.stdout
    assert "the hub does not give me/base" in offline.stdout
    assert "cannot be fetched: 403" in gated.stderr
    assert "has neither model.safetensors" in weightless.stderr
    assert "Traceback" not in offline.stderr + gated.stderr + weightless.stderr
    assert not (fetched_run.out / "merged").exists()


def test_a_plan_knows_a_base_that_the_library_has_fetched(fetched_run: FetchedRun) -> None:
    """Where the hub's library puts a base, by branch or commit, is where a plan looks for it."""
    env = {"HF_HOME": str(fetched_run.place / "hf")}
    before = cached(HUB_ID, "main", env)
    fetched = fetched_run.download()

    assert before is None
    assert fetched.returncode == 0, fetched.stderr
    assert str(cached(HUB_ID, "main", env)) == fetched.stdout.strip()
    assert cached(HUB_ID, hubs.MODEL_COMMIT, env) == cached(HUB_ID, "main", env)
    assert (
        cached(HUB_ID, "main", {"HF_HUB_CACHE": str(fetched_run.place / "hf" / "hub")}) is not None
    )
    assert cached(HUB_ID, "other", env) is None


@pytest.mark.parametrize(
    ("free", "dtype"), [(100, torch.float32), (40, torch.bfloat16), (20, None)]
)
def test_the_comparison_takes_the_type_that_fits(free: float, dtype: torch.dtype | None) -> None:
    """Ten billion numbers in 16 bits need 48 GB in float32 and 24 in bfloat16, with some room."""
    assert choose_dtype(20_000_000_000, 2, free_bytes=int(free * 1e9)) is dtype


def test_rows_to_compare_are_spread_evenly() -> None:
    """Of ten rows three are the first of each third, and more than there are is all of them."""
    items = [
        Example(row=row, prompt="", completion="", input_ids=(1,), labels=(1,), prompt_length=0)
        for row in range(10)
    ]

    assert [item.row for item in evenly_spaced(items, 3)] == [0, 3, 6]
    assert evenly_spaced(items, 99) == items
