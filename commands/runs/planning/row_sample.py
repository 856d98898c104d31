"""Counts the rows of a data file and reads some of them from all over it, in a second or two."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.data.json_rows import read_lines
from trainer.data.placeholder_files import BOM
from trainer.data.rows import stream_rows

SAMPLED_ROWS = 2000
WHOLE_BYTES_MAX = 8 << 20
"""A smaller file is read whole."""
BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class RowSample:
    """The number of rows of a file, and rows that stand for them all."""

    rows: int
    fields: tuple[Mapping[str, Any], ...]
    counted: bool = True
    """Whether `rows` is the exact number."""


def sample_rows(path: Path) -> RowSample:
    """Count the rows of a file and take some at even distances.

    Raises:
        DataError: the file cannot be read.
    """
    if _is(path, ".jsonl", ".ndjson") and path.is_file() and path.stat().st_size > WHOLE_BYTES_MAX:
        return _of_lines(path)
    if _is(path, ".parquet") and path.is_file():
        return _of_parquet(path)
    if _is(path, ".csv", ".tsv") and path.is_file() and path.stat().st_size > WHOLE_BYTES_MAX:
        # Records are found at even distances only by reading all before them; the first ones do.
        first = tuple(row.fields for row in islice(stream_rows(path, []), SAMPLED_ROWS))
        return RowSample(rows=max(_csv_records(path), len(first)), fields=first)
    rows = [row.fields for row in stream_rows(path, [])]
    return RowSample(rows=len(rows), fields=_spread(rows))


def _is(path: Path, *endings: str) -> bool:
    return path.suffix.lower() in endings


def _spread(rows: list[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Return at most `SAMPLED_ROWS` of the rows, at even distances."""
    every = max(1, -(-len(rows) // SAMPLED_ROWS))
    return tuple(rows[::every])


def _of_lines(path: Path) -> RowSample:
    """Count the lines that are not blank, and read every so manieth of them."""
    rows = 0
    with path.open("rb") as file:
        rows = sum(1 for line in file if not line.isspace())
    every = max(1, -(-rows // SAMPLED_ROWS))
    chosen: list[bytes] = []
    with path.open("rb") as file:
        lines = (line for line in file if not line.isspace())
        chosen.extend(line for at, line in enumerate(lines) if at % every == 0)
    return RowSample(rows=rows, fields=tuple(_read_lines(path, b"".join(chosen))))


def _read_lines(path: Path, content: bytes) -> Iterator[Mapping[str, Any]]:
    """Read lines of JSON as the trainer does."""
    file = io.BytesIO(content.removeprefix(BOM))
    yield from (row.fields for row in read_lines(path, file, [], None))


def _of_parquet(path: Path) -> RowSample:
    """Take the number of rows from the file's own index, and the rows of its first part."""
    some = tuple(row.fields for row in islice(stream_rows(path, []), SAMPLED_ROWS))
    from pyarrow import parquet  # there, since the rows were read

    return RowSample(rows=int(parquet.ParquetFile(path).metadata.num_rows), fields=some)


def _csv_records(path: Path) -> int:
    """Count the records below the header: line ends that stand in no quotes.

    A quote within a cell is doubled, which closes and opens it at once.
    """
    ends, quoted, last = 0, False, b""
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            for at, part in enumerate(block.split(b'"')):
                quoted = quoted if at == 0 else not quoted
                ends += 0 if quoted else part.count(b"\n")
            last = block[-1:]
    return ends - (last == b"\n")
