"""Tells how long running the answers of a scoring takes, for the plan; pure."""

from __future__ import annotations

SECONDS_TO_START = 25.0
"""Imports and the proof, on a machine with a warm disk."""
SECONDS_PER_PROGRAM = 0.3
"""Measured over the hundred references: median 0.1 s, the slowest 1 s."""


def running_seconds(problems: int, *, baselines: bool) -> float:
    """Return how long running the programs of one stage takes, without generating the answers.

    Each problem's reference runs, the answer, and before training the empty answer, too.
    """
    return SECONDS_TO_START + (3 if baselines else 2) * problems * SECONDS_PER_PROGRAM
