"""The audit of a few rows, as a page and as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.tiny import make_config, make_rows, make_tokenizer
from trainer.config import TrainerConfig
from trainer.pages.audit import audit

MOODS = ["negative", "neutral", "positive"]


def audited(tmp_path: Path, rows: list[dict[str, Any]] | None = None, **tables: Any) -> Any:
    """Audit rows against nine held-out ones of other texts."""
    train = make_rows(tmp_path / "train.jsonl", 40)
    if rows is not None:
        train.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    held_out = tmp_path / "eval.jsonl"
    lines = [json.dumps({"text": f"text {n}", "mood": MOODS[n % 3]}) + "\n" for n in range(9)]
    held_out.write_text("".join(lines), encoding="utf-8")
    defaults: dict[str, Any] = {
        "data": {"eval": "eval.jsonl"}, "eval": {"kind": "label", "labels": MOODS},
    }  # fmt: skip
    config = TrainerConfig.model_validate(
        make_config(tmp_path / "model", train, **(defaults | tables))
    )
    return audit(config, tmp_path, make_tokenizer(), seq2seq=False)
