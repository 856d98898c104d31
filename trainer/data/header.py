"""Tells a table whose first line is a row like the others, so that its columns have no names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

ROWS_COMPARED = 500
RECURS = 0.1
"""The share of rows from which on a name that recurs in its column is taken for a value."""
NAME_CHARACTERS_MAX, NAME_WORDS_MAX = 40, 3
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
SENTENCE_END = (".", "?", "!", "…")


def header_problem(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return what is wrong if the names of the columns seem to be values; empty if they do not."""
    first = list(itertools.islice(rows, ROWS_COMPARED))
    names = [name for name in (first[0] if first else ()) if name.strip()]
    if not names:
        return ""
    recurring = sum(
        sum(row.get(name) == name for row in first) > max(1, RECURS * len(first)) for name in names
    )
    sentences = sum(map(_is_sentence, names))
    numbers = sum(NUMBER.fullmatch(name.strip()) is not None for name in names)
    if not (recurring or (sentences and numbers) or sentences + numbers == len(names) > 1):
        return ""
    shown = ", ".join(repr(name[:NAME_CHARACTERS_MAX]) for name in names[:5])
    return (
        f"the first line seems to hold values ({shown}) where the names of the columns should be; "
        "write the names on a line above it, such as `text` and `label`, with the same separator"
    )


def _is_sentence(name: str) -> bool:
    words = name.split()
    long = len(name) > NAME_CHARACTERS_MAX or len(words) > NAME_WORDS_MAX
    return long or (len(words) > 1 and name.rstrip().endswith(SENTENCE_END))
