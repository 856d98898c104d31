"""A scoring that is killed goes on where it was, and a run is scored once, whatever it began as."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from support import tiny
from support.scored_answers import CHAT_TEMPLATE

from commands import eval as eval_command
from trainer.__main__ import main
from trainer.atomic import RealDisk
from trainer.config import TrainerConfig, load_config
from trainer.errors import DataError, Preempted
from trainer.rundir.layout import (
    data_facts,
    finished,
    scoring_scratch,
    sweep,
    training_facts,
)
from trainer.scoring import constrained, evaluate
from trainer.scoring.rescore import rescore
from trainer.scoring.result import EvalResult

LABELS = {"kind": "label", "labels": list(tiny.MOODS), "shots": 1, "baselines": False}
KINDS: dict[str, dict[str, Any]] = {"loss": {"kind": "loss", "shots": 1}, "label": LABELS}
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM
from support.tiny import make_tokenizer
from trainer.config import TrainerConfig, load_config
from trainer.scoring import constrained, evaluate
constrained.batches_by_length.__kwdefaults__["rows"] = 4
run = Path(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32)
calls = 0
def on_progress(done, total):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
evaluate.run(run, load_config(run / "config.json"), model, make_tokenizer(), stage="before",
             on_progress=on_progress)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a model that all runs here share."""
    return tiny.make_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    """That model."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a scoring of fourteen rows have four batches, in one thread as in the other process."""
    settings = {**(constrained.batches_by_length.__kwdefaults__ or {}), "rows": 4}
    monkeypatch.setattr(constrained.batches_by_length, "__kwdefaults__", settings)
    torch.set_num_threads(1)


def scored_run(directory: Path, base: Path, table: dict[str, Any] | str | None) -> Path:
    """Lay out a run of two steps with fourteen held-out rows, scored by a table."""
    directory.mkdir(parents=True)
    rows = tiny.make_rows(directory / "rows.jsonl", 14)
    config = tiny.make_config(base, rows, data={"eval": str(rows)}, train={"steps": 2})
    return tiny.write_config(directory / "run", config | ({} if table is None else {"eval": table}))


def score(
    run: Path, model: Any, *, stop_at: int | None = None, stage: Literal["before"] = "before"
) -> dict[str, Any]:
    """Score, or stop at a call of the progress, and return what was written."""
    calls = iter(range(1, 1000))

    def on_progress(_done: int, _total: int) -> None:
        if next(calls) == stop_at:
            raise Preempted

    config = load_config(run / "config.json")
    evaluate.run(run, config, model, tiny.make_tokenizer(), stage=stage, on_progress=on_progress)
    return read(run, stage)


def read(run: Path, stage: str) -> dict[str, Any]:
    """What stands in a result, but for how long it took."""
    found = json.loads((run / f"eval-{stage}.json").read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key != "seconds"}


class Passes:
    """Counts the rows that go through a model."""

    def __init__(self, model: Any) -> None:
        self._rows = 0
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _module: Any, _args: Any, inputs: dict[str, Any]) -> None:
        self._rows += len(inputs["input_ids"])

    def since_last(self) -> int:
        """Return how many there were since this was called last."""
        rows, self._rows = self._rows, 0
        return rows


@pytest.mark.parametrize("kind", KINDS)
def test_a_scoring_stopped_at_any_batch_gives_the_same_digits(
    kind: str, base: Path, model: Any, tmp_path: Path
) -> None:
    """Wherever it is stopped, in any of its passes, what follows is what was left out."""
    whole = score(scored_run(tmp_path / "whole", base, KINDS[kind]), model)
    for stop in range(1, 11) if kind == "loss" else range(2, 21, 2):
        run = scored_run(tmp_path / str(stop), base, KINDS[kind])
        with pytest.raises(Preempted):
            score(run, model, stop_at=stop)

        assert not (run / "eval-before.json").exists()
        assert score(run, model) == whole


