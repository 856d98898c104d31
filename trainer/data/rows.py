"""Reads files of rows, each row with its place in the file, or reports every problem at once.

Formats are told by the name's ending: `.jsonl`/`.ndjson` (one object a line), `.json` (a list of
objects, or one a line), `.csv`/`.tsv` (a header, then records; a cell may span lines; a `.csv` may
be separated by semicolons or tabs), `.parquet`; each but the last also with `.gz` behind it. Text
is UTF-8. All but `.json` are read as a stream.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from trainer.data.placeholder_files import describe_placeholder
from trainer.errors import DataError
from trainer.hub import Shards

CELL_CHARACTERS_MAX = 1 << 30  # csv's own limit of 131,072 is too small for documents
BOM = b"\xef\xbb\xbf"
SAVE_AS = 'in a spreadsheet: save as "CSV UTF-8"'
SIGNATURES = MappingProxyType(
    {
        b"PK\x03": f"a zip archive or a spreadsheet, whatever its name; {SAVE_AS}",
        b"\xff\xfe": f"UTF-16 text; save it as UTF-8; {SAVE_AS}",
        b"\xfe\xff": f"UTF-16 text; save it as UTF-8; {SAVE_AS}",
        b"\x1f\x8b": "gzip; let its name end in `.gz`",
    }
)
"""What a file really is by its first bytes, when its name says that it is text."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One record: `number` is its line (JSONL) or its 1-based place among records (the others)."""

    number: int
    fields: Mapping[str, Any]


def read_rows(path: Path | Shards) -> list[Row]:
    """Return all rows of `path` in file order; those of shards are numbered through.

    Raises:
        DataError: the file is missing, empty, of an unknown kind, not UTF-8, or has broken rows;
            every broken row is named as `file:row`.
    """
    problems: list[str] = []
    rows: list[Row] = []
    for file in path.files if isinstance(path, Shards) else (path,):
        before = rows[-1].number if rows else 0
        rows += [
            replace(row, number=before + row.number) if before else row
            for row in stream_rows(file, problems)
        ]
    if not rows and not problems:
        problems.append(f"{path}: the file holds no rows")
    if problems:
        raise DataError(problems)
    return rows


def stream_rows(path: Path, problems: list[str]) -> Iterator[Row]:
    """Yield the rows one by one; a broken row is skipped and appended to `problems`.

    Raises:
        DataError: the file as a whole cannot be read, or nothing beyond a certain row can; its
            first problem says so, and those told before follow.
    """
    kind, opener = _kind(path)
    try:
        if reason := describe_placeholder(path):
            raise DataError([f"{path}: {reason}"])
        with opener(path) as file:
            start = file.read(len(BOM))
            if not start:
                raise DataError([f"{path}: the file is empty"])
            strange = next(
                (is_ for sign, is_ in SIGNATURES.items() if start.startswith(sign)), None
            )
            if strange and kind != ".parquet":
                raise DataError([f"{path}: this is {strange}"])
            if start != BOM:
                file.seek(0)
            yield from READERS[kind](path, file, problems)
    except FileNotFoundError:
        raise DataError([f"{path}: there is no such file"]) from None
    except IsADirectoryError:
        raise DataError([f"{path}: is a directory, not a data file"]) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError([f"{path}: is no whole gzip file ({error})"]) from error
    except OSError as error:
        raise DataError([f"{path}: cannot be read ({error.strerror or error})"]) from error


def _kind(path: Path) -> tuple[str, Callable[[Path], IO[bytes]]]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = (suffixes[-2:-1] if packed else suffixes[-1:]) or [""]
    if kind[0] not in READERS or (packed and kind[0] == ".parquet"):
        supported = ", ".join(sorted(READERS))
        named = f"`{path.suffix}`" if path.suffix else "a name without an ending"
        more = f"; {SAVE_AS}" if path.suffix.lower() in {".xls", ".xlsx", ".ods"} else ""
        raise DataError(
            [f"{path}: {named} is not a format qft reads (it reads {supported} and .gz){more}"]
        )
    return kind[0], _open_gzip if packed else _open_plain


def _open_plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _open_gzip(path: Path) -> IO[bytes]:
    opened: IO[bytes] = gzip.open(path, "rb")  # type: ignore[assignment]  # noqa: SIM115 - it is one, and the caller closes it
    return opened


def _jsonl(path: Path, file: IO[bytes], problems: list[str]) -> Iterator[Row]:
    # A binary file breaks lines at LF alone: text would break at U+0085 and U+2028 too.
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            byte = f"byte 0x{error.object[error.start]:02x} at {error.start}"
            problems.append(_not_utf8(f"{path}:{number}", byte))
        except json.JSONDecodeError as error:
            reason = _line_hint(line.strip()) or f"{error.msg}, column {error.colno}"
            problems.append(f"{path}:{number}: not JSON ({reason})")
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}:{number}: {_limit_exceeded(error)}")
        else:
            yield from _object(path, number, value, problems)


