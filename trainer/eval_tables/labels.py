"""The table `eval` of runs whose answers are labels."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainer.eval_tables.common import EvalFields
from trainer.text import bare


class CostTable(BaseModel):
    """What the two kinds of mistake about one label cost, in any one unit."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    miss: float = Field(default=1.0, ge=0, description="Not saying the label where it is right.")
    false_alarm: float = Field(default=1.0, ge=0, description="Saying it where it is wrong.")


class LabelEvalTable(EvalFields):
    """Answers that are one label, or a set of labels."""

    kind: Literal["multilabel", "label"] = Field(
        description="Answers are sets of labels, or exactly one label."
    )
    labels: Annotated[list[str], Field(min_length=1)] = Field(description="All labels there are.")
    none: str = Field(
        default="N/A", min_length=1, description="What stands for no label at all (multilabel)."
    )
    decoding: Literal["bound", "free"] = Field(
        default="bound",
        description="Take the headline from answers bound to the labels, or from free text.",
    )
    costs: dict[str, CostTable] = Field(
        default_factory=dict,
        description="What a miss and a false alarm of a label cost; 1 each where nothing is said.",
    )

    @model_validator(mode="after")
    def _labels_differ(self) -> LabelEvalTable:
        folded = [label.strip().casefold() for label in self.labels]
        if "" in folded or len(set(folded)) < len(folded):
            raise ValueError("`labels` must be words that differ, also without regard to case")
        if self.kind == "multilabel" and self.none.strip().casefold() in folded:
            raise ValueError("`none` stands for no label, so it cannot be one of `labels`")
        unread = [one for one in self.labels if one.splitlines() != [one.strip()]]
        if self.kind == "multilabel":
            unread += self._unread_in_sets()
        if unread:
            raise ValueError(
                f"`labels` or `none` holds {unread[0]!r}, which could not be read back from an "
                "answer: leave out outer spaces and line breaks, and in sets of labels commas and "
                "semicolons, and what differs from another by outer marks only"
            )
        strangers = ", ".join(sorted(set(self.costs) - set(self.labels)))
        if strangers:
            raise ValueError(f"`costs` names {strangers}, not among `labels`")
        return self

    def _unread_in_sets(self) -> list[str]:
        """Return what would be torn, lost, or taken for another where sets of labels are read."""
        words = [*self.labels, self.none]
        read = Counter(bare(one).casefold() for one in words)
        return [
            one
            for one in words
            if set(",;") & set(one) or len(one.splitlines()) > 1 or not bare(one)
            or read[bare(one).casefold()] > 1
        ]  # fmt: skip
