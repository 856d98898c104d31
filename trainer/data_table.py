"""The table `data`: which rows are learnt, and how a row becomes text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    field_validator,
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


def _iso_day(value: object) -> object:
    if isinstance(value, str):
        try:
            return date.fromisoformat(value)
        except ValueError:
            raise ValueError(f"`{value}` is no day: write it as 2026-11-30") from None
    if type(value) is date or value is None:
        return value
    raise ValueError("write the day as 2026-11-30")


class DataTable(BaseModel):
    """Which rows are learnt, and how a row becomes text."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    train: TrainFiles = Field(
        description="Rows to learn from: a file, or `hub:OWNER/NAME@REVISION/PATH`; or a list of "
        "`{path: …, weight: …}`."
    )
    eval: str | None = Field(default=None, min_length=1, description="Rows held out for scoring.")
    prompt: str = Field(default="", description="Template of what the model reads, `{field}`s.")
    completion: str = Field(default="", description="Template of what it should answer.")
    messages: str | None = Field(
        default=None,
        min_length=1,
        description="Field that holds a conversation, instead of `prompt` and `completion`.",
    )
    text: str | None = Field(
        default=None,
        min_length=1,
        description="Field that holds a text of which every token is learnt, instead of those.",
    )
    chat: Literal["markers", "template"] = Field(
        default="template",
        description="Write turns with the tokenizer's chat template, or under plain headings.",
    )
    answers: Literal["all", "last"] = Field(
        default="all", description="Learn every answer of a conversation, or the last one only."
    )
    ignore: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="Keys of conversations' rows and messages to leave out unread.",
    )
    loss_on: Literal["completion", "all"] = Field(
        default="completion", description="Learn the answer only, or every token."
    )
    too_long: Literal["cut", "drop", "refuse"] = Field(
        default="cut",
        description="Rows of more than `train.max_length` tokens: shorten what is before the "
        "answer, leave them out, or refuse them.",
    )
    day: Annotated[date, BeforeValidator(_iso_day)] | None = Field(
        default=None,
        description="The day that a chat template sees, such as 2026-11-30; that on which the "
        "run began (UTC) if not given.",
    )

    @property
    def train_sets(self) -> tuple[DatasetTable, ...]:
        """The files to learn from, in order; one alone has the weight 1."""
        return (DatasetTable(path=self.train),) if isinstance(self.train, str) else (*self.train,)

    @property
    def files(self) -> dict[str, str]:
        """Every file of rows by its key: `train`, or `train.0` and so on, and `eval` if named.

        One file of weight 1 is `train`, also where it is listed: it gives the same run.
        """
        sets = self.train_sets
        alone = len(sets) == 1 and sets[0].weight == 1
        found = {"train" if alone else f"train.{at}": one.path for at, one in enumerate(sets)}
        return found if self.eval is None else {**found, "eval": self.eval}

    @property
    def has_prompts(self) -> bool:
        """Whether a row is a prompt and its answer, not a conversation or a text."""
        return self.messages is None and self.text is None

    def with_paths(self, change: Callable[[str], str]) -> DataTable:
        """Return the table with another name for every file."""
        train: object = [
            one.model_copy(update={"path": change(one.path)}) for one in self.train_sets
        ]
        if isinstance(self.train, str):
            train = change(self.train)
        held_out = None if self.eval is None else change(self.eval)
        return self.model_copy(update={"train": train, "eval": held_out})

    @field_validator("train", "eval")
    @classmethod
    def _named_whole(cls, name: str | list[DatasetTable] | None) -> object:
        if isinstance(name, str):
            hub.parse(name)
        elif name is not None:
            require_distinct(name)
        return name

    @model_validator(mode="after")
    def _one_way(self) -> DataTable:
        given = [name for name in ("prompt", "completion") if getattr(self, name)]
        fields = [name for name in ("messages", "text") if getattr(self, name) is not None]
        if len(fields) > 1:
            raise ValueError("`messages` and `text` are two ways to read a row: keep one")
        if fields and given:
            raise ValueError(
                f"`{fields[0]}` takes the place of `prompt` and `completion`: keep one way"
            )
        if not fields and len(given) < 2:
            missing = " and ".join({"prompt", "completion"} - set(given))
            raise ValueError(f"`{missing}` is missing: say what is read and what is answered")
        return self
