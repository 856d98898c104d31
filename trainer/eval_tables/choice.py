"""The table `eval` of runs whose answers are one of the options that a row offers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.eval_tables.common import EvalFields

OPTIONS_MAX = 26
"""As many as there are letters to name them by."""


class ChoiceEvalTable(EvalFields):
    """Answers that are one of a few options, chosen by their likelihood."""

    kind: Literal["choice"] = "choice"
    options: str | Annotated[list[str], Field(min_length=2, max_length=OPTIONS_MAX)] = Field(
        description="The options of every row, or the field of a row that lists its own."
    )
    by: Literal["sum", "per_byte", "letter"] | None = Field(
        default=None,
        description="The headline: the likelihood of the whole option, per byte of it, or of its "
        "letter; without it, of the letter where right answers are letters, else of the whole.",
    )

    @model_validator(mode="after")
    def _options_differ(self) -> ChoiceEvalTable:
        if isinstance(self.options, str):
            if not self.options.strip():
                raise ValueError("`options` names no field: write it, or list the options")
            return self
        folded = [" ".join(one.split()) for one in self.options]
        if "" in folded or len(set(folded)) < len(folded):
            raise ValueError("`options` must be texts that differ, none of them empty")
        return self
