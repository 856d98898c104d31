"""The table `eval` of runs whose answers are code that the rows' own test programs judge."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trainer.eval_tables.common import EvalFields

TOKENS_MAX = 4096
"""The longest answer that `tokens_max` may ask for."""


class CodeEvalTable(EvalFields):
    """Answers are Python code, run in a sandbox by test programs in the format of DS-1000."""

    kind: Literal["code"] = "code"
    tests: str = Field(
        default="code_context",
        min_length=1,
        description="Field of a row that holds its test program.",
    )
    library: str | None = Field(
        default=None,
        min_length=1,
        description="Field to give figures apart by; without it `library`, or `metadata.library`.",
    )
    python: str | None = Field(
        default=None,
        min_length=1,
        description="Interpreter on the machine to run answers with; without it, one made for it.",
    )
    tokens_max: int | None = Field(
        default=None,
        ge=1,
        le=TOKENS_MAX,
        description="Tokens of an answer, at most; without it twice as many as the longest right "
        "answer has, at least 64.",
    )
    seconds: float = Field(
        default=30.0, gt=0, le=600, description="How long an answer may run; then it is wrong."
    )
    memory_gb: float = Field(
        default=2.0, ge=0.25, le=64, description="Memory of an answer with all its processes."
    )

    @model_validator(mode="after")
    def _no_few_shot(self) -> CodeEvalTable:
        if self.shots:
            raise ValueError("`shots` is not for `kind: code`: leave it out")
        return self
