"""Reads rows of JSON: an object a line, a list of objects, or the objects inside a wrapper.

NaN and the infinities, which Python and pandas write although JSON has none, are null. A key that
stands twice in one object is refused: of two values, one would be lost.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from trainer.data.json_wrappers import UnknownWrapperError, unwrap
from trainer.data.row import Notes, Row
from trainer.errors import DataError

PYTHON_WORDS = {
    "None": "null",
    "True": "true",
    "False": "false",
    "nan": "null",
    "undefined": "null",
}


ODD_WORDS = (b"\\ud", b"\\uD", b"NaN", b"Infinity")
HUGE_NUMBER = re.compile(rb"[0-9](?:[eE]\+?[0-9]{2}|[0-9]{300})")
"""What JSON needs for half of a character, for a value that is no number, and for an infinity."""


class KeyTwiceError(ValueError):
    """An object has one key twice."""


def read_lines(
    path: Path, file: IO[bytes], problems: list[str], notes: Notes | None = None
) -> Iterator[Row]:
    """Yield the rows of a file with an object on each line; blank lines are passed over."""
    notes = notes or Notes()
    # A binary file breaks lines at LF alone: text would break at U+0085 and U+2028 too.
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            value = parse(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            byte = f"byte 0x{error.object[error.start]:02x} at {error.start}"
            problems.append(not_utf8(f"{path}:{number}", byte))
        except json.JSONDecodeError as error:
            reason = _line_hint(line.strip(), error) or f"{error.msg}, column {error.colno}"
            problems.append(f"{path}:{number}: not JSON ({reason})")
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}:{number}: {_unusable(error)}")
        else:
            if isinstance(value, dict) and not _may_hold_odd_values(line):
                yield Row(number=number, fields=value)  # no look at each of its values
            else:
                yield from _row(path, number, value, problems, notes)


def read_whole(
    path: Path, file: IO[bytes], problems: list[str], notes: Notes | None = None
) -> Iterator[Row]:
    """Yield the rows of a file that is one JSON value, read at once.

    Raises:
        DataError: it is no JSON, or a value that is no list of rows and wraps none.
    """
    notes = notes or Notes()
    raw = file.read()
    try:
        values = parse(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{raw[error.start]:02x}"
        raise DataError([not_utf8(f"{path}, line {line}", byte)]) from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and _is_object(raw.partition(b"\n")[0]):
            # One object a line, as some publish under this ending.
            yield from read_lines(path, io.BytesIO(raw), problems, notes)
            return
        place = f"line {error.lineno} column {error.colno}"
        hint = _python_word(error)
        if error.msg == "Extra data" and raw.lstrip()[:1] == b"{":
            hint = "; objects follow one another: put a comma between them and [ ] around all"
        raise DataError([f"{path}: not JSON ({error.msg}, {place}{hint})"]) from error
    except (ValueError, RecursionError) as error:
        raise DataError([f"{path}: {_unusable(error)}"]) from error
    if isinstance(values, dict):
        try:
            values, note = unwrap(values)
        except UnknownWrapperError as error:
            problem = f"{path}: a `.json` file must hold a list of objects; {error}"
            raise DataError([problem]) from error
        notes.add(note)
    if not isinstance(values, list):
        raise DataError([f"{path}: a `.json` file must hold a list of objects"])
    for number, value in enumerate(values, start=1):
        yield from _row(path, number, value, problems, notes)


def parse(text: str) -> Any:
    """Parse JSON; NaN and the infinities stay, to be told by row.

    Raises:
        KeyTwiceError: an object has one key twice.
    """
    return json.loads(text, object_pairs_hook=_each_key_once)


def null_for_nan(value: Any) -> Any:
    """Return a value with None where it holds NaN or an infinity; the same object if nowhere."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        changed = {key: new for key, old in value.items() if (new := null_for_nan(old)) is not old}
        return {**value, **changed} if changed else value
    if isinstance(value, list):
        items = [null_for_nan(item) for item in value]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same else items
    return value


