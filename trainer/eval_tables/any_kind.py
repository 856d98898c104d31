"""The table `eval` of any kind: which class checks it is decided by its `kind`.

A further kind is a class in a file of its own and a row in `EvalTable` and `BRANCHES`; how it is
scored is a row in `trainer.scoring.evaluate.SCORERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Tag

from trainer.config_errors import BRANCH
from trainer.data_table import DataTable
from trainer.eval_tables.chat import ChatEvalTable
from trainer.eval_tables.choice import ChoiceEvalTable
from trainer.eval_tables.code import CodeEvalTable
from trainer.eval_tables.common import EvalFields
from trainer.eval_tables.labels import LabelEvalTable
from trainer.eval_tables.loss import LossEvalTable
from trainer.eval_tables.text import TextEvalTable

NONE: Literal["none"] = "none"
"""What run.yaml says where held-out rows are not to be scored."""
BRANCHES = MappingProxyType(
    {
        "label": "label", "multilabel": "label", "loss": "loss", "text": "text", "chat": "chat",
        "choice": "choice", "code": "code",
    }
)  # fmt: skip
"""For each `kind`, the branch of the union that checks it."""

UNASKED_ROWS = 1000
"""Texts, at most, whose loss is measured where the config has no table `eval`."""
UNASKED: Mapping[str, EvalFields] = MappingProxyType(
    {"text": TextEvalTable(), "chat": ChatEvalTable(), "loss": LossEvalTable(rows=UNASKED_ROWS)}
)
"""The table by which held-out rows are scored where the config has none, by kind."""


def _branch(value: object) -> str | None:
    """Return the tag of the branch that checks a value; None if there is no such kind."""
    if value == NONE:
        return BRANCH + NONE
    if isinstance(value, BaseModel):
        kind = getattr(value, "kind", None)
    else:
        kind = value.get("kind") if isinstance(value, Mapping) else None
    branch = BRANCHES.get(kind) if isinstance(kind, str) else None
    return None if branch is None else BRANCH + branch


EvalTable = Annotated[
    Annotated[LabelEvalTable, Tag(BRANCH + "label")]
    | Annotated[LossEvalTable, Tag(BRANCH + "loss")]
    | Annotated[TextEvalTable, Tag(BRANCH + "text")]
    | Annotated[ChatEvalTable, Tag(BRANCH + "chat")]
    | Annotated[ChoiceEvalTable, Tag(BRANCH + "choice")]
    | Annotated[CodeEvalTable, Tag(BRANCH + "code")]
    | Annotated[Literal["none"], Tag(BRANCH + NONE)],
    Discriminator(
        _branch,
        custom_error_type="eval_kind",
        custom_error_message=f"`kind` must be one of {', '.join(BRANCHES)}; "
        f"or write `eval: {NONE}` to score nothing",
    ),
]


def table_in_use(given: EvalFields | str | None, data: DataTable) -> EvalFields | None:
    """Return the table by which held-out rows are scored; None if nothing is.

    Where the config has no `eval`, it follows from the data. The config stays what the user wrote,
    so a run that began under another version is still the same run.
    """
    if isinstance(given, EvalFields):
        return given
    if given is not None or data.eval is None:
        return None
    return UNASKED[_implied_kind({}, data)]


def with_kind(tables: Any) -> Any:
    """Return the tables of a config with the `kind` that its `eval` leaves out.

    `labels` make it `label`, `options` make it `choice`; else it follows from what is learnt:
    conversations, answers to prompts, or whole texts, of which there is only the loss.
    """
    if not isinstance(tables, Mapping):
        return tables
    found = tables.get("eval")
    if not isinstance(found, Mapping) or "kind" in found:
        return tables
    return {**tables, "eval": {"kind": _implied_kind(found, tables.get("data")), **found}}


def _implied_kind(table: Mapping[str, Any], data: Any) -> str:
    """Return the kind of a table `eval` that names none."""
    if "labels" in table:
        return "label"
    if "options" in table:
        return "choice"
    if isinstance(data, BaseModel):
        data = data.model_dump()
    fields = data if isinstance(data, Mapping) else {}
    if fields.get("text") is not None:
        return "loss"
    return "text" if fields.get("messages") is None else "chat"


def kind_problem(kind: str, data: DataTable) -> str | None:
    """Return why answers of a kind cannot be scored on such data; None if they can."""
    if kind != "loss" and data.text is not None:
        return (
            "the table `eval` scores answers, and a `data.text` has none; `kind: loss` needs none"
        )
    if kind == "chat" and data.messages is None:
        return "`kind: chat` needs conversations (`data.messages`); for prompts write `kind: text`"
    if kind == "text" and data.messages is not None:
        return "`kind: text` needs `data.prompt`; for conversations write `kind: chat`"
    return None
