"""A job whose ranks share the base ends with the adapter of one that has it whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from trainer.job.base_on_cards import CARD_BYTES

TIMEOUT_S = 600
TOO_SMALL = "1000"


def train(run_dir: Path, *, cards: int, card_bytes: str = "") -> str:
    """Do a whole job, and return its log."""
    arguments = ["--run-dir", str(run_dir), "--cards", str(cards)]
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "train", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", CARD_BYTES: card_bytes},
        cwd=tiny.ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


SETTINGS = {
    "steps": 3, "batch_size": 5, "micro_batch": 1, "validate_every": 2, "samples": 2,
}  # fmt: skip
UNEVEN_ROWS = 11
"""Held-out rows, which are no multiple of what two ranks share out."""


def results(run_dir: Path) -> dict[str, Any]:
    """Return what a job leaves that has to be the same: adapter, scores, validations, samples."""
    scores = {}
    for stage in ("before", "after"):
        found = json.loads((run_dir / f"eval-{stage}.json").read_text())
        scores[stage] = {name: value for name, value in found.items() if name != "seconds"}
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        "adapter": (run_dir / "adapter" / "adapter_model.safetensors").read_bytes(),
        "scores": scores,
        "losses": [[one.get("loss"), one.get("validation_loss"), one["params"]] for one in records],
        "samples": (run_dir / "samples.jsonl").read_bytes(),
    }


@pytest.mark.parametrize(
    "table",
    [{"kind": "text"}, {"kind": "label", "labels": list(tiny.MOODS)}],
    ids=["text", "label"],
)
def test_a_shared_base_gives_the_results_of_a_whole_one(
    tmp_path: Path, table: dict[str, Any]
) -> None:
    """Five micro-batches on two ranks: one makes a pass more than its own, and nothing changes.

    Answers of different lengths take the ranks different numbers of passes, so they share none.
    """
    held_out = tiny.make_rows(tmp_path / "eval.jsonl", UNEVEN_ROWS)
    found, logs = [], []
    for cards, card_bytes in ((1, ""), (2, TOO_SMALL)):
        run_dir = tiny.make_run(
            tmp_path / str(cards),
            method={"kind": "qlora", "dropout": 0.1}, train=SETTINGS, checkpoint={"every": 2},
            data={"eval": str(held_out)}, eval=table,
        )  # fmt: skip
        logs.append(train(run_dir, cards=cards, card_bytes=card_bytes))
        found.append(results(run_dir))

    assert found[0] == found[1]
    assert "sharded" not in logs[0]
    assert "the base is sharded over 2 cards: " in logs[1]
    assert "each micro-batch gathers it anew" in logs[1]