def cleaned(fields: dict[str, Any], number: int, notes: Notes) -> dict[str, Any]:
    """Return the fields of a row with null for NaN, which is noted by column."""
    found = null_for_nan(fields)
    if found is not fields:
        for name, value in fields.items():
            if found[name] is not value:
                notes.add(f"`{name}`: NaN or an infinity is read as null", number)
    return dict(found)


def not_utf8(place: str, byte: str) -> str:
    """Return the problem of a byte that is no UTF-8."""
    return f"{place}: not UTF-8 ({byte}); save the file as UTF-8"


def _each_key_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    listed = list(pairs)
    found = dict(listed)
    if len(found) < len(listed):
        seen: set[str] = set()
        twice = next(key for key, _ in listed if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise KeyTwiceError(f"the key `{twice}` stands twice in one object; keep one of the two")
    return found


def _line_hint(line: bytes, error: json.JSONDecodeError) -> str:
    """Return the usual mistake behind a line that is no JSON object; empty if it is another."""
    if line in {b"{", b"}", b"},"}:
        return "each object must stand on one line; a list of objects goes into a `.json` file"
    if line[:1] == b"[" or line == b"]":
        return "a list of objects goes into a `.json` file; here each line is an object"
    if line[:1] == b"{" and line[-1:] == b",":
        return "the line ends with a comma; here each line is an object of its own"
    if line[:2] == b"{'":
        return "JSON takes double quotes, not single ones"
    if line[:4] in {"{\u201c".encode(), "{\u201d".encode()}:
        return "JSON takes straight double quotes, not typographic ones"
    if error.msg == "Extra data" and line[:1] == b"{":
        return f"more follows the object, from column {error.colno}; each line is one object"
    if error.pos == 0 and line[:1].isalpha() and any(mark in line for mark in b",;\t"):
        return "this looks like a table; let its name end in `.csv` or `.tsv`"
    hint = _python_word(error)
    return f"{error.msg}, column {error.colno}{hint}" if hint else ""


def _python_word(error: json.JSONDecodeError) -> str:
    """Return a hint if Python's or JavaScript's word stands where JSON has another."""
    rest = error.doc[error.pos : error.pos + 10]
    found = next((word for word in PYTHON_WORDS if rest.startswith(word)), "")
    return f"; JSON writes `{PYTHON_WORDS[found]}` for `{found}`" if found else ""


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _row(
    path: Path, number: int, value: object, problems: list[str], notes: Notes
) -> Iterator[Row]:
    if not isinstance(value, dict):
        kind = type(value).__name__
        more = ""
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            more = "; a list of objects goes into a `.json` file"
        elif isinstance(value, str) and value.lstrip().startswith("{"):
            more = " that holds JSON: the row was encoded twice"
        problems.append(f"{path}:{number}: a row must be a JSON object, this one is a {kind}{more}")
    elif has_lone_surrogate(value):
        problems.append(
            f"{path}:{number}: holds half of a character (a lone surrogate such as \\ud83d), which "
            "is no text; cut such texts between characters, or leave the row out"
        )
    else:
        yield Row(number=number, fields=cleaned(value, number, notes))


def _may_hold_odd_values(line: bytes) -> bool:
    """Return whether a line of JSON may hold half of a character, NaN or an infinity."""
    return any(word in line for word in ODD_WORDS) or HUGE_NUMBER.search(line) is not None


def has_lone_surrogate(value: object) -> bool:
    """Return whether a text in `value` holds a lone surrogate, which UTF-8 cannot encode."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return True
        return False
    if isinstance(value, dict):
        return any(map(has_lone_surrogate, (*value, *value.values())))
    return isinstance(value, list) and any(map(has_lone_surrogate, value))


def _unusable(error: ValueError | RecursionError) -> str:
    """Return why a JSON text is refused: a key twice, or a limit of the parser that it exceeds."""
    if isinstance(error, KeyTwiceError):
        return str(error)
    what = "too deep" if isinstance(error, RecursionError) else "a number of too many digits"
    return f"JSON that cannot be read ({what})"
