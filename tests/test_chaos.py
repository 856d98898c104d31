"""Kills at random moments change no bit of what a run ends with."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

CHAOS = Path(__file__).parent / "chaos.py"


def run_chaos(*arguments: str, timeout_s: float) -> str:
    """Run the harness in a process of its own and return what it printed."""
    ended = subprocess.run(
        [sys.executable, str(CHAOS), *arguments],
        cwd=tiny.ROOT,
        env=tiny.quiet_environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    return ended.stdout


def test_a_few_kills_change_nothing() -> None:
    """Runs killed twelve times at random moments end with the adapter and log of a calm run."""
    said = run_chaos("--kills", "12", timeout_s=150)

    assert re.search(r"12 kills over \d+ runs", said)
    assert re.search(r"identical to it: (\d+) of \1 runs", said)


@pytest.mark.chaos
@pytest.mark.timeout(3000)
def test_ninety_kills_change_nothing() -> None:
    """Ninety kills, of which many fall into a save, leave every run bit-identical to a calm one."""
    said = run_chaos("--kills", "90", timeout_s=2900)

    assert re.search(r"90 kills over \d+ runs", said)
    assert re.search(r"identical to it: (\d+) of \1 runs", said)


@pytest.mark.chaos
@pytest.mark.timeout(3000)
def test_ten_kills_of_a_real_model_in_four_bits_change_nothing() -> None:
    """Ten kills over SmolLM2-135M in NF4 leave every run bit-identical to a calm one."""
    quickstart = tiny.ROOT / "examples" / "quickstart"
    prepared = subprocess.run(
        [sys.executable, str(quickstart / "prepare.py")], check=False, timeout=900
    )

    assert prepared.returncode == 0
    model, rows = quickstart / "model", quickstart / "train.jsonl"
    said = run_chaos("--kills", "10", "--model", str(model), "--rows", str(rows), timeout_s=1900)

    assert re.search(r"10 kills over \d+ runs", said)
    assert re.search(r"identical to it: (\d+) of \1 runs", said)
