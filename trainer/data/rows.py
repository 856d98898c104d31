"""Reads files of rows, each row with its place in the file, or reports every problem at once.

Formats are told by the name's ending: `.jsonl`/`.ndjson` (one object a line), `.json` (a list of
objects, or one a line), `.csv`/`.tsv` (a header, then records; a cell may span lines; a `.csv` may
be separated by semicolons or tabs), `.parquet`; each but the last also with `.gz` behind it. Text
is UTF-8. All but `.json` are read as a stream.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import IO, Protocol

from trainer import untrusted
from trainer.data.csv_rows import read_table
from trainer.data.json_rows import cleaned, read_lines, read_whole
from trainer.data.placeholder_files import (
    BOM,
    HEAD_BYTES,
    SAVE_AS,
    UNPACK,
    describe_format,
    describe_head,
    describe_placeholder,
)
from trainer.data.row import Notes, Row
from trainer.errors import DataError
from trainer.hub import Shards

__all__ = ["READERS", "Notes", "Row", "read_rows", "stream_rows"]

PARQUET = b"PAR1"
CLASSES_MAX, CLASSES_SHOWN_MAX = 100_000, 10
SPREADSHEETS = frozenset({".xls", ".xlsx", ".ods", ".numbers"})
ARCHIVES = frozenset({".zip", ".tar", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"})


def read_rows(path: Path | Shards, notes: Notes | None = None) -> list[Row]:
    """Return all rows of `path` in file order; those of shards are numbered through.

    What was read otherwise than it is written is added to `notes`.

    Raises:
        DataError: the file is missing, empty, of an unknown kind, not UTF-8, or has broken rows;
            every broken row is named as `file:row`.
    """
    problems: list[str] = []
    rows: list[Row] = []
    for file in path.files if isinstance(path, Shards) else (path,):
        before = rows[-1].number if rows else 0
        found = Notes()
        rows += [
            replace(row, number=before + row.number) if before else row
            for row in stream_rows(file, problems, found)
        ]
        if notes is not None:
            notes.extend(found, rows_before=before)
    if not rows and not problems:
        problems.append(f"{path}: the file holds no rows")
    if problems:
        raise DataError(problems)
    return rows


def stream_rows(path: Path, problems: list[str], notes: Notes | None = None) -> Iterator[Row]:
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
            head = file.read(HEAD_BYTES)
            if not head:
                raise DataError([f"{path}: the file is empty"])
            if reason := describe_head(head, path):  # of what was packed, too
                raise DataError([f"{path}: {reason}"])
            strange = describe_format(head)
            if strange and not (kind == ".parquet" and head.startswith(PARQUET)):
                raise DataError([f"{path}: this is {strange}"])
            file.seek(len(BOM) if head.startswith(BOM) else 0)
            yield from READERS[kind](path, file, problems, notes)
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
        ending = path.suffix.lower()
        more = f"; {SAVE_AS}" if ending in SPREADSHEETS else ""
        more = f"; {UNPACK}" if ending in ARCHIVES else more
        raise DataError(
            [f"{path}: {named} is not a format qft reads (it reads {supported} and .gz){more}"]
        )
    return kind[0], _open_gzip if packed else _open_plain


def _open_plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _open_gzip(path: Path) -> IO[bytes]:
    opened: IO[bytes] = gzip.open(path, "rb")  # type: ignore[assignment]  # noqa: SIM115 - it is one, and the caller closes it
    return opened


def _parquet(
    path: Path, file: IO[bytes], problems: list[str], notes: Notes | None = None
) -> Iterator[Row]:
    notes = notes or Notes()
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise DataError([f"{path}: Parquet needs the package pyarrow"]) from None
    number = 0
    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if len(set(names)) < len(names):
            raise DataError([f"{path}: a column name stands twice in {names}"])
        for name, words in _label_names(table.schema_arrow.metadata or {}):
            notes.add(f"`{name}`: its numbers stand for {words}, as the file says; write the words")
        for batch in table.iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                number += 1
                yield Row(number=number, fields=cleaned(fields, number, notes))
    except pa.ArrowException as error:
        problem = f"{path}:{number + 1}: not Parquet ({error})"
        raise DataError([problem, *problems]) from error


def _label_names(metadata: Mapping[bytes, bytes]) -> Iterator[tuple[str, str]]:
    """Yield the columns whose numbers `datasets` describes as classes, with what they stand for."""
    try:
        found = untrusted.parse(metadata.get(b"huggingface", b"{}"), bytes_max=1 << 20)
    except untrusted.NotPlain:  # a description that nobody needs
        return
    info = untrusted.table(untrusted.table(found).get("info"))
    for name, feature in untrusted.table(info.get("features")).items():
        described = untrusted.table(feature)
        names = untrusted.texts(described.get("names"), most=CLASSES_MAX)
        if described.get("_type") == "ClassLabel" and names:
            shown = [f"{number} {word!r}" for number, word in enumerate(names[:CLASSES_SHOWN_MAX])]
            yield name, ", ".join([*shown, *["..."] * (len(names) > len(shown))])


class Reader(Protocol):
    """Yields the rows of an opened file; a broken row is skipped and appended to `problems`."""

    def __call__(
        self, path: Path, file: IO[bytes], problems: list[str], notes: Notes | None = None
    ) -> Iterator[Row]: ...


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        ".jsonl": read_lines, ".ndjson": read_lines, ".json": read_whole, ".csv": read_table,
        ".tsv": read_table, ".parquet": _parquet,
    }
)  # fmt: skip
