"""A small model that is scored on rows of a test's own, in a run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.config import TrainerConfig
from trainer.scoring.evaluate import run
from trainer.scoring.result import EvalResult, ScoringRequest

CHAT_TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
COLOURS = ("red", "green", "blue")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def settings(
    place: Path, rows: list[dict[str, Any]], table: dict[str, Any], **data: Any
) -> TrainerConfig:
    """A config that scores some rows by a table; the same rows are learnt unless others are."""
    training = data.pop("training", rows)
    wanted = {"prompt": "{ask}: ", "completion": "{answer}", **data}
    if "messages" in wanted:
        del wanted["prompt"], wanted["completion"]
    files = {
        "train": str(write(place / "train.jsonl", training)),
        "eval": str(write(place / "eval.jsonl", rows)),
    }
    return TrainerConfig.model_validate(
        {"model": {"id": "x"}, "data": {**files, **wanted}, "eval": table}
    )


def scored(
    place: Path, config: TrainerConfig, model: Any, tokenizer: Any, *, stage: Any = "before"
) -> EvalResult:
    """Score a model in a run directory."""
    progress: list[tuple[int, int]] = []
    return run(
        place, config, model, tokenizer, stage=stage,
        on_progress=lambda done, total: progress.append((done, total)),
    )  # fmt: skip


def request_of(place: Path, config: TrainerConfig, model: Any, tokenizer: Any) -> ScoringRequest:
    """What a scoring before training works on."""
    return ScoringRequest(
        run_dir=place,
        scratch=place / "scratch",
        config=config,
        model=model,
        tokenizer=tokenizer,
        stage="before",
        on_progress=lambda _done, _total: None,
    )


def asks(count: int) -> list[dict[str, str]]:
    """Rows that ask for a colour."""
    return [{"ask": f"row{at}{'x' * (at % 7)}", "answer": COLOURS[at % 3]} for at in range(count)]


def turns(*texts: str) -> list[dict[str, str]]:
    """A conversation of these texts, a person's first."""
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]
