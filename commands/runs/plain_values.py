"""Checks every value of a run.yaml for what no place may hold: options, controls, endless numbers.

The tables know what each value means; this looks at all of them, also at those to come.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from remote.errors import shorten

NUMBER_MAX = 1e15
"""Beyond it nothing here means anything: seconds, dollars, tokens and steps are far smaller."""
NUMBER_MIN = 1e-30
PATH_BYTES_MAX = 1024
NAME_BYTES_MAX = 255
TEXTS = re.compile(r"data\.(prompt|completion|messages|text)|eval\.(none|labels|costs)(\..*)?")
"""What is text of the user's own, in any script, and reaches no program as a word."""
PATHS = re.compile(r"data\.(train(\.\d+\.path)?|eval)|model\.id|vm\.ssh\.key")
WORDS = ("model.id", "model.revision", "vm.ssh.key")
"""What programs or libraries are given as it is, so that it must not look like an option."""
HUB = "hub:"
HALVES = re.compile("[\ud800-\udfff]")


def plain_faults(tables: dict[str, Any]) -> list[str]:
    """Say what is wrong with the values of a checked config, one line for each."""
    return [
        f"{where}: {problem}"
        for where, value in _leaves(tables, ())
        if (problem := _of(where, value))
    ]


def _leaves(value: Any, where: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield every value that is no table or list, and every key, with its place."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield ".".join((*where, "")).rstrip(".") or "config", key
            yield from _leaves(inner, (*where, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(inner, (*where, str(number)))
    else:
        yield ".".join(where), value


def _of(where: str, value: Any) -> str:
    """Say what is wrong with one value; empty if nothing is."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        size = abs(value)
        if where != "train.seed" and (size > NUMBER_MAX or 0 < size < NUMBER_MIN):
            return f"the number `{shorten(str(value), 60)}` is out of any range"
    if not isinstance(value, str):
        return ""
    if "\0" in value:
        return "it holds a zero byte"
    if HALVES.search(value):
        return "it holds half a character (U+D800 to U+DFFF)"
    if TEXTS.fullmatch(where):
        return ""
    if odd := odd_character(value):
        return f"it holds {odd}, which no name or path has"
    if where in WORDS and value.startswith("-"):
        return f"`{shorten(value, 60)}` begins with `-`, like an option; a path may begin with `./`"
    if PATHS.fullmatch(where) and not value.startswith(HUB):
        return _path_problem(value)
    return ""


def odd_character(text: str) -> str:
    """Name the first character that a terminal does not show as itself; empty if there is none."""
    for character in text:
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
            name = unicodedata.name(character, "")
            return f"U+{ord(character):04X}" + (f" ({name.lower()})" if name else "")
    return ""


def _path_problem(value: str) -> str:
    """Say why a path cannot be one."""
    if len(value.encode()) > PATH_BYTES_MAX or any(
        len(part.encode()) > NAME_BYTES_MAX for part in value.split("/")
    ):
        return f"`{shorten(value, 60)}` is too long for a path"
    try:
        Path(value).expanduser()
    except RuntimeError:  # what pathlib says of a user that is not there
        user = value.partition("/")[0][1:]
        return f"there is no user `{shorten(user, 60)}` here whose home it could be"
    return ""
