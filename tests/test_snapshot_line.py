"""The one line that is shown of a run says how far it is, also while nothing is trained."""

from __future__ import annotations

import pytest

from commands.ui.snapshot import RunSnapshot


def line(phase: str, note: str) -> str:
    """The line of a run in a phase, with what its trainer says of it."""
    return RunSnapshot(
        phase=phase, step=0, steps=90, loss=None, tokens_per_s=None, eta_s=None, place="",
        price_usd_per_h=0.15, spent_usd=0.001, simulated=False, evictions=0, home_step=0, note=note,
    ).line  # fmt: skip


@pytest.mark.parametrize(
    ("phase", "note", "begins"),
    [
        ("evaluating", "evaluated 64 of 150 rows (before training)", "evaluated 64 of 150 rows"),
        ("evaluating", "", "evaluating"),
        ("training", "validated on 3 of 9 rows", "training"),
    ],
)
def test_a_scoring_shows_how_many_rows_are_done(phase: str, note: str, begins: str) -> None:
    """It takes minutes, and would else look as if nothing happened; a training has its steps."""
    shown = line(phase, note)

    assert shown.startswith(begins)
    assert "step 0/90" in shown
