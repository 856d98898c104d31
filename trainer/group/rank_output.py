"""Passes on what matters of the output of a rank that is not the first, and keeps its end.

The first rank writes the log for all. Of the others warnings and errors are shown, each line with
its card in front; the rest is kept, and shown if that rank fails.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable

LINES_KEPT_MAX = 60
LINE_LENGTH_MAX = 2000
ERROR_LINES_MAX = 5
_SHOWN = re.compile(r"\b(?:warning|error|fatal|critical)\b|\w+(?:Error|Warning)\b", re.IGNORECASE)


def is_shown(line: str) -> bool:
    """Tell whether a line of another rank is worth showing while all is well."""
    return _SHOWN.search(line) is not None


class RankOutput:
    """The lines of one rank: passed on, or kept for later."""

    def __init__(self, rank: int, write: Callable[[str], None]) -> None:
        self._label = f"[card {rank}]"
        self._write = write
        self._kept: deque[tuple[str, bool]] = deque(maxlen=LINES_KEPT_MAX)

    def read(self, lines: Iterable[str]) -> None:
        """Take lines until there are no more."""
        for line in lines:
            text = line.rstrip("\r\n")[:LINE_LENGTH_MAX]
            shown = is_shown(text)
            self._kept.append((text, shown))
            if shown:
                self._write(f"{self._label} {text}")

    def show_rest(self) -> None:
        """Show the last lines that were not shown, because the rank has failed."""
        for text, shown in self._kept:
            if text.strip() and not shown:
                self._write(f"{self._label} {text}")

    @property
    def error(self) -> str:
        """The words in which the rank said why it ended; empty if it said nothing.

        Of a traceback that is the last line, of a list of problems all of them.
        """
        lines = [text for text, _ in self._kept if text.strip()]
        problems: list[str] = []
        while lines and lines[-1].startswith("  ") and len(problems) < ERROR_LINES_MAX:
            problems.insert(0, lines.pop().strip())
        return "\n".join(problems or lines[-1:])
