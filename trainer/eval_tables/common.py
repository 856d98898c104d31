"""What every kind of scoring has in its table `eval`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trainer import hub


class EvalFields(BaseModel):
    """The fields that the tables of all kinds share."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: str
    rows: int | None = Field(
        default=None, ge=1, description="Held-out rows to score, at most; without it, all of them."
    )
    baselines: bool = Field(
        default=True, description="Score the commonest answer, and what else needs no model, too."
    )
    shots: int = Field(
        default=0,
        ge=0,
        le=32,
        description="Score the base with that many learnt rows before each question, too.",
    )
    resamples: int = Field(
        default=1000, ge=1000, le=100_000, description="Bootstrap resamples of each interval."
    )
    forgetting: Literal["auto"] | bool = Field(
        default="auto",
        description="Ask general questions before and after, and measure how far the model moved "
        "from its base; `auto`: on a GPU only, since a processor takes long.",
    )
    general: str | None = Field(
        default=None,
        min_length=1,
        description="General rows or text of your own, whose loss is compared: a file of rows with "
        "the columns of `data` or a column `text`, or a `.txt`.",
    )

    @field_validator("general")
    @classmethod
    def _named_whole(cls, name: str | None) -> str | None:
        if name is not None:
            hub.parse(name)
        return name

    def measures_forgetting(self, *, on_gpu: bool) -> bool:
        """Tell whether general questions and drift are measured: by itself on a GPU only."""
        return on_gpu if self.forgetting == "auto" else self.forgetting
