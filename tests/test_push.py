"""`qft push` publishes what a run brought home, as often as one likes, and the token nowhere."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import support.hub as hubs
import torch
from safetensors.torch import save_file
from support import tiny
from support.trainer_here import in_here

from commands import push
from commands.runs import python_program
from commands.runs.home import run_folder
from commands.ui.errors import HostError
from infra.durable import write_json
from infra.run.journal import Journal, Kind

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class FinishedRun:
    """A home with one finished run, and the hub to publish to."""

    place: Path
    out: Path
    hub: hubs.Hub

    def push(self, *more: str, token: str = hubs.TOKEN) -> subprocess.CompletedProcess[str]:
        """Run `qft push` in a process of its own."""
        env = tiny.quiet_environment() | {
            "QFT_HOME": str(self.place / "home"), "HF_HOME": str(self.place / "hf"),
            "HF_ENDPOINT": self.hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_DEBUG": "1",
        }  # fmt: skip
        env = env | {"HF_TOKEN": token} if token else env
        command = ["cli.py", "push", "moods", "--repo", "me/model", *more]
        return subprocess.run(
            [sys.executable, *command],
            cwd=tiny.ROOT, env=env, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip

    def files(self) -> str:
        """All text that the command could have left on this computer, in one string."""
        return "".join(
            path.read_text(encoding="utf-8", errors="replace")
            for path in self.place.rglob("*")
            if path.is_file()
        )


@pytest.fixture
def finished_run(tmp_path: Path) -> Iterator[FinishedRun]:
    """A run of twelve steps that was evicted once, scored, fetched and merged."""
    model = tmp_path / "secret place" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}", encoding="utf-8")
    rows = tiny.make_rows(tmp_path / "secret place" / "rows.jsonl", 6)
    table = {"kind": "label", "labels": list(tiny.MOODS)}
    tables = tiny.make_config(model, rows, data={"eval": str(rows)}, eval=table)
    vm = {"provider": "local", "gpu": "T4"}
    content: dict[str, Any] = {"name": "moods", "vm": vm, **tables}
    folder = run_folder(tmp_path / "home", "moods")
    journal = Journal(folder.journal, clock=time.time)
    journal.append(Kind.RUN_STARTED, run_id="moods-1234", name="moods")
    journal.append(Kind.STOP_SEEN, reason="evicted", power="deallocated", step=3)
    write_json(folder.config, {"config": content, "path": str(tmp_path / "run.yaml")})
    out = tmp_path / "out" / "moods"
    for name, weights in (("adapter", WEIGHTS), ("merged", "model.safetensors")):
        (out / name).mkdir(parents=True)
        save_file({name: torch.arange(4.0)}, out / name / weights)
    steps = [{"step": at, "loss": 1.0, "tokens": 8, "seconds": 36.0} for at in range(1, 13)]
    log = "".join(json.dumps(step) + "\n" for step in steps)
    (out / "metrics.jsonl").write_text(log, encoding="utf-8")
    for stage, value in (("before", 0.25), ("after", 0.75)):
        (out / f"eval-{stage}.json").write_text(json.dumps(scored(value)), encoding="utf-8")
    with hubs.running() as hub:
        yield FinishedRun(tmp_path, out, hub)


def names(finished_run: FinishedRun) -> tuple[str, str]:
    """What the adapter on the hub says of its base, and what the card says."""
    config = json.loads(finished_run.hub.files["adapter_config.json"])
    card = finished_run.hub.files["README.md"].decode()
    lines = [line for line in card.splitlines() if line.startswith("base_model:")]
    return config["base_model_name_or_path"], "".join(lines)


def scored(value: float) -> dict[str, Any]:
    """The result of an evaluation, as far as a card needs it."""
    span = {"value": value, "low": value - 0.1, "high": value + 0.1}
    figures = {"figures": {"exact_match": span}}
    baselines = {"majority": {"rows": 6, "figures": {"exact_match": span | {"value": 0.333}}}}
    details = {"bound": figures, "free": figures, "baselines": baselines}
    more = {"metric": "accuracy", "decoding": "bound", "n": 6, "stop_rate": 1, "parse_failures": 0}
    return span | more | {"details": details}


def test_an_adapter_arrives_with_a_card_of_method_data_scores_and_cost(
    finished_run: FinishedRun,
) -> None:
    """Pushed twice it stands there once, with a card that tells how it came to be."""
    ended = [finished_run.push() for _ in range(2)]
    card = finished_run.hub.files["README.md"].decode()

    assert [one.returncode for one in ended] == [0, 0], ended[0].stderr
    assert ended[0].stdout == f"{finished_run.hub.endpoint}/me/model\n"
    assert set(finished_run.hub.files) == {WEIGHTS, "README.md"}
    assert finished_run.hub.files[WEIGHTS] == (finished_run.out / "adapter" / WEIGHTS).read_bytes()
    assert len(finished_run.hub.commits) == 2
    for line in (
        "library_name: peft",
        "- lora, rank 4, alpha 8, dropout 0.1, base stored as none",
        "- 12 optimizer steps of 4 sequences",
        "- learnt from `rows.jsonl`, scored on 6 rows of `rows.jsonl`",
        "| commonest answer | exact_match | 0.333 | 0.150 to 0.350 |",
        "| base | accuracy | 0.250 | 0.150 to 0.350 |",
        "| fine-tuned | accuracy | 0.750 | 0.650 to 0.850 |",
        "- 0.12 hours of training steps",
        "- 0.00 USD at the listed price",
        "- 1 evictions survived",
    ):
        assert line in card
    assert "secret place" not in card


def test_a_merged_model_is_published_as_a_model(finished_run: FinishedRun) -> None:
    """`--merged --public` sends the merged weights, visible; without them it names `qft merge`."""
    alike = {"held_out": True, "rows": 6, "equal": 5, "onto": "quantized"}
    alike |= {"as_trained": {"quant": "nf4", "equal": 5}, "on_original": {"equal": 4}}
    (finished_run.out / "merged-parity.json").write_text(json.dumps(alike), encoding="utf-8")
    done = finished_run.push("--merged", "--public")
    card = finished_run.hub.files["README.md"].decode()

    assert done.returncode == 0, done.stderr
    assert set(finished_run.hub.files) == {"model.safetensors", "README.md"}
    assert "library_name: transformers" in card
    assert (
        "The merged model answers 5 of 6 held-out rows as the adapter does on the nf4 base it was "
        "trained on, which it was merged onto, and 4 as on the original base."
    ) in card
    assert finished_run.hub.created[0]["visibility"] == "public"

    (finished_run.out / "merged").rename(finished_run.out / "elsewhere")
    refused = finished_run.push("--merged")

    assert refused.returncode == 2
    assert "there is no merged model yet" in refused.stderr
    assert "`qft merge moods` makes it" in refused.stderr


def test_the_token_is_printed_and_written_nowhere(finished_run: FinishedRun) -> None:
    """Neither a right nor a wrong one is in any output or file; a wrong or no token is named."""
    right, wrong, none = (
        finished_run.push(),
        finished_run.push(token="hf_wrongOfTheTest"),
        finished_run.push(token=""),
    )

    assert [one.returncode for one in (right, wrong, none)] == [0, 2, 2]
    assert "hint: check that HF_TOKEN may write to me/model" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert "HF_TOKEN is not set" in none.stderr
    everything = finished_run.files() + "".join(
        one.stdout + one.stderr for one in (right, wrong, none)
    )
    assert hubs.TOKEN not in everything
    assert "hf_wrongOfTheTest" not in everything


def test_a_hub_that_is_not_reached_is_no_error_of_the_command(
    finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It exits 4, as one may try again then, and a script reads the hint where hints stand."""
    monkeypatch.setenv("QFT_HOME", str(finished_run.place / "home"))
    monkeypatch.setenv("HF_TOKEN", hubs.TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(python_program, "start", in_here)
    options = push.PushOptions(repo="me/model", merged=False, public=False)
    with pytest.raises(HostError, match="the hub was not reached") as caught:
        push.push("moods", options, as_json=True)

    assert caught.value.exit_code == 4
    assert caught.value.hint == "nothing is half-published; the same command tries again"
    assert [line.partition(":")[0] for line in caught.value.problems] == [
        "the hub does not answer as it should"
    ]


def test_a_base_in_a_directory_is_published_without_its_path(finished_run: FinishedRun) -> None:
    """Others read its bare name, or the hub id given with `--base`; at home nothing changes."""
    home = json.dumps({"base_model_name_or_path": "/home/alice/qft/job/model", "r": 4})
    (finished_run.out / "adapter" / "adapter_config.json").write_text(home, encoding="utf-8")
    bare = finished_run.push()

    assert bare.returncode == 0, bare.stderr
    assert names(finished_run) == ("model", "")
    assert bare.stderr.count("the base `model` was a directory here") == 1
    assert "alice" not in "".join(map(repr, finished_run.hub.files.values())) + bare.stderr

    named = finished_run.push("--base", "me/base")

    assert named.returncode == 0, named.stderr
    assert names(finished_run) == ("me/base", "base_model: me/base")
    assert "hint" not in named.stderr
    assert (finished_run.out / "adapter" / "adapter_config.json").read_text(
        encoding="utf-8"
    ) == home
    assert finished_run.push("--base", "/home/alice/model").returncode == 2
