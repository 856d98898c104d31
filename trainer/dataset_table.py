"""The entries of `data.train` where it lists several files, each with how much it counts."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from trainer import hub
from trainer.config_errors import ONE_FILE, SEVERAL_FILES

WEIGHT_MAX = 1000.0


class DatasetTable(BaseModel):
    """One of several files of rows; a path alone stands for one of weight 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    path: str = Field(min_length=1, description="A file, or `hub:OWNER/NAME@REVISION/PATH`.")
    weight: float = Field(
        default=1.0,
        gt=0,
        le=WEIGHT_MAX,
        description="How often each row stands in an epoch: 2 is twice, 0.5 half of the rows, "
        "drawn anew in every epoch.",
    )

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string", "minLength": 1}, handler(core_schema)]}

    @model_validator(mode="after")
    def _named_whole(self) -> DatasetTable:
        hub.parse(self.path)
        return self


def require_distinct(sets: list[DatasetTable]) -> None:
    """Raise `ValueError` if a file is listed twice: its weight says how often it counts."""
    twice = [path for path, count in Counter(one.path for one in sets).items() if count > 1]
    if twice:
        raise ValueError(f"`{twice[0]}` is listed twice: list it once, with a `weight`")


def _branch(value: object) -> str:
    return SEVERAL_FILES if isinstance(value, list) else ONE_FILE


TrainFiles = Annotated[
    Annotated[str, Field(min_length=1), Tag(ONE_FILE)]
    | Annotated[list[DatasetTable], Field(min_length=1), Tag(SEVERAL_FILES)],
    Discriminator(_branch),
]
"""The type of `data.train`: the name of one file, or a list of several."""
