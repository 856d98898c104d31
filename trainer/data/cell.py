"""Parses a list or an object that a table's cell holds as text: JSON, or what Python prints."""

from __future__ import annotations

import ast
import math
import re
from typing import Any

from trainer.data.json_rows import KeyTwiceError, has_lone_surrogate, null_for_nan, parse

CHARACTERS_MAX = 4 << 20
SPREADSHEET_CHARACTERS_MAX = 32_767
"""No cell of Excel holds more, so that a longer text was cut there."""
BETWEEN_OBJECTS = re.compile(r"\}[ \t]*\r?\n[ \t]*\{")
"""Where numpy prints a line break between two objects; within a text it prints `\\n`."""


class CellError(ValueError):
    """A text begins as a list or an object does and cannot be parsed; the text says why."""


def parse_cell(text: str) -> Any:
    """Return the list or object that a text holds, or the text if it holds neither.

    Python's words are parsed, never run: of calls, only `array([...])` is known, as numpy prints.

    Raises:
        CellError: it begins as one, and is none.
    """
    stripped = text.strip()
    if stripped[:1] not in {"[", "{"} and not stripped.startswith("array("):
        return text
    if len(stripped) > CHARACTERS_MAX:
        raise CellError(f"{len(stripped)} characters in one cell are too many")
    try:
        value = null_for_nan(parse(stripped))
    except KeyTwiceError as error:
        raise CellError(str(error)) from error
    except (ValueError, RecursionError):
        value = _python_value(text, stripped)
    if has_lone_surrogate(value):
        raise CellError("a text in it holds half of a character (a lone surrogate)")
    return value


def _python_value(text: str, stripped: str) -> Any:
    try:
        return _value(ast.parse(BETWEEN_OBJECTS.sub("}, {", stripped), mode="eval").body)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        cut = len(text) == SPREADSHEET_CHARACTERS_MAX
        why = "Excel cut it at 32,767 characters" if cut else "neither JSON nor a Python list"
        raise CellError(f"the text cannot be parsed ({why}); write it as JSON") from error


def _value(node: ast.expr) -> Any:
    """Return the value of a literal, in which numpy's arrays are lists and NaN is None."""
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return None if isinstance(value, float) and not math.isfinite(value) else value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values) if None not in keys:
            names = [_value(key) for key in keys if key is not None]
            if len(set(map(str, names))) < len(names):
                raise ValueError("a key stands twice")
            return dict(zip(map(str, names), map(_value, values), strict=True))
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Call(func=ast.Name(id="array"), args=[inner, *_]):
            return _value(inner)
        case ast.Name(id="nan" | "NaN"):
            return None
        case _:
            raise ValueError("no literal")
