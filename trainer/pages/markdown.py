"""Writes GitHub-flavoured Markdown in which no text of a stranger is more than text.

A text in a line cannot end a cell of a table, make a link, mention anybody, refer to an issue, load
a picture, run HTML or begin mathematics. A longer one stands in a block of HTML, escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from trainer.pages.html import signs

SPECIAL = re.compile(r"[\\`*_{}\[\]<>#|~!&^]")
"""What Markdown gives a meaning to; written as the number of the character, it has none."""
LINKS = re.compile(r"(?<=[A-Za-z])\.(?=\S)|(?<=www)\.|:(?=/)|(?<=/)/", re.IGNORECASE)
"""What makes an address of a text: a dot after a letter, and a scheme's colon and slashes."""
REFERS = re.compile(r"(@)(?=\S)|(#)(?=\d)|(?<=\b[Gg][Hh])(-)(?=\d)")
"""What makes a person or an issue of what follows."""
BREAK = "\u200b"
"""A space without a width: what it parts is no longer one word."""
BEGINS = re.compile(r"^(?:([-+])(?=\s|$)|([-=])(?=[-=\s]*$)|(\d+)([.)])(?=\s|$))")
"""What would make a list, a heading or a table of a line that begins so."""
COMMIT = re.compile(r"\b([0-9a-f]{6})(?=[0-9a-f]+\b)")


def plain(text: str, *, most: int = 400) -> str:
    """Return a text for a line or a part of one, at most so many characters of it."""
    line = " ".join(signs(text[: 4 * most]).split())
    line = line[: most - 1] + "…" if len(line) > most else line
    line = REFERS.sub(lambda found: found.group() + BREAK, line)
    line = COMMIT.sub(lambda found: found.group() + BREAK, line)
    line = LINKS.sub(lambda found: BREAK + found.group() + BREAK, line)
    line = SPECIAL.sub(lambda found: f"&#{ord(found.group())};", line)
    line = BEGINS.sub(_begun, line)
    return line.replace("$", "\\$")


def _begun(found: re.Match[str]) -> str:
    """Return the beginning of a line without its meaning."""
    mark = found[1] or found[2] or found[4]
    return f"{found[3] or ''}&#{ord(mark)};"


def block(text: str, *, most: int) -> str:
    """Return a text of several lines as it is, at most so many characters of it."""
    cut = f"{text[:most]}… ({len(text) - most:,} more characters)" if len(text) > most else text
    return f"<pre>\n{escape(signs(cut), quote=False)}\n</pre>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; numbers stand right, the first column left."""
    first, *others = ([plain(cell) for cell in row] for row in (head, *rows))
    lines = [first, ["---", *["---:"] * (len(head) - 1)], *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def folded(title: str, *parts: str) -> str:
    """Return parts that are hidden until the reader opens them; the title is a text of ours."""
    return "\n\n".join([f"<details>\n<summary>{escape(title)}</summary>", *parts, "</details>"])