def _line_hint(line: bytes) -> str:
    """Return the usual mistake behind a line that is no JSON object; empty if it is another."""
    if line in {b"{", b"}", b"},"}:
        return "each object must stand on one line; a list of objects goes into a `.json` file"
    if line[:1] == b"[" or line == b"]":
        return "a list of objects goes into a `.json` file; here each line is an object"
    if line[:1] == b"{" and line[-1:] == b",":
        return "the line ends with a comma; here each line is an object of its own"
    if line[:2] == b"{'":
        return "JSON takes double quotes, not single ones"
    return ""


def _json(path: Path, file: IO[bytes], problems: list[str]) -> Iterator[Row]:
    raw = file.read()
    try:
        values = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{raw[error.start]:02x}"
        raise DataError([_not_utf8(f"{path}, line {line}", byte)]) from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and _is_object(raw.partition(b"\n")[0]):
            # One object a line, as some publish under this ending.
            yield from _jsonl(path, io.BytesIO(raw), problems)
            return
        place = f"line {error.lineno} column {error.colno}"
        raise DataError([f"{path}: not JSON ({error.msg}, {place})"]) from error
    except (ValueError, RecursionError) as error:
        raise DataError([f"{path}: {_limit_exceeded(error)}"]) from error
    if not isinstance(values, list):
        raise DataError([f"{path}: a `.json` file must hold a list of objects"])
    for number, value in enumerate(values, start=1):
        yield from _object(path, number, value, problems)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _object(path: Path, number: int, value: object, problems: list[str]) -> Iterator[Row]:
    if not isinstance(value, dict):
        kind = type(value).__name__
        problems.append(f"{path}:{number}: a row must be a JSON object, this one is a {kind}")
    elif _has_lone_surrogate(value):
        problems.append(
            f"{path}:{number}: holds half of a character (a lone surrogate such as \\ud83d), which "
            "is no text; cut such texts between characters, or leave the row out"
        )
    else:
        yield Row(number=number, fields=value)


def _has_lone_surrogate(value: object) -> bool:
    """Return whether a text in `value` holds a lone surrogate, which UTF-8 cannot encode."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return True
        return False
    if isinstance(value, dict):
        return any(map(_has_lone_surrogate, (*value, *value.values())))
    return isinstance(value, list) and any(map(_has_lone_surrogate, value))


def _limit_exceeded(error: ValueError | RecursionError) -> str:
    """Return which limit of the parser a JSON text exceeds: digits of a number, or depth."""
    what = "too deep" if isinstance(error, RecursionError) else "a number of too many digits"
    return f"JSON that cannot be read ({what})"


def _csv(path: Path, file: IO[bytes], problems: list[str]) -> Iterator[Row]:
    # Bytes that are no UTF-8 come through as lone surrogates, so that only their record is lost.
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    csv.field_size_limit(CELL_CHARACTERS_MAX)
    first = text.readline()
    separator = "\t" if ".tsv" in path.suffixes else _separator(first)
    reader = csv.reader(itertools.chain([first], text), delimiter=separator, strict=True)
    header: list[str] | None = None
    number = 0
    try:
        for cells in reader:
            if not cells or (len(cells) == 1 < len(header or ()) and not cells[0].strip()):
                continue
            if header is None:
                header = cells
                if len(set(header)) < len(header):
                    twice = f"a column name stands twice in the header {header}"
                    raise DataError([f"{path}: {twice}"])
                continue
            number += 1
            stray = _stray_byte(cells)
            if stray is not None:
                problems.append(_not_utf8(f"{path}:{number}", f"byte 0x{stray:02x}"))
            elif len(cells) != len(header):
                problems.append(
                    f"{path}:{number}: {len(cells)} cells where the header has {len(header)}"
                )
            else:
                yield Row(number=number, fields=dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        # Where a cell ends is unknown from here on, so no further row can be trusted.
        problem = f"{path}:{number + 1}: not CSV ({error}, line {reader.line_num})"
        raise DataError([problem, *problems]) from error
    finally:
        text.detach()


def _separator(header: str) -> str:
    """Return the separator: a comma, or a semicolon or tab if the header has no comma.

    A mark within a quoted name separates nothing.
    """
    bare = "".join(header.split('"')[::2])
    return next((mark for mark in ",;\t" if mark in bare), ",")


def _stray_byte(cells: Sequence[str]) -> int | None:
    for cell in cells:
        if not cell.isascii():
            for character in cell:
                if "\udc80" <= character <= "\udcff":
                    return ord(character) - 0xDC00
    return None


def _parquet(path: Path, file: IO[bytes], problems: list[str]) -> Iterator[Row]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise DataError([f"{path}: Parquet needs the package pyarrow"]) from None
    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                number += 1
                yield Row(number=number, fields=fields)
    except pa.ArrowException as error:
        problem = f"{path}:{number + 1}: not Parquet ({error})"
        raise DataError([problem, *problems]) from error


def _not_utf8(place: str, byte: str) -> str:
    return f"{place}: not UTF-8 ({byte}); save the file as UTF-8"


READERS: Mapping[str, Callable[[Path, IO[bytes], list[str]], Iterator[Row]]] = MappingProxyType(
    {
        ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv,
        ".parquet": _parquet,
    }
)  # fmt: skip
