"""Counts the seconds of scoring held-out rows, by the kind of their answers; pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from commands.runs.planning.extra_hours import forgetting_seconds
from commands.runs.planning.row_lengths import RowLengths
from trainer.code_eval.hours import running_seconds
from trainer.config import TrainerConfig
from trainer.device.shapes import Shape
from trainer.estimate.gpus import TrainingGpu
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.step_time import reading_seconds, scoring_seconds
from trainer.estimate.training import setup_of
from trainer.eval_tables.choice import ChoiceEvalTable
from trainer.eval_tables.code import CodeEvalTable
from trainer.eval_tables.common import EvalFields
from trainer.eval_tables.labels import LabelEvalTable
from trainer.eval_tables.loss import LOSS_ROWS_MAX, LossEvalTable
from trainer.eval_tables.text import AnswerFields

SCORED_TOKENS, SCORED_ROWS = 4096, 64
"""What the trainer scores at once (`trainer/scoring/constrained.py`)."""
ENDING_TOKENS = 2
ANSWER_TOKENS_MAX = 512
"""Of an answer in words, where `tokens_max` is not given (`trainer/scoring/free_scoring.py`)."""
CODE_TOKENS_MIN = 64
"""Of an answer that is code, at least (`trainer/scoring/code.py`)."""
OPTIONS = 4
"""Of a row that lists its own, which are not read here."""


@dataclass(frozen=True, kw_only=True)
class ScoringWork:
    """What scoring works on: the run, the shape of its base, and the card."""

    config: TrainerConfig
    shape: Shape
    gpu: TrainingGpu
    on_gpu: bool = True
    """Whether it is a card: what takes long on a processor is left out there."""

    def reading_s(self, rows: float, tokens: float) -> float:
        """Return the seconds of a forward pass over rows of so many tokens."""
        setup = self._setup(tokens)
        return reading_seconds(self.shape, setup, gpu=self.gpu, rows=max(1, round(rows)))

    def answering_s(self, rows: float, tokens: float, generated: int) -> float:
        """Return the seconds of reading prompts and generating behind each."""
        return scoring_seconds(
            self.shape,
            self._setup(tokens),
            gpu=self.gpu,
            rows=max(1, round(rows)),
            generated=generated,
        )

    def _setup(self, tokens: float) -> TrainingSetup:
        whole = max(1, round(tokens))
        at_once = max(1, min(SCORED_ROWS, SCORED_TOKENS // whole))
        return replace(setup_of(self.config, self.gpu.precision, tokens=whole), micro_batch=at_once)


def seconds_of_scoring(work: ScoringWork, lengths: RowLengths, *, before: bool) -> float:
    """Return about how long scoring takes once; `before` training with its baselines.

    Answers are generated as long as they may get: a base hardly ends one by itself. Whatever the
    kind, the right answers are read once for their loss.
    """
    table = work.config.scored
    if table is None or not lengths.eval_rows:
        return 0.0
    rows = min(lengths.eval_rows, table.rows or lengths.eval_rows)
    whole = lengths.eval_tokens if lengths.counted else lengths.mean_tokens
    total = 0.0
    for times in (1, table.shots + 1) if before and table.shots else (1,):
        prompt = lengths.eval_tokens * times
        if generated := generated_tokens(table, lengths):
            total += work.answering_s(rows, prompt, generated)
        if isinstance(table, ChoiceEvalTable):
            options = OPTIONS if isinstance(table.options, str) else len(table.options)
            total += 2 * work.reading_s(rows * options, whole * times)  # as words, and as letters
        most = rows if isinstance(table, LossEvalTable) else min(rows, LOSS_ROWS_MAX)
        total += work.reading_s(most, whole * times)
    if isinstance(table, CodeEvalTable):
        total += running_seconds(rows, baselines=before and table.baselines)
    if table.measures_forgetting(on_gpu=work.on_gpu):
        total += forgetting_seconds(work.shape, work.config, work.gpu, before=before)
    return total


def generated_tokens(table: EvalFields, lengths: RowLengths) -> int:
    """Return how many tokens are generated behind a prompt, 0 where nothing is."""
    if isinstance(table, LabelEvalTable):
        # Each row is answered twice from one reading: freely, and bound to the labels.
        return 2 * lengths.answer_tokens + ENDING_TOKENS
    if isinstance(table, CodeEvalTable):
        return table.tokens_max or max(CODE_TOKENS_MIN, 2 * lengths.answer_tokens)
    if isinstance(table, AnswerFields):
        return table.tokens_max or min(ANSWER_TOKENS_MAX, lengths.answer_tokens + ENDING_TOKENS)
    return 0
