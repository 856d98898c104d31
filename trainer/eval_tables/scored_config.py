"""What the config of a run says of its held-out rows, on the laptop and on the machine alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, model_validator

from trainer.eval_tables.any_kind import table_in_use, with_kind
from trainer.eval_tables.common import EvalFields
from trainer.eval_tables.labels import LabelEvalTable

if TYPE_CHECKING:
    from trainer.data_table import DataTable
    from trainer.eval_tables.any_kind import EvalTable


class ScoredConfig(BaseModel):
    """A config with the fields `data` and `eval`, which a subclass declares in its own order."""

    if TYPE_CHECKING:
        data: DataTable
        eval: EvalTable | None

    @model_validator(mode="before")
    @classmethod
    def _kind_of_scoring(cls, tables: Any) -> Any:
        return with_kind(tables)

    @property
    def scored(self) -> EvalFields | None:
        """The table by which held-out rows are scored; None if nothing is."""
        return table_in_use(self.eval, self.data)

    @property
    def label_table(self) -> LabelEvalTable | None:
        """The table of a run whose answers are labels; None if they are something else."""
        return self.eval if isinstance(self.eval, LabelEvalTable) else None
