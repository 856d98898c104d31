"""Reads the user's rows, every one of them with its place in the file, or says all that is wrong.

Formats are told by the name's ending: `.jsonl`/`.ndjson` (one object a line), `.json` (a list of
objects), `.csv`/`.tsv` (a header, then records; a cell may span lines). Text is UTF-8.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

PROBLEMS_SHOWN_MAX = 20


class DataError(Exception):
    """The data cannot be trained on; carries every problem found, and prints the first twenty.

    The trainer ends with exit code 65 on it: repeating the run cannot help, mending the data can.
    """

    exit_code = 65

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        shown = list(self.problems[:PROBLEMS_SHOWN_MAX])
        hidden = len(self.problems) - len(shown)
        if hidden:
            shown.append(f"... and {hidden} more")
        super().__init__("\n".join(shown))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One record: `number` is its line (JSONL) or its 1-based place among records (JSON, CSV)."""

    number: int
    fields: Mapping[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return all rows of `path` in file order.

    Raises:
        DataError: the file is missing, empty, of an unknown kind, not UTF-8, or has broken rows;
            every broken row is named as `file:row`.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(sorted(READERS))
        raise DataError([f"{path}: `{path.suffix}` is not a format qft reads (it reads {known})"])
    raw = _read_bytes(path)
    problems: list[str] = []
    rows = list(reader(path, raw, problems))
    if not rows and not problems:
        problems.append(f"{path}: the file holds no rows")
    if problems:
        raise DataError(problems)
    return rows


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError([f"{path}: there is no such file"]) from None
    except IsADirectoryError:
        raise DataError([f"{path}: is a directory, not a data file"]) from None
    except OSError as error:
        raise DataError([f"{path}: cannot be read ({error.strerror})"]) from error
    if not raw.strip():
        raise DataError([f"{path}: the file is empty"])
    return raw.removeprefix(b"\xef\xbb\xbf")


def _jsonl(path: Path, raw: bytes, problems: list[str]) -> Iterator[Row]:
    # Split at LF bytes alone: str.splitlines() also breaks at U+0085 and U+2028 inside strings.
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            problems.append(_not_utf8(f"{path}:{number}", error))
        except json.JSONDecodeError as error:
            problems.append(f"{path}:{number}: not JSON ({error.msg}, column {error.colno})")
        else:
            yield from _object(path, number, value, problems)


def _json(path: Path, raw: bytes, problems: list[str]) -> Iterator[Row]:
    text = _decode(path, raw, problems)
    if text is None:
        return
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        problems.append(f"{path}: not JSON ({error.msg}, line {error.lineno} column {error.colno})")
        return
    if not isinstance(values, list):
        problems.append(f"{path}: a `.json` file must hold a list of objects")
        return
    for number, value in enumerate(values, start=1):
        yield from _object(path, number, value, problems)


def _object(path: Path, number: int, value: object, problems: list[str]) -> Iterator[Row]:
    if isinstance(value, dict):
        yield Row(number=number, fields=value)
    else:
        kind = type(value).__name__
        problems.append(f"{path}:{number}: a row must be a JSON object, this one is a {kind}")


def _csv(path: Path, raw: bytes, problems: list[str]) -> Iterator[Row]:
    text = _decode(path, raw, problems)
    if text is None:
        return
    # A cell is never longer than its file, so this limit never cuts one.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number = 0
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = cells
                if len(set(header)) < len(header):
                    problems.append(f"{path}: a column name stands twice in the header {header}")
                    return
                continue
            number += 1
            if len(cells) != len(header):
                problems.append(
                    f"{path}:{number}: {len(cells)} cells where the header has {len(header)}"
                )
                continue
            yield Row(number=number, fields=dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        problems.append(f"{path}:{number + 1}: not CSV ({error}, line {reader.line_num})")


def _decode(path: Path, raw: bytes, problems: list[str]) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problems.append(_not_utf8(f"{path}, line {line}", error))
        return None


def _not_utf8(place: str, error: UnicodeDecodeError) -> str:
    return (
        f"{place}: not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}); "
        "save the file as UTF-8"
    )


READERS: Mapping[str, Callable[[Path, bytes, list[str]], Iterator[Row]]] = MappingProxyType(
    {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv}
)
