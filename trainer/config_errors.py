"""Turns pydantic's errors into lines that a person can act on, and lists the keys of tables."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, Tag, ValidationError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

ONE_FILE, SEVERAL_FILES = "one file", "several files"
"""The branches of the union `data.train`: pydantic puts them into a place, where no key stands."""
BRANCH = "kind "
"""How the tags of a union of tables begin, for the same reason: `kind label`."""


def describe_errors(
    error: ValidationError,
    model: type[BaseModel],
    *,
    explain: Callable[[ErrorDetails, str], str] = lambda _details, message: message,
    shorten: Callable[[str], str] = str,
) -> list[str]:
    """Say each error of a failed check in one line: `table.field: what is wrong`.

    An unknown key comes with the nearest key that `model` has there, or with all of them. `explain`
    may add to a message of pydantic's, `shorten` cuts an unknown key.
    """
    found: dict[str, list[str]] = {}
    for details in error.errors(include_url=False):
        branched = [str(one) for one in details["loc"] if one not in {ONE_FILE, SEVERAL_FILES}]
        path = [one for one in branched if not one.startswith(BRANCH)]
        if details["type"] == "extra_forbidden":
            place, keys = ".".join(map(shorten, path)), keys_at(model, branched[:-1])
            near = difflib.get_close_matches(path[-1], keys, n=1, cutoff=0.6)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            if keys and not near:
                hint = f"; known keys are {', '.join(keys)}"
            message = f"unknown key{hint}"
        else:
            place = ".".join(_written_path(model, branched)) or "config"
            message = explain(details, details["msg"].removeprefix("Value error, "))
        found.setdefault(place, []).append(message)
    return [f"{place}: {', or '.join(dict.fromkeys(lines))}" for place, lines in found.items()]


def _written_path(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Return the part of a path that the user wrote; beyond it pydantic names union branches."""
    kept: list[str] = []
    for part in path:
        is_key = part in keys_at(model, kept) or (part.isdigit() and bool(kept))
        if not is_key and not part.startswith(BRANCH):
            break
        kept.append(part)
    return [part for part in kept if not part.startswith(BRANCH)]


def keys_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """List the keys of the table at `path` below `model`; empty if there is no such table.

    Behind a union of tables the path may have the tag of a branch; without it, the first counts.
    """
    table: type[BaseModel] | None = model
    annotation: Any = None
    for part in path:
        if part.isdigit():  # an entry of a list of tables
            continue
        if part.startswith(BRANCH):
            table = _tagged_table(annotation, part)
            continue
        if table is not None:
            table.model_rebuild()  # a table that names a later one knows it from then on
        field = table.model_fields.get(part) if table else None
        annotation = field.annotation if field else None
        table = table_of(annotation) if field else None
    return [field.alias or name for name, field in table.model_fields.items()] if table else []


def table_of(annotation: Any) -> type[BaseModel] | None:
    """Return the table behind a field's type, also in `Table | None` and `str | list[Table]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(table_of, get_args(annotation))), None)


def _tagged_table(annotation: Any, tag: str) -> type[BaseModel] | None:
    """Return the table that stands behind a tag in a union; None if there is none."""
    if any(isinstance(one, Tag) and one.tag == tag for one in get_args(annotation)[1:]):
        return table_of(get_args(annotation)[0])
    found = (_tagged_table(one, tag) for one in get_args(annotation))
    return next(filter(None, found), None)
