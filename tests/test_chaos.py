"""Kills at random moments change no bit of what a run ends with."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny

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


@pytest.mark.timeout(1800)  # half a minute alone, minutes on a busy machine
def test_a_few_kills_change_nothing() -> None:
    """Runs killed twelve times at random moments end with the adapter and log of a calm run."""
    messages = run_chaos("--kills", "12", "--real-kills", "0", timeout_s=1700)

    assert re.search(r"tiny model, float32: 12 kills over \d+ runs", messages)
    assert re.search(r"identical to it: (\d+) of \1 runs", messages)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
def test_a_hundred_kills_change_nothing() -> None:
    """Ninety kills of tiny runs and ten of a real one in 4 bits leave every run bit-identical."""
    messages = run_chaos(timeout_s=7000)

    assert re.search(r"tiny model, float32: 90 kills over \d+ runs", messages)
    assert re.search(r"SmolLM2-135M, NF4: 10 kills over \d+ runs", messages)
    assert len(re.findall(r"identical to it: (\d+) of \1 runs", messages)) == 2
