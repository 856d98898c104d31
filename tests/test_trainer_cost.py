"""A checkpoint knows what the training has cost so far, wherever it is looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny import make_run

from trainer.__main__ import main


def test_a_checkpoint_holds_the_dollars_of_its_steps(tmp_path: Path) -> None:
    """Seconds spent in steps times the price of the machine, in the newest checkpoint."""
    run_dir = make_run(tmp_path / "project", train={"steps": 6})

    assert main(["train", "--run-dir", str(run_dir), "--price-usd-per-h", "3600"]) == 0
    newest = max((run_dir / "checkpoints").glob("step-*"))
    counters = json.loads((newest / "state.json").read_text(encoding="utf-8"))["counters"]
    assert counters["usd"] == pytest.approx(counters["train_s"])
    assert counters["usd"] > 0
