"""A model's answers are run and counted; where no sandbox holds, they are kept and not run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.code_problems import ROWS, write_rows
from support.tiny import make_config, make_model

from trainer.code_eval.limits import Outcome
from trainer.code_eval.runner import ProgramRunner
from trainer.config import TrainerConfig
from trainer.errors import ConfigError, NoSandbox
from trainer.scoring import code
from trainer.scoring.evaluate import run
from trainer.scoring.free_answers import FreeAnswer
from trainer.scoring.result import EvalResult

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="answers run on Linux only; elsewhere they are refused"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A tiny model and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = make_model(tmp_path_factory.mktemp("model"))
    loaded = AutoModelForCausalLM.from_pretrained(str(directory)).eval()
    return loaded, AutoTokenizer.from_pretrained(str(directory))


def config_of(folder: Path, **table: Any) -> TrainerConfig:
    """Lay out three problems and return a config that scores answers to them."""
    write_rows(folder / "eval.jsonl")
    settings = make_config(
        folder,
        folder / "eval.jsonl",
        data={"eval": "eval.jsonl", "prompt": "{problem}\n", "completion": "{code}"},
        train={"max_length": 200},
        eval={"kind": "code", "tokens_max": 4, **table},
    )
    return TrainerConfig.model_validate(settings)


def score(folder: Path, model: tuple[Any, Any], stage: Any, **table: Any) -> EvalResult:
    """Score the model's answers to the three problems."""
    return run(
        folder, config_of(folder, **table), *model, stage=stage, on_progress=lambda *_counts: None
    )


def answers_of(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> None:
    """Let the model answer so, whatever it would say."""
    found = [FreeAnswer(text=text, stopped=True) for text in answers]
    monkeypatch.setattr(code, "answer_freely", lambda *_items, **_settings: found)


@linux_only
def test_answers_are_run_and_counted(
    tmp_path: Path, model: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two problems is solved, the third cannot be scored here, and the gain is paired."""
    answers_of(monkeypatch, ["result = 0", "result = 1", "result = data"])
    before = score(tmp_path, model, "before", memory_gb=1)
    answers_of(monkeypatch, ["```python\nresult = sum(data)\n```", "result = 1", "result = data"])
    after = score(tmp_path, model, "after", memory_gb=1)

    assert (before.metric, before.value, before.n) == ("pass_at_1", 0.0, 2)
    assert (after.value, after.low < 0.5 < after.high) == (0.5, True)
    assert [one["verdict"] for one in after.details["documents"]] == ["passed", "error"]
    assert after.details["documents"][1]["error"] == "IndentationError"
    assert [(one["row"], one["library"]) for one in after.details["not_scorable"]] == [
        (3, "Nowhere")
    ]
    assert "a_library_that_is_nowhere" in after.details["not_scorable"][0]["reason"]
    assert before.details["baselines"]["empty"]["pass_at_1"]["value"] == 0
    assert after.details["gain"]["value"] == 0.5
    assert after.details["interpreter"]["python"].startswith("3.")
    assert after.details["interpreter"]["sandbox"]["mechanism"] in {"namespaces", "landlock"}
    assert json.loads((tmp_path / "eval-after.json").read_text())["kind"] == "code"


@linux_only
def test_rows_none_of_which_can_be_scored_end_the_job_before_training(
    tmp_path: Path, model: tuple[Any, Any]
) -> None:
    """If no problem's own solution passes, the message names reasons and what to change."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = config_of(folder)
    (folder / "eval.jsonl").write_text(json.dumps(ROWS[2]) + "\n")
    with pytest.raises(ConfigError, match=r"no problem's own solution passes") as caught:
        run(folder, config, *model, stage="before", on_progress=lambda *_counts: None)

    assert "row 1 (Nowhere): error ModuleNotFoundError" in str(caught.value)


@pytest.mark.parametrize("stage", ["before", "after"])
def test_without_a_sandbox_no_answer_is_run(
    tmp_path: Path, model: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Refused before training, nothing is generated; after it, the answers are kept, not run."""

    @contextmanager
    def refuses(*_settings: object, **_more: object) -> Iterator[ProgramRunner]:
        raise NoSandbox(["namespaces: does not hold against forking without end"])
        yield

    def runs(*_programs: object, **_settings: object) -> list[Outcome]:
        raise AssertionError

    monkeypatch.setattr(code, "proven_runner", refuses)
    monkeypatch.setattr(code, "run_programs", runs)
    with pytest.raises(NoSandbox, match="forking without end") as caught:
        score(tmp_path, model, stage)

    kept = list(tmp_path.glob("**/answers.jsonl"))
    assert len(kept) == (stage == "after")
    assert not (tmp_path / f"eval-{stage}.json").exists()
    assert caught.value.exit_code == 78
    if kept:
        assert len(kept[0].read_text().splitlines()) == 1 + len(ROWS)
        assert str(kept[0]) in str(caught.value)
