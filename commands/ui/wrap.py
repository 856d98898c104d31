"""Wraps text for a terminal at spaces only, by the cells that its characters take there."""

from __future__ import annotations

import shutil
import unicodedata

WIDTH_WITHOUT_TERMINAL = 80
"""Columns where output goes to a pipe or a file and `COLUMNS` is not set."""
NO_BREAK = "\u00a0"
WIDTH_MIN, WIDTH_MAX = 40, 100
"""Longer lines are hard to read; a narrower terminal wraps them itself."""


def output_width() -> int:
    """Return the columns to write for: those of the terminal on stdout, or of `COLUMNS`."""
    columns = shutil.get_terminal_size((WIDTH_WITHOUT_TERMINAL, 0)).columns
    return min(max(columns, WIDTH_MIN), WIDTH_MAX)


def cells(text: str) -> int:
    """Return how many columns a text takes: two for a wide character, none for a combining one."""
    return sum(
        0 if unicodedata.combining(one) else 1 + (unicodedata.east_asian_width(one) in "WF")
        for one in text
    )


def wrapped(text: str, width: int, *, indent: str = "") -> list[str]:
    """Break a text at spaces into lines of at most `width` columns; later lines get `indent`.

    A word is never broken: one that is longer than the width stands on a line of its own. Spaces
    at the beginning stay, as do those between words that share a line. What `NO_BREAK` joins stays
    on one line, and is printed with a plain space.
    """
    lines: list[str] = []
    line, gap = "", ""
    for position, word in enumerate(text.split(" ")):
        if position and cells(line + gap + " " + word) > width and line.strip() and word:
            lines.append(line)
            line, gap = indent + word, ""
        elif position:
            gap += " "
            if word:
                line, gap = line + gap + word, ""
        else:
            line = word
    return [one.replace(NO_BREAK, " ") for one in (*lines, line)]


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Fill a text up to so many columns, with `right` from the left."""
    fill = " " * max(0, width - cells(text))
    return fill + text if right else text + fill
