"""Renders `{field}` templates; a missing field is an error, never a guess."""

from __future__ import annotations

import difflib
import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.errors import TrainerError
from trainer.exit_codes import ExitCode


class TemplateError(ValueError):
    """The template itself is wrong, whatever the rows are."""


class MissingFieldError(TrainerError):
    """A row lacks a field that the template names, or holds something that is no text there."""

    exit_code = ExitCode.BAD_DATA


@dataclass(frozen=True, kw_only=True)
class Template:
    """A parsed template: pairs of literal text and the field that follows it (None at the end)."""

    text: str
    parts: tuple[tuple[str, str | None], ...]

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

    def render(self, row: Mapping[str, Any]) -> str:
        """Return the filled template; nothing is stripped: indentation and final spaces stay.

        Raises:
            MissingFieldError: names the field, the fields there are, and a near name if any.
        """
        return "".join(
            literal + ("" if field is None else as_text(field, _field_value(row, field)))
            for literal, field in self.parts
        )

    def value(self, row: Mapping[str, Any]) -> object:
        """Return what the row holds under a template that is one field and no words.

        Raises:
            MissingFieldError: names the field, the fields there are, and a near name if any.
        """
        return _field_value(row, self.fields[0])


def as_text(field: str, value: object) -> str:
    """Return a value as text: text as it is, a list of words joined by ", "."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    raise MissingFieldError(f"field `{field}` is {_kind(value)}, and a template needs text")


def _kind(value: object) -> str:
    return "empty (null)" if value is None else f"a {type(value).__name__}"


def _field_value(row: Mapping[str, Any], field: str) -> object:
    if field in row:
        return row[field]
    value: object = row
    for name in field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            near = difflib.get_close_matches(field, [str(key) for key in row], n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            there = ", ".join(f"`{key}`" for key in row) or "none"
            raise MissingFieldError(f"no field `{field}` (the row has {there}){hint}")
        value = value[name]
    return value
