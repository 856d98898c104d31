"""Renders `{field}` templates: null is empty text, and so is a field that only some rows lack.

A field that no row has is an error, as is one that a row seems to misspell.
"""

from __future__ import annotations

import difflib
import json
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainer.data.cell import CellError, parse_cell
from trainer.errors import TrainerError
from trainer.exit_codes import ExitCode

MISSPELT = 0.75
"""How like a field a key must be (difflib's ratio) to be taken for a slip in its name."""


class TemplateError(ValueError):
    """The template itself is wrong, whatever the rows are."""


class MissingFieldError(TrainerError):
    """A row lacks a field that the template names, or holds something that is no text there."""

    exit_code = ExitCode.BAD_DATA


@dataclass(frozen=True, kw_only=True)
class Template:
    """A parsed template: pairs of literal text and the field that follows it (None at the end).

    A row may lack the fields in `optional`, which other rows have.
    """

    text: str
    parts: tuple[tuple[str, str | None], ...]
    optional: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Template:
        """Parse `{field}` and `{outer.inner}`; `{{` and `}}` stand for braces.

        Raises:
            TemplateError: unbalanced braces, an empty `{}`, or a format such as `{x!r}`, `{x:>9}`.
        """
        try:
            pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            raise TemplateError(
                f"the template {text!r} is broken ({error}); write {{{{ and }}}} for braces"
            ) from error
        for _, field, spec, conversion in pieces:
            if field == "":
                raise TemplateError(f"the template {text!r} has an empty {{}}: name a field")
            if spec or conversion:
                raise TemplateError(
                    f"the template {text!r} formats {{{field}}}: only plain {{field}} is known"
                )
        return cls(text=text, parts=tuple((literal, field) for literal, field, _, _ in pieces))

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the template, in order, each once."""
        return tuple(dict.fromkeys(field for _, field in self.parts if field is not None))

    @property
    def literals(self) -> str:
        """The template's literal text, without any field."""
        return "".join(literal for literal, _ in self.parts)

    def for_rows(self, rows: Iterable[Mapping[str, Any]]) -> Template:
        """Return the template for rows of which each may lack a field that another one has."""
        wanted = set(self.fields)
        found: set[str] = set()
        for row in rows:
            found |= {field for field in wanted - found if _found(row, field)[0]}
            if found == wanted:
                break
        return replace(self, optional=frozenset(found))

    def render(self, row: Mapping[str, Any]) -> str:
        """Return the filled template; nothing is stripped: indentation and final spaces stay.

        Raises:
            MissingFieldError: names the field, the fields there are, and a near name if any.
        """
        return "".join(
            literal + ("" if field is None else as_text(field, self._field_value(row, field)))
            for literal, field in self.parts
        )

    def value(self, row: Mapping[str, Any]) -> object:
        """Return what the row holds under a template that is one field and no words.

        A list or an object that stands in a table's cell as text is returned as what it is.

        Raises:
            MissingFieldError: names the field, the fields there are, and a near name if any.
        """
        value = self.cell(row)
        try:
            return parse_cell(value) if isinstance(value, str) else value
        except CellError as error:
            raise MissingFieldError(f"field `{self.fields[0]}`: {error}") from error

    def cell(self, row: Mapping[str, Any]) -> object:
        """Return what the row holds under a template that is one field, as it stands there.

        Raises:
            MissingFieldError: names the field, the fields there are, and a near name if any.
        """
        return self._field_value(row, self.fields[0])

    def _field_value(self, row: Mapping[str, Any], field: str) -> object:
        there, value = _found(row, field)
        if there:
            return value
        others = [str(key) for key in row if key not in self.fields]
        near = difflib.get_close_matches(field, others, n=1, cutoff=MISSPELT)
        if field in self.optional and not near:
            return None
        near = near or difflib.get_close_matches(field, [str(key) for key in row], n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        named = ", ".join(f"`{key}`" for key in row) or "none"
        raise MissingFieldError(f"no field `{field}` (the row has {named}){hint}")


def as_text(field: str, value: object) -> str:
    """Return a value as text: text as it is, null as none, a list of words joined by ", "."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    raise MissingFieldError(
        f"field `{field}` is a {type(value).__name__}, and a template needs text"
    )


def _found(row: Mapping[str, Any], field: str) -> tuple[bool, object]:
    """Return whether a row has a field, and what it holds."""
    if field in row:
        return True, row[field]
    value: object = row
    for name in field.split("."):
        if isinstance(value, str):
            value = _object_in(value)
        if not isinstance(value, Mapping) or name not in value:
            return False, None
        value = value[name]
    return True, value


def _object_in(text: str) -> object:
    """Return the object that a table's cell holds as text, or the text."""
    try:
        return parse_cell(text)
    except CellError:
        return text
