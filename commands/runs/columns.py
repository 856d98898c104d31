"""Describes the columns of rows: where each is filled, and whether a template can write it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from commands.ui.errors import UsageError
from trainer.data.answer_checks import INVISIBLE
from trainer.data.row import Row

INDEX_NAMES = ("", "unnamed: 0", "unnamed: 0.1", "__index_level_0__", "level_0", "index")
"""What pandas calls a column of row numbers."""
CONVERSATION_NAMES = frozenset(
    {"messages", "conversation", "conversations", "dialog", "dialogue", "turns"}
)
"""Names that a column of conversations usually has."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: the text of each row that a template could write, and the rows without any."""

    name: str
    plain: bool
    """Whether a template can write every cell, and some cell has something in it."""
    conversations: bool
    """Whether every cell that is not null is a conversation."""
    texts: tuple[tuple[int, str], ...]
    """Row number and text of the cells, of a plain column."""
    lacking: list[int]
    """The rows in which it is null or absent."""
    problem: str
    """Why it cannot be used; empty if it can."""

    @property
    def folded(self) -> str:
        """The name without case, outer spaces and characters without a width."""
        return _folded(self.name)

    @property
    def index(self) -> bool:
        """Whether it only numbers the rows."""
        return self.folded in INDEX_NAMES

    @property
    def characters(self) -> int:
        """How much text is in it."""
        return sum(len(text) for _, text in self.texts)


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Return the columns of all rows, in the order in which they first appear.

    Raises UsageError for two names that differ in case and outer spaces only.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.fields))
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(_folded(name), name)
        if other != name:
            raise UsageError(
                f"the columns {other!r} and {name!r} differ in case or outer spaces only",
                hint="rename one in the file, or remove it, then type the same command again",
            )
    return [_column(name, rows) for name in names]


def _column(name: str, rows: Sequence[Row]) -> Column:
    from trainer.data.template import as_text

    cells = [(row.number, row.fields.get(name)) for row in rows]
    filled = [(number, value) for number, value in cells if value is not None]
    odd = next(((number, value) for number, value in filled if not _is_plain(value)), None)
    conversations = bool(filled) and all(conversation(value) for _, value in filled)
    texts = () if odd else tuple((number, as_text(name, value)) for number, value in filled)
    problem = ""
    if not filled or (not odd and not any(text.strip() for _, text in texts)):
        problem = "it is empty in every row"
    elif odd and not conversations:
        problem = f"row {odd[0]} holds {_kind(odd[1])}, which no template writes"
    if _folded(name) in CONVERSATION_NAMES and filled and not conversations:
        stray = next(number for number, value in filled if not conversation(value))
        problem = f"row {stray} holds no list of turns with `role` and `content`"
    return Column(
        name=name,
        plain=not problem and odd is None,
        conversations=conversations,
        texts=texts,
        lacking=[number for number, value in cells if value is None],
        problem=problem,
    )


def _folded(name: str) -> str:
    return "".join(char for char in name if char not in INVISIBLE).strip().casefold()


def conversation(value: object) -> list[dict[str, Any]]:
    """Return the turns of a conversation, also of one that a cell holds as text; else none."""
    from trainer.data.cell import CellError, parse_cell

    try:
        turns = parse_cell(value) if isinstance(value, str) else value
    except CellError:
        return []
    if not isinstance(turns, list) or not turns:
        return []
    whole = all(
        isinstance(turn, dict) and "role" in turn and ("content" in turn or "tool_calls" in turn)
        for turn in turns
    )
    return turns if whole else []


def answered(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the turns of a conversation up to its last answer."""
    from trainer.data.chat.conversation import ROLES

    roles = [ROLES.get(str(turn["role"]).strip().lower()) for turn in turns]
    ends = [at for at, role in enumerate(roles, start=1) if role == "assistant"]
    return turns[: ends[-1]] if ends else []


def ignorable(columns: Sequence[Column]) -> tuple[str, ...]:
    """Return the columns beside a conversation that the trainer is to be told to ignore.

    Not those that it uses or knows as descriptions; nor pictures and preferences, which it refuses;
    nor names that messages have as keys, which would be ignored there, too.
    """
    from trainer.data.chat import conversation as chat

    left = chat.ROW_KEYS | chat.DESCRIPTIONS | chat.MEDIA_COLUMNS | chat.PREFERENCES
    return tuple(
        column.name
        for column in columns
        if column.name not in left | chat.MESSAGE_KEYS and column.name
    )


def is_used(column: Column) -> bool:
    """Return whether the trainer reads a column that stands beside a conversation."""
    from trainer.data.chat.conversation import ROW_KEYS

    return column.name in ROW_KEYS


def nameable(name: str) -> str:
    """Return a column's name if `{name}` in a template means this column; UsageError otherwise."""
    from trainer.data.template import Template, TemplateError

    try:
        named = Template.parse(f"{{{name}}}").parts == (("", name),)
    except TemplateError:
        named = False
    if not named:
        raise UsageError(
            f"no template can name the column {name!r}",
            hint="rename it in the file, to a word without the marks { } ! :",
        )
    return name


def _is_plain(value: object) -> bool:
    """Return whether a template can write a cell."""
    if isinstance(value, list):
        return all(isinstance(word, str) for word in value)
    return isinstance(value, str | int | float)


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return "an object"
    return f"a {type(value).__name__}"