def test_kill_9_loses_nothing_that_was_done(base: Path, model: Any, tmp_path: Path) -> None:
    """A process that is killed in a scoring leaves its rows; the next one takes them."""
    whole = score(scored_run(tmp_path / "whole", base, LABELS), model)
    run = scored_run(tmp_path / "killed", base, LABELS)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(run), str(base), "8"],
        cwd=tiny.ROOT,
        env={**tiny.quiet_environment(), "PYTHONPATH": f"{tiny.ROOT}:{tiny.ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    scratch = scoring_scratch(run, "before")
    kept = {
        path.stem: len(path.read_text(encoding="utf-8").splitlines()) - 1
        for path in scratch.iterdir()
    }
    passes = Passes(model)

    assert kept["answers"] == 14
    assert 0 < kept["few-shot-answers"] < 14
    assert score(run, model) == whole
    assert passes.since_last() > 0
    assert score(run, model) == whole
    assert passes.since_last() == 0  # every row was there


def test_rows_of_another_adapter_are_not_taken(base: Path, model: Any, tmp_path: Path) -> None:
    """What was kept under other facts is computed anew."""
    run = scored_run(tmp_path / "a", base, KINDS["loss"])
    config = load_config(run / "config.json")
    passes = Passes(model)
    counts = []
    for adapter in ("one", "one", "other"):
        evaluate.run(
            run, config, model, tiny.make_tokenizer(), stage="before",
            on_progress=lambda *_: None, facts={"adapter": adapter},
        )  # fmt: skip
        counts.append(passes.since_last())

    assert counts[0] == counts[2] > 0
    assert counts[1] == 0


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One training each: scored without being asked, and not scored."""
    tables: dict[str, str | None] = {"unasked": None, "none": "none"}
    root = tmp_path_factory.mktemp("trained")
    runs = {name: scored_run(root / name, base, table) for name, table in tables.items()}
    for run in runs.values():
        assert main(["train", "--run-dir", str(run)]) == 0
    return runs


def test_a_run_is_scored_by_itself_and_trains_to_the_same_bits(
    trained: dict[str, Path],
) -> None:
    """Adapter and log are bit for bit those of `eval: none`, and nothing half-done stays."""
    unasked, none = trained["unasked"], trained["none"]
    after = read(unasked, "after")
    configs = [load_config(run / "config.json") for run in (unasked, none)]
    facts = [training_facts(config, data_facts(config, unasked)) for config in configs]

    assert tiny.adapter_bytes(unasked) == tiny.adapter_bytes(none)
    assert tiny.losses(unasked) == tiny.losses(none)
    assert {**facts[0], "data.train": None} == {**facts[1], "data.train": None}
    assert (after["kind"], after["n"]) == ("text", 14)
    assert after["loss"]["change"]["nats_per_token"]["high"] < 0
    assert not (none / "eval-before.json").exists()
    assert not [path for path in unasked.iterdir() if path.name.startswith(".scoring")]


def test_a_run_that_an_earlier_version_finished_stays_finished(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    """It has no score and no table, and nothing is done again; one of today is scored still."""
    run = Path(shutil.copytree(trained["unasked"], tmp_path / "run"))
    for stage in ("before", "after"):
        (run / f"eval-{stage}.json").unlink()
    (run / ".scored.json").unlink()
    config = load_config(run / "config.json")
    inputs = data_facts(config, run)

    assert not finished(run, config, inputs)
    receipt = json.loads((run / "adapter" / "qft.json").read_text(encoding="utf-8"))
    del receipt["scores_unasked"]
    (run / "adapter" / "qft.json").write_text(json.dumps(receipt), encoding="utf-8")
    assert finished(run, config, inputs)


def test_rows_left_of_a_scoring_that_stands_are_removed(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    """A kill between the result and the end leaves rows, which the next start takes away."""
    run = Path(shutil.copytree(trained["unasked"], tmp_path / "run"))
    leftover = scoring_scratch(run, "before")
    leftover.mkdir()
    (leftover / "loss.jsonl").write_text("{}\n", encoding="utf-8")
    (run / "eval-after.json").unlink()

    assert main(["train", "--run-dir", str(run)]) == 0
    assert not leftover.exists()
    assert (run / "eval-after.json").exists()


def test_only_rows_of_a_scoring_that_ended_are_swept(tmp_path: Path) -> None:
    """What was kept after the last score belongs to the next one."""
    (tmp_path / ".scored.json").write_text("{}", encoding="utf-8")
    ended = (tmp_path / ".scored.json").stat().st_mtime
    for stage, later_s in (("before", -5), ("after", 5)):
        scratch = scoring_scratch(tmp_path, stage)
        scratch.mkdir()
        (scratch / "loss.jsonl").write_text("{}", encoding="utf-8")
        os.utime(scratch / "loss.jsonl", (ended, ended + later_s))
    sweep(tmp_path, disk=RealDisk())

    assert not scoring_scratch(tmp_path, "before").exists()
    assert scoring_scratch(tmp_path, "after").exists()
    (tmp_path / ".scored.json").unlink()
    sweep(tmp_path, disk=RealDisk())
    assert scoring_scratch(tmp_path, "after").exists()


def test_scored_again_a_result_has_its_change(trained: dict[str, Path], tmp_path: Path) -> None:
    """The same adapter on the same rows has the score that it had, with the gain over the base."""
    run = Path(shutil.copytree(trained["unasked"], tmp_path / "run"))
    found = rescore(run, run / "adapter", on_progress=lambda *_: None)
    after = read(run, "after")

    now, then = (one["loss"]["change"]["nats_per_token"] for one in (found, after))

    assert found["details"]["gain"] == after["details"]["gain"]
    assert now == pytest.approx(then, rel=1e-4)  # in other batches, so not to the last bit
    (run / "eval-before.json").write_text('{"stage": "before"}', encoding="utf-8")
    assert rescore(run, run / "adapter", on_progress=lambda *_: None)["loss"]["change"] is None


def test_the_base_is_scored_where_an_earlier_version_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`qft eval --again` measures before and after of a run without a score, else after alone."""
    calls: list[tuple[str, ...]] = []

    def start(*arguments: str) -> SimpleNamespace:
        calls.append(arguments)
        stage = "after" if "--adapter" in arguments else "before"
        return SimpleNamespace(returncode=0, stdout=json.dumps({"stage": stage}))

    loaded: Any = SimpleNamespace(out=tmp_path, config=None)
    monkeypatch.setattr(eval_command, "start", start)
    monkeypatch.setattr(eval_command, "demand", lambda *_: None)
    monkeypatch.setattr(eval_command, "needed_to_train", lambda _config: ())
    monkeypatch.setattr(eval_command, "adapter_of", lambda _loaded: tmp_path / "adapter")
    monkeypatch.setattr(eval_command, "local_run_dir", lambda *_: nullcontext(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    for expected in (2, 1):
        calls.clear()
        eval_command._score_again(loaded, loaded, lambda _line: None)

        assert len(calls) == expected
        assert "--adapter" in calls[-1]
        assert read(tmp_path, "before") == {"stage": "before"}
        assert read(tmp_path / "run", "before") == {"stage": "before"}
        assert read(tmp_path, "after") == {"stage": "after"}


def test_rows_that_cannot_be_answered_end_no_run_that_says_nothing_of_scores(
    base: Path, model: Any, tmp_path: Path
) -> None:
    """Conversations in which nobody speaks before an answer are scored by their loss alone."""
    start = {"role": "system", "content": "say a word"}
    rows = [{"talk": [start, {"role": "assistant", "content": f"word {at}"}]} for at in range(6)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    data = {"train": "rows.jsonl", "eval": "rows.jsonl", "messages": "talk", "chat": "template"}
    tables = {"model": {"id": str(base)}, "data": data}

    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE

    def score(**more: Any) -> EvalResult:
        config = TrainerConfig.model_validate(tables | more)
        return evaluate.run(
            tmp_path, config, model, tokenizer, stage="before", on_progress=lambda *_: None
        )

    result = score()

    assert (result.kind, result.n) == ("loss", 6)
    assert "no conversation has an answer behind a turn" in result.details["not_answered"]
    with pytest.raises(DataError, match="no conversation has an answer"):
        score(eval={"kind": "chat"})
