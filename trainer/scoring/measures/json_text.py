"""Reads JSON that a model wrote: a text has a value or none, and none of them raises an error."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal, DecimalException
from typing import Any, NoReturn

from trainer.scoring.measures.words import CHARACTERS_MAX, normalised

FENCE = "```"
DEPTH_MAX = 100
"""Of nesting; a deeper value is not read, whatever Python's own limit is."""


@dataclass(frozen=True, kw_only=True)
class JsonValue:
    """A value that was read, and how often an object had a key again."""

    value: Any
    doubled_keys: int = 0


def read_json(text: str) -> JsonValue | None:
    """Return the value of a text that is JSON, perhaps within one code fence; None if it is none.

    Numbers are read as `Decimal`, however large. A text with NaN or Infinity is no JSON; one nested
    deeper than `DEPTH_MAX` or longer than `CHARACTERS_MAX` is not read.
    """
    bare = without_fence(text)
    if len(bare) > CHARACTERS_MAX:
        return None
    doubled = 0

    def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal doubled
        found = dict(pairs)
        doubled += len(pairs) - len(found)
        return found

    try:
        value = json.loads(
            bare,
            parse_constant=_refuse,
            parse_float=_decimal,
            parse_int=_decimal,
            object_pairs_hook=make_object,
        )
    except (ValueError, RecursionError):
        return None
    return JsonValue(value=value, doubled_keys=doubled) if _is_flat(value) else None


def without_fence(text: str) -> str:
    """Return what is inside a code fence that is all of a text; else the text, stripped."""
    bare = text.strip()
    first, newline, rest = bare.partition("\n")
    if not newline or not first.startswith(FENCE) or not rest.endswith(FENCE):
        return bare
    inside = rest.removesuffix(FENCE)
    again = any(line.strip().startswith(FENCE) for line in inside.split("\n"))
    return bare if again else inside.strip()


def canonical(value: Any) -> str:
    """Return a text that equal values share: keys sorted, texts normalised, `1.0` as `1`.

    The value is nested no deeper than `DEPTH_MAX`.
    """
    if isinstance(value, dict):
        inner = sorted((json.dumps(key), canonical(one)) for key, one in value.items())
        return "{" + ",".join(f"{key}:{one}" for key, one in inner) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if isinstance(value, Decimal):
        return _digits(value)
    return json.dumps(normalised(value) if isinstance(value, str) else value)


def _digits(value: Decimal) -> str:
    """Return a number without the zeros at its end; its digits are never written out."""
    sign, digits, exponent = value.as_tuple()
    written = "".join(map(str, digits))
    bare = written.rstrip("0")
    if not bare:
        return "0"
    return f"{'-' * sign}{bare}e{int(exponent) + len(written) - len(bare)}"


def _is_flat(value: Any) -> bool:
    """Return whether a value is nested no deeper than DEPTH_MAX."""
    level = [value]
    for _ in range(DEPTH_MAX):
        inner: list[Any] = []
        for one in level:
            inner += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        if not inner:
            return True
        level = inner
    return False


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _decimal(written: str) -> Decimal:
    try:
        return Decimal(written)
    except DecimalException:  # an exponent that no number here can have
        raise ValueError("the exponent is too large") from None
