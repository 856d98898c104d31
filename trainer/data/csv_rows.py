r"""Reads rows of CSV and TSV as spreadsheets, databases and pandas write them.

Cells are quoted as RFC 4180 says. A file that cannot be read so to its end is tried with quotes
escaped by a backslash (MySQL, Spark), and a TSV with quotes that mean nothing (mysql, psql); what
is read in such a way is noted. Excel's line `sep=;` names the separator. `\N` (MySQL, PostgreSQL),
`NaN`, `nan`, `<NA>` (pandas) and `#N/A` (Excel) are null where they are all of a cell.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import IO

from trainer.data.json_rows import not_utf8
from trainer.data.row import Notes, Row
from trainer.errors import DataError

CELL_CHARACTERS_MAX = 1 << 30  # csv's own limit of 131,072 is too small for documents
CHUNK_BYTES = 1 << 20
RECORDS_COMPARED = 30
SEPARATORS = ",;\t|"
NULLS = frozenset({"\\N", "NaN", "nan", "<NA>", "#N/A"})
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)
ESCAPED = re.compile(r'\\(["\\]|\r?\n)')
SINGLE_QUOTED = re.compile("'.+'")
TYPOGRAPHIC = re.compile("[\u201c\u201d\u201e]")


class Quoting(Enum):
    """How the cells of a file are quoted."""

    DOUBLED = "a quote within a cell is doubled"
    BACKSLASH = "a quote within a cell has a backslash before it"
    NONE = "quotes are characters like any other"


def read_table(
    path: Path, file: IO[bytes], problems: list[str], notes: Notes | None = None
) -> Iterator[Row]:
    """Yield the rows of a table whose first record names the columns.

    Raises:
        DataError: the header is unusable, or a quote makes all after it unreadable.
    """
    notes = notes or Notes()
    csv.field_size_limit(CELL_CHARACTERS_MAX)
    start = file.tell()
    tabs = ".tsv" in path.suffixes
    separator, quoting = _dialect(file, start, tabs=tabs)
    if quoting is not Quoting.DOUBLED:
        notes.add(f"read as a table in which {quoting.value}")
    # Bytes that are no UTF-8 come through as lone surrogates, so that only their record is lost.
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    reader = _records(text, separator, quoting)
    header: list[str] | None = None
    number = 0
    try:
        for cells in reader:
            if not cells or (len(cells) == 1 < len(header or ()) and not cells[0].strip()):
                continue
            if header is None:
                header = _header(path, cells)
                continue
            number += 1
            stray = _stray_byte(cells)
            fields = _trimmed(cells, header)
            if stray is not None:
                problems.append(not_utf8(f"{path}:{number}", f"byte 0x{stray:02x}"))
            elif not any(map(str.strip, cells)) and len(header) > 1:
                notes.add("rows of empty cells are left out", number)
            elif len(fields) != len(header):
                problems.append(f"{path}:{number}: {_uneven(cells, header, separator)}")
            else:
                if len(fields) < len(cells):
                    notes.add("empty cells beyond the header are left out", number)
                yield _row(number, header, fields, notes)
    except csv.Error as error:
        # Where a cell ends is unknown from here on, so no further row can be trusted.
        problem = f"{path}:{number + 1}: not CSV ({error}, line {reader.line_num})"
        raise DataError([problem, *problems]) from error
    finally:
        text.detach()


class _Records:
    """The records of a table, with the number of the line that was read last."""

    def __init__(self, lines: Iterable[str], separator: str, quoting: Quoting) -> None:
        if quoting is Quoting.BACKSLASH:
            lines = map(_doubled, lines)
        self._reader = csv.reader(
            lines,
            delimiter=separator,
            strict=True,
            quoting=csv.QUOTE_NONE if quoting is Quoting.NONE else csv.QUOTE_MINIMAL,
        )

    @property
    def line_num(self) -> int:
        return self._reader.line_num

    def __iter__(self) -> Iterator[list[str]]:
        return iter(self._reader)


def _records(text: io.TextIOBase, separator: str, quoting: Quoting) -> _Records:
    first = text.readline()
    lines = text if SEPARATOR_LINE.fullmatch(first) else itertools.chain([first], text)
    return _Records(lines, separator, quoting)


def _doubled(line: str) -> str:
    r"""Return a line with `\"` as `""` and `\\` as one backslash; other backslashes stay."""
    return ESCAPED.sub(lambda found: '""' if found[1] == '"' else found[1], line)


def _dialect(file: IO[bytes], start: int, *, tabs: bool) -> tuple[str, Quoting]:
    """Return separator and quoting; the file is read ahead only where its bytes leave a doubt.

    A file that is well-formed by RFC 4180 is read so, whatever else it might be.
    """
    first = io.TextIOWrapper(
        io.BytesIO(file.readline(CHUNK_BYTES)),
        encoding="utf-8",
        errors="surrogateescape",
        newline="",
    ).readline()
    named = SEPARATOR_LINE.fullmatch(first)
    separator = "\t" if tabs else named[1] if named else ""
    if not separator:
        likely = _separators(first)
        separator = likely[0]
        if len(likely) > 1:
            even = (one for one in likely if _is_even(file, start, one, records=RECORDS_COMPARED))
            separator = next(even, separator)
    others = [Quoting.BACKSLASH] if _holds(file, start, b'\\"') else []
    others += [Quoting.NONE] if separator == "\t" and _holds(file, start, b'"') else []
    quoting = Quoting.DOUBLED
    if others and not _is_even(file, start, separator, quoting):
        even_ways = (one for one in others if _is_even(file, start, separator, one))
        quoting = next(even_ways, quoting)
    file.seek(start)
    return separator, quoting


def _separators(header: str) -> list[str]:
    """Return the separators in a header, likeliest first; a comma where there is none.

    A mark within a quoted name separates nothing.
    """
    bare = "".join(header.split('"')[::2])
    return [mark for mark in SEPARATORS if mark in bare] or [","]


def _holds(file: IO[bytes], start: int, wanted: bytes) -> bool:
    """Return whether bytes stand anywhere in a file, which is read in pieces."""
    file.seek(start)
    end = b""
    while piece := file.read(CHUNK_BYTES):
        if wanted in end + piece:
            return True
        end = piece[1 - len(wanted) :] if len(wanted) > 1 else b""
    return False


def _is_even(
    file: IO[bytes],
    start: int,
    separator: str,
    quoting: Quoting = Quoting.DOUBLED,
    records: int | None = None,
) -> bool:
    """Return whether a file, or its first records, can be read with as many cells everywhere."""
    file.seek(start)
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    width = 0
    try:
        for cells in itertools.islice(_records(text, separator, quoting), records):
            blank = not cells or (len(cells) == 1 < width and not cells[0].strip())
            if not blank and width and len(cells) != width:
                return False
            width = width if blank else len(cells)
    except csv.Error:
        return False
    finally:
        text.detach()
    return width > 1 or separator == ","


def _header(path: Path, cells: list[str]) -> list[str]:
    """Return the names of the columns, without several empty ones at the end of the line.

    Raises:
        DataError: a name stands twice, a byte is no UTF-8, or it is no line of names.
    """
    stray = _stray_byte(cells)
    if stray is not None:
        raise DataError([not_utf8(f"{path}, header", f"byte 0x{stray:02x}")])
    if cells[0].lstrip().startswith(("{", "[{")):
        raise DataError([f"{path}: this is JSON, not a table; let its name end in `.jsonl`"])
    if len(cells) > 1 and all(SINGLE_QUOTED.fullmatch(cell.strip()) for cell in cells):
        raise DataError([f'{path}: the names stand in single quotes, and only the plain " quotes'])
    header = [cells[0].removeprefix("\ufeff"), *cells[1:]]
    while len(set(header)) < len(header) and not header[-1].strip():
        header = header[:-1]
    if len(set(header)) < len(header):
        raise DataError([f"{path}: a column name stands twice in the header {header}"])
    return header


def _trimmed(cells: list[str], header: list[str]) -> list[str]:
    """Return the cells of a record without empty ones beyond the header."""
    beyond = cells[len(header) :]
    return cells if any(cell.strip() for cell in beyond) else cells[: len(header)]


def _row(number: int, header: list[str], cells: list[str], notes: Notes) -> Row:
    fields: dict[str, str | None] = dict(zip(header, cells, strict=True))
    if not NULLS.isdisjoint(cells):
        for name, cell in zip(header, cells, strict=True):
            if cell in NULLS:
                fields[name] = None
                notes.add(f"`{name}`: a cell of `{cell}` alone is read as null", number)
    return Row(number=number, fields=fields)


def _uneven(cells: Sequence[str], header: Sequence[str], separator: str) -> str:
    """Return the problem of a record with other cells than the header has, and its usual cause."""
    if any(TYPOGRAPHIC.match(cell.lstrip()) for cell in cells):
        cause = 'a cell begins with a typographic quote, and only the plain " quotes'
    elif len(cells) > len(header):
        mark = "tab" if separator == "\t" else f"`{separator}`"
        cause = f"put a cell that holds a {mark} in quotes"
    else:
        cause = "put a cell that holds a line break in quotes"
    return f"{len(cells)} cells where the header has {len(header)}; {cause}"


def _stray_byte(cells: Sequence[str]) -> int | None:
    for cell in cells:
        if not cell.isascii():
            for character in cell:
                if "\udc80" <= character <= "\udcff":
                    return ord(character) - 0xDC00
    return None
