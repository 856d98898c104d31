"""Hours of what is measured beside the score: samples while training, and what a model forgets."""

from __future__ import annotations

from dataclasses import replace

from commands.runs.planning.row_lengths import RowLengths
from trainer.config import TrainerConfig
from trainer.device.shapes import Shape
from trainer.estimate.gpus import TrainingGpu
from trainer.estimate.step_time import reading_seconds, scoring_seconds
from trainer.estimate.training import setup_of
from trainer.training.sampling_schedule import samplings, tokens_limit, wants_samples

OPENING_TOKENS, CONTINUATION_TOKENS, OPENINGS = 16, 128, 64
ITEM_TOKENS, ITEMS, LETTER_TOKENS = 64, 60, 1
"""Of `trainer/scoring/forgetting`, about: a question has four options under letters."""
AT_ONCE = 4096
"""Tokens that the trainer scores at once (`trainer/scoring/constrained.py`)."""


def samples_seconds(
    shape: Shape, tables: TrainerConfig, gpu: TrainingGpu, *, steps: int, lengths: RowLengths
) -> float:
    """Return what answering a few held-out rows takes in all."""
    if not wants_samples(tables):
        return 0.0
    rows = tables.train.samples
    setup = replace(
        setup_of(tables, gpu.precision, tokens=max(1, round(lengths.eval_tokens))), micro_batch=rows
    )
    each = scoring_seconds(
        shape, setup, gpu=gpu, rows=rows, generated=tokens_limit(lengths.answer_tokens)
    )
    return samplings(tables.train.validate_every, steps) * each


def forgetting_seconds(
    shape: Shape, tables: TrainerConfig, gpu: TrainingGpu, *, before: bool
) -> float:
    """Return what general questions and the drift take in one stage, on a GPU.

    Before training the base writes the continuations whose loss is measured in both stages. What
    the user's own rows take (`eval.general`) is not in it.
    """
    whole = OPENING_TOKENS + CONTINUATION_TOKENS
    asking, writing, reading = (
        replace(
            setup_of(tables, gpu.precision, tokens=tokens), micro_batch=min(rows, AT_ONCE // tokens)
        )
        for tokens, rows in (
            (ITEM_TOKENS, ITEMS),
            (OPENING_TOKENS, OPENINGS),
            (whole, OPENINGS),
        )
    )
    seconds = scoring_seconds(shape, asking, gpu=gpu, rows=ITEMS, generated=LETTER_TOKENS)
    seconds += reading_seconds(shape, reading, gpu=gpu, rows=OPENINGS)
    if before:
        seconds += scoring_seconds(
            shape, writing, gpu=gpu, rows=OPENINGS, generated=CONTINUATION_TOKENS
        )
    return seconds
