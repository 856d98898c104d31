"""Says whether, how often and how long held-out rows are answered while a model trains; pure."""

from __future__ import annotations

from trainer.config import TrainerConfig
from trainer.rundir.samples import SAMPLINGS_MAX

TOKENS_MAX = 128
"""New tokens of a sample."""
TOKENS_LEAST = 16


def wants_samples(config: TrainerConfig) -> bool:
    """Tell whether held-out rows are answered while a config trains: if they are used at all."""
    used = config.train.validate_every is not None or config.scored is not None
    return config.train.samples > 0 and config.data.eval is not None and used


def sampling_interval(validate_every: int | None, steps: int) -> int | None:
    """Return the steps between two samplings; None: only before the first step and after the last.

    That is at every validation, or at every second, third and so on of very many.
    """
    if validate_every is None:
        return None
    return validate_every * max(1, -(-(steps // validate_every) // SAMPLINGS_MAX))


def samplings(validate_every: int | None, steps: int) -> int:
    """Return how often the rows are answered in all, before the first step and after the last."""
    interval = sampling_interval(validate_every, steps)
    return 2 + (0 if interval is None else (steps - 1) // interval)


def tokens_limit(longest_answer: int, room: int | None = None) -> int:
    """Return how many tokens a sample may have: twice those of the longest right answer.

    At least 16 and at most 128; `room` is what the base has places for behind the longest prompt.
    """
    most = min(TOKENS_MAX, max(TOKENS_LEAST, 2 * longest_answer))
    return most if room is None else max(1, min(most, room))
