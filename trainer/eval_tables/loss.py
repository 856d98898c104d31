"""The table `eval` of runs of which only the loss on held-out rows is wanted."""

from __future__ import annotations

from typing import Literal

from trainer.eval_tables.common import EvalFields

LOSS_ROWS_MAX = 500
"""Rows whose loss is measured, at most, where another kind of score is the headline."""


class LossEvalTable(EvalFields):
    """Nats and bits per target token of the held-out rows, and nothing is generated."""

    kind: Literal["loss"] = "loss"
