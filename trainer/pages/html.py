"""Writes self-contained HTML pages: one script of their own, nothing from elsewhere.

`parts.html` has the markup, `page.css` the style and `page.js` the script, which shows the values
of charts; without it the page shows all else. jinja2 escapes every value, and a content security
policy with the script's hash lets the browser run nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))  # thousands from 10k on: 9,500 is as short
CELL_MAX = 300
"""Characters of a text in a table: a label, a path, the name of a step."""
SHADES = 10
"""Of the cells of a heat table."""
JOINERS = "\u200c\u200d"
"""Characters without a width that Persian words and emoji are made with."""
LINE_ENDS = re.compile("\r\n?")
CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""What no HTML file may hold: all of it is spelt out before; this is the last net."""
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'; base-uri 'none'; "
    "form-action 'none'"
)
PRINTABLE = re.compile("[\n\t\x20-\x7e\xa1-\xac\xae-\u05ff]*")
"""Texts that hold none of the characters below, in most languages' letters: a quick look."""


@cache
def macros(name: str) -> Any:
    """Return the macros of a file beside this one; every value in them is escaped.

    Characters that are not seen are spelt out, as by `signs`.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else signs(value),
    )
    environment.filters |= {"number": format_number}
    return environment.from_string(_file(name)).module


@cache
def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def render(macro: str, *values: object) -> Markup:
    """Return what a macro of `parts.html` makes of some values."""
    made: Markup = getattr(macros("parts.html"), macro)(*values)
    return made


def chart_script() -> str:
    """Return the script that shows the values of charts; it serves charts added later, too."""
    return _file("page.js")


def page(title: str, sections: Iterable[Markup], *, nonce: str = "") -> str:
    """Return a whole page of sections under a title.

    It forbids the browser to run anything but its own script, or to fetch anything. With `nonce`
    its script carries that instead: whoever serves the page sends the policy with it.
    """
    script, style = chart_script(), _file("page.css")
    policy = "" if nonce else POLICY.format(_sha256(script))
    own = Markup(script), Markup(style)  # noqa: S704 - files of this program
    made = render("page", title, list(sections), *own, policy, nonce)
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", str(made))


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def section(title: str, *parts: Markup, key: str = "") -> Markup:
    """Return parts under a heading; `key` is the id of the element."""
    return render("section", title, parts, key)


def folded(title: str, *parts: Markup) -> Markup:
    """Return parts that are hidden until the reader opens them by their title."""
    return render("folded", title, parts)


def pair(parts: Sequence[Markup]) -> Markup:
    """Return parts beside one another where there is room for two."""
    return render("pair", parts)


def heading(text: str) -> Markup:
    """Return a heading inside a section."""
    return render("heading", text)


def paragraph(text: str) -> Markup:
    """Return a text as a paragraph."""
    return render("paragraph", text)


def note(text: str) -> Markup:
    """Return a text as a paragraph of small print."""
    return render("note", text)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """Return a table; numbers are written with at most four digits behind the point.

    Of a text in a cell `CELL_MAX` characters are shown.
    """
    cells = [[short(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    return render("table", [short(name) for name in head], cells)


def short(text: str) -> str:
    """Return a text of at most `CELL_MAX` characters; markup stays as it is."""
    if isinstance(text, Markup) or len(text) <= CELL_MAX:
        return text
    return f"{text[: CELL_MAX - 1]}…"


def marked(pieces: Iterable[tuple[str, bool]]) -> Markup:
    """Return text pieces as one block, with those that are learnt highlighted."""
    return render("marked", list(pieces))


def heat_table(
    name: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[float]]
) -> Markup:
    """Return a table whose cells are the darker the larger their share of the row."""
    shaded = []
    for word, values in zip(rows, cells, strict=True):
        total = sum(values) or 1
        shades = [round(min(1.0, max(0.0, value / total)) * SHADES) for value in values]
        shaded.append((short(word), list(zip(values, shades, strict=True))))
    return render("heat_table", name, [short(word) for word in columns], shaded)


def format_number(value: object) -> str:
    """Return a value as text: numbers with four significant digits or thousands separated."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.2e}"


def axis_labels(ticks: Sequence[float]) -> list[str]:
    """Return evenly spaced numbers as short labels: `15k` and `1.5M`, never `e+04`.

    All are in one unit, with as many digits as tell neighbours apart.
    """
    largest = max(map(abs, ticks), default=0.0)
    unit, sign = next(
        ((unit, sign) for unit, sign in UNITS if largest >= unit * (10 if sign == "k" else 1)),
        (1.0, ""),
    )
    if not sign or len(ticks) < 2:
        plain = [format_number(tick) for tick in ticks]
        tiny = largest < 1e-3 and any("e" in word for word in plain)
        return [_power_of_ten(tick) for tick in ticks] if tiny else plain
    digits = max(0, -math.floor(math.log10((ticks[1] - ticks[0]) / unit) + 1e-9))
    return [f"{tick / unit:.{digits}f}{sign}" if tick else "0" for tick in ticks]


def _power_of_ten(value: float) -> str:
    """Return `5e-5` or `1.5e-4`."""
    digits, _, power = f"{value:.2e}".partition("e")
    short = digits.rstrip("0").rstrip(".")
    return f"{short}e{int(power)}" if value else "0"


def signs(value: object) -> str:
    """Return a value as text in which every character that is not seen is spelt out: `[U+202E]`.

    So no text can turn round or hide what stands beside it. All line ends become newlines.
    """
    return "".join(
        f"[{part}]" if hidden else part
        for part, hidden in split_hidden("" if value is None else str(value))
    )


def shown(text: str) -> Markup:
    """Return a text escaped, with a sign for every character that is not seen."""
    return Markup("").join(
        Markup('<span class="sign">{}</span>').format(part) if hidden else part
        for part, hidden in split_hidden(text)
    )


def split_hidden(text: str) -> list[tuple[str, bool]]:
    """Split a text into stretches that are seen as they are, and names of hidden characters.

    Hidden are control and format characters, so also those that change the direction of writing,
    and halves of surrogate pairs, which no file can hold.
    """
    text = LINE_ENDS.sub("\n", text)
    if PRINTABLE.fullmatch(text):
        return [(text, False)]
    parts: list[tuple[str, bool]] = []
    start = 0
    for at, char in enumerate(text):
        if char in "\n\t" or char in JOINERS:
            continue
        if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
            parts += [(text[start:at], False), (f"U+{ord(char):04X}", True)]
            start = at + 1
    return [*parts, (text[start:], False)]


def embedded(data: Mapping[str, Any]) -> Markup:
    """Return plain values as a block of JSON that a script can read and a browser does not run."""
    text = json.dumps(data, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(f'<script type="application/json">{text}</script>')  # noqa: S704 - see above
