"""A job whose ranks share the base ends with the adapter of one that has it whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def test_the_adapter_of_a_shared_base_has_the_same_bits(tmp_path: Path) -> None:
    """Five micro-batches on two ranks: one makes a pass more than its own, and nothing changes."""
    settings = {"steps": 3, "batch_size": 5, "micro_batch": 1}
    adapters, logs = [], []
    for cards, card_bytes in ((1, ""), (2, TOO_SMALL)):
        run_dir = tiny.make_run(
            tmp_path / str(cards),
            method={"kind": "qlora", "dropout": 0.1}, train=settings, checkpoint={"every": 2},
        )  # fmt: skip
        logs.append(train(run_dir, cards=cards, card_bytes=card_bytes))
        adapters.append((run_dir / "adapter" / "adapter_model.safetensors").read_bytes())

    assert adapters[0] == adapters[1]
    assert "sharded" not in logs[0]
    assert "the base is sharded over 2 cards: " in logs[1]
    assert "each micro-batch gathers it anew" in logs[1]
