"""Runs that are finished and at home, with the scores that a test wants, and nothing trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.run.journal import Journal, Kind

TABLES: Mapping[str, Mapping[str, Any]] = {
    "vm": {"provider": "local"},
    "model": {"id": "owner/base"},
    "method": {"kind": "qlora", "r": 8, "alpha": 16},
    "data": {
        "train": "train.jsonl", "eval": "eval.jsonl", "prompt": "{text}", "completion": "{answer}",
    },
    "train": {"steps": 10},
    "eval": {"kind": "label", "labels": ["no", "yes"]},
}  # fmt: skip


def score_of(
    stage: str, documents: Sequence[Mapping[str, Any]], *, kind: str = "label", **more: Any
) -> dict[str, Any]:
    """Return the JSON of a score whose rows are `documents`."""
    right = sum(one["score"] for one in documents) / len(documents)
    found = {
        "version": 1, "stage": stage, "kind": kind, "metric": "accuracy", "decoding": "free",
        "value": right, "low": 0.0, "high": 1.0, "n": len(documents), "stop_rate": 1.0,
        "parse_failures": 0, "out_of_vocabulary": 0, "seconds": 1.0, "better": "higher",
        "loss": None, "details": {"documents": list(documents)},
    }  # fmt: skip
    return found | more


def label_rows(right: Sequence[bool], *, first: int = 0) -> list[dict[str, Any]]:
    """Return scored rows whose right answer is `yes`; their words depend on their place."""
    return [
        {
            "row": at + 1, "prompt": f"question {first + at}", "gold": ["yes"], "stopped": True,
            "bound": ["yes" if one else "no"], "free": "yes" if one else "no", "score": float(one),
        }
        for at, one in enumerate(right)
    ]  # fmt: skip


def finished_run(
    folder: Path,
    home: Path,
    name: str,
    *,
    after: Mapping[str, Any] | None,
    before: Mapping[str, Any] | None = None,
    rows: Mapping[str, str] | None = None,
    **tables: Mapping[str, Any] | str,
) -> Path:
    """Lay out a run that is done: its record in `home`, its results in `folder`; return its out.

    `tables` are merged into its config; `eval` replaces the one there.
    """
    config = {"name": name, **json.loads(json.dumps(TABLES))}
    for key, fields in tables.items():
        if isinstance(fields, Mapping) and key != "eval":
            config[key] = {**config.get(key, {}), **fields}
        else:
            config[key] = fields
    run = home / "runs" / name
    run.mkdir(parents=True)
    folder.mkdir(parents=True, exist_ok=True)
    saved = {"path": str(folder / "run.yaml"), "config": config, "rows": dict(rows or {})}
    (run / "run.json").write_text(json.dumps(saved), encoding="utf-8")
    journal = Journal(run / "journal.jsonl", clock=lambda: 0.0)
    journal.append(Kind.RUN_STARTED, run_id=f"{name}-1")
    out = folder / "out" / name
    (out / "adapter").mkdir(parents=True)
    for stage, result in (("before", before), ("after", after)):
        if result is not None:
            text = json.dumps(result, ensure_ascii=False)
            (out / f"eval-{stage}.json").write_text(text, encoding="utf-8")
    return out
