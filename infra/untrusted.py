"""Parses untrusted JSON into bounded values, or refuses it in a few words.

Whatever is read from outside goes through `parse`, whose result cannot exhaust this computer: the
length and the depth of the text are limited. It never raises anything but `NotPlain`. The functions
below it then check single values: a wrong type, NaN, a number without bounds is None, never a
guess. Each of `infra`, `remote` and `trainer` has such a file, since none imports another.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

DEPTH_MAX = 64
DIGITS_MAX = 19
"""A whole number of more digits is no number of bytes, steps or seconds; it is read as None."""
WHOLE_MAX = 1 << 53
"""The largest whole number that every reader of JSON agrees on."""
_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
"""A whole text, also one without its end, so that none is read twice; or a bracket."""
_SURROGATES = re.compile("[\ud800-\udfff]")


class NotPlain(ValueError):  # noqa: N818  (says what the text is; the caller says what that means)
    """A text is not JSON that is accepted from outside; the message says why, without the text."""


def parse(data: bytes | str, *, bytes_max: int, depth_max: int = DEPTH_MAX) -> Any:
    """Parse a JSON text into dictionaries, lists, strings, finite numbers, booleans and None.

    NaN, infinities and numbers of more than `DIGITS_MAX` digits become None. Raises `NotPlain` for
    what is too long, too deep, empty, cut short, not UTF-8, or has a key twice in one table.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > bytes_max:
        raise NotPlain(f"it has {len(raw)} bytes, {bytes_max} at most make sense")
    if is_deeper(raw, depth_max):
        raise NotPlain(f"it is nested more than {depth_max} deep")
    try:
        return json.loads(
            raw.decode("utf-8-sig"),
            object_pairs_hook=_table,
            parse_constant=lambda _name: None,
            parse_float=_finite,
            parse_int=_short,
        )
    except NotPlain:
        raise
    except UnicodeDecodeError as error:
        raise NotPlain("it is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise NotPlain("it is no JSON" if raw.strip() else "it is empty") from error


def is_deeper(raw: bytes, depth_max: int) -> bool:
    """Whether brackets are nested deeper than `depth_max`, without parsing what may be hostile."""
    if raw.count(b"[") + raw.count(b"{") <= depth_max:
        return False
    depth = 0
    for mark in _MARKS.finditer(raw):
        first = mark.group()[:1]
        depth += (first in b"[{") - (first in b"]}")
        if depth > depth_max:
            return True
    return False


def table(value: object) -> dict[str, Any]:
    """Return a dictionary; anything else as an empty one."""
    return value if isinstance(value, dict) else {}


def whole(value: object, *, most: int = WHOLE_MAX) -> int | None:
    """Return a whole number from 0 to `most`; None for anything else (true and false are none)."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= most else None


def number(value: object, *, most: float = 1e18) -> float | None:
    """Return a finite number between -`most` and `most`; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= most and math.isfinite(value) else None


def text(value: object, *, most: int = 500) -> str | None:
    """Return a text of at most `most` characters, each printable; None for anything else."""
    if not isinstance(value, str):
        return None
    return "".join(_shown(char) for char in value[:most])


def texts(value: object, *, most: int) -> tuple[str, ...] | None:
    """Return a list of at most `most` texts, as they are; None for anything else."""
    if not isinstance(value, list) or len(value) > most:
        return None
    return tuple(value) if all(isinstance(one, str) for one in value) else None


def _shown(char: str) -> str:
    if _SURROGATES.match(char):
        return "\N{REPLACEMENT CHARACTER}"
    return char if char.isprintable() else " "


def _table(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise NotPlain("it has a key twice in one table")
        found[key] = value
    return found


def _short(digits: str) -> int | None:
    return int(digits) if len(digits.lstrip("-")) <= DIGITS_MAX else None


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None
