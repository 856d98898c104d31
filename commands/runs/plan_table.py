"""The table `plan` of run.yaml: what a plan counts with while the data files are not here yet."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

ROWS_MAX = 1_000_000_000
TOKENS_MAX = 10_000_000


class PlanTable(BaseModel):
    """How many rows there will be, and how long; `qft run` never reads it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rows: int = Field(ge=1, le=ROWS_MAX, description="Rows to learn from.")
    tokens: int = Field(ge=1, le=TOKENS_MAX, description="Tokens of a usual row, answer included.")
    answer_tokens: int | None = Field(
        default=None, ge=1, le=TOKENS_MAX, description="Tokens of a usual answer; all if not given."
    )
    eval_rows: int = Field(default=0, ge=0, le=ROWS_MAX, description="Rows held out for scoring.")
