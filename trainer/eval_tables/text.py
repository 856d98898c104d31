"""The table `eval` of runs whose answers are words, numbers or JSON."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainer.eval_tables.common import EvalFields

MeasureName = Literal[
    "exact", "tokens_f1", "chrf", "rouge_l", "contains", "json", "number", "bleu"
]  # fmt: skip
PACKAGES = MappingProxyType({"chrf": ("sacrebleu",), "bleu": ("sacrebleu",)})
"""The packages that a measure imports beside numpy."""
TOKENS_MAX = 4096
"""The longest answer that `tokens_max` may ask for."""
IGNORING_CASE = ("exact", "contains")
"""The measures that `ignore_case` changes."""
WITH_TOLERANCE = ("number", "json")
"""The measures that `tolerance` changes."""


class ToleranceTable(BaseModel):
    """How far a number may be from the right one: by the larger of the two bounds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    absolute: float = Field(default=0.0, ge=0, description="In the unit of the numbers.")
    relative: float = Field(default=0.0, ge=0, description="As a share of the right number.")


class AnswerFields(EvalFields):
    """What the tables of free answers share: how long an answer may get, and how it is measured."""

    rows: int = Field(default=200, ge=1, description="Held-out rows to score, at most.")
    measures: Annotated[list[MeasureName], Field(min_length=1)] = Field(
        default=["chrf", "tokens_f1", "rouge_l", "exact"],
        description="The figures to compute; the first is the headline.",
    )
    tokens_max: int | None = Field(
        default=None,
        ge=1,
        le=TOKENS_MAX,
        description="Tokens of an answer, at most; without it a few more than the longest right "
        "answer has, up to 512.",
    )
    ignore_case: bool = Field(
        default=False, description="Whether `exact` and `contains` take `Yes` for `yes`."
    )
    tolerance: ToleranceTable = Field(
        default=ToleranceTable(),
        description="How far a number of `number` or `json` may be from the right one.",
    )
    lists: Literal["ordered", "unordered"] = Field(
        default="ordered", description="Whether the order of a list counts for `json`."
    )

    @model_validator(mode="after")
    def _measures_differ(self) -> AnswerFields:
        if len(set(self.measures)) < len(self.measures):
            raise ValueError("`measures` names a measure twice")
        unused = [
            (name, measures)
            for name, measures in (
                ("ignore_case", IGNORING_CASE),
                ("tolerance", WITH_TOLERANCE),
                ("lists", ("json",)),
            )
            if getattr(self, name) != type(self).model_fields[name].default
            and not set(measures) & set(self.measures)
        ]
        if unused:
            name, measures = unused[0]
            wanted = " or ".join(f"`{one}`" for one in measures)
            raise ValueError(f"`{name}` changes nothing without {wanted} among `measures`")
        return self


class TextEvalTable(AnswerFields):
    """Answers in words, numbers or JSON, generated freely and compared with the right ones."""

    kind: Literal["text"] = "text"
