"""Reads the user's own general rows or text (`eval.general`), whose loss is compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.data.codec import Codec, Example
from trainer.data.examples import load_examples
from trainer.data.rows import read_rows
from trainer.data.template import Template
from trainer.data_table import DataTable
from trainer.errors import DataError
from trainer.hub import Shards
from trainer.scoring.chosen_rows import choose_rows

ROWS_MAX = 500
"""Rows, or pieces of a text, that are measured."""
TEXT_BYTES_MAX = 16 << 20
TEXT_ENDINGS = frozenset({".txt", ".md"})
NO_TEXT = (
    "an encoder-decoder reads a prompt and gives an answer, so `eval.general` needs rows with the "
    "columns of `data.prompt` and `data.completion`"
)


def general_examples(
    data: DataTable, path: Path | Shards, tokenizer: Any, *, max_length: int, seq2seq: bool
) -> tuple[Example, ...]:
    """Return the examples of a file of general rows or text, at most 500 of them.

    Raises:
        DataError: it cannot be read, or its rows have neither the columns of `data` nor a `text`.
    """
    if isinstance(path, Path) and is_text(path):
        if seq2seq:
            raise DataError([f"{path}: {NO_TEXT}"])
        items = tuple(_pieces(read_text(path), tokenizer, max_length=max_length))
    else:
        first = read_rows(path)[0].fields
        table = table_for(data, first)
        if table is None:
            raise DataError([f"{path}: {columns_problem(data, first)}"])
        if seq2seq and table.text is not None:
            raise DataError([f"{path}: {NO_TEXT}"])
        items = load_examples(table, path, tokenizer, max_length=max_length, seq2seq=seq2seq).items
    return choose_rows(items, ROWS_MAX)


def is_text(path: Path) -> bool:
    """Tell whether a file is plain text by its name, and not rows."""
    return path.suffix.lower() in TEXT_ENDINGS


def table_for(data: DataTable, fields: Mapping[str, Any]) -> DataTable | None:
    """Return how such rows are read: as those of the run, or as texts; None if they are neither."""
    if all(name in fields for name in _columns(data)):
        return data
    if "text" not in fields:
        return None
    return DataTable(train=data.train, text="text", too_long=data.too_long)


def columns_problem(data: DataTable, fields: Mapping[str, Any]) -> str:
    """Say which columns rows need that have others."""
    wanted = ", ".join(f"`{name}`" for name in _columns(data))
    has = ", ".join(f"`{name}`" for name in [*fields][:10]) or "none"
    return f"its rows need the columns of `data` ({wanted}), or a column `text`; they have {has}"


def _columns(data: DataTable) -> list[str]:
    if data.messages is not None:
        return [data.messages]
    if data.text is not None:
        return [data.text]
    both = (Template.parse(one).fields for one in (data.prompt, data.completion))
    return list(dict.fromkeys(name for fields in both for name in fields))


def read_text(path: Path) -> str:
    """Return a file of plain text.

    Raises:
        DataError: it cannot be read, is empty, too large, or not UTF-8.
    """
    try:
        if path.stat().st_size > TEXT_BYTES_MAX:
            raise DataError(
                [f"{path}: has more than {TEXT_BYTES_MAX >> 20} MiB; take a part of it"]
            )
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError([f"{path}: is not UTF-8 (byte {error.start})"]) from error
    except OSError as error:
        raise DataError([f"{path}: cannot be read ({error.strerror or error})"]) from error
    if not text.strip():
        raise DataError([f"{path}: the file is empty"])
    return text


def _pieces(text: str, tokenizer: Any, *, max_length: int) -> list[Example]:
    """Cut a text into pieces of `max_length` tokens, of which every token is predicted."""
    codec = Codec.from_tokenizer(tokenizer, max_length=max_length, seq2seq=False)
    (ids,) = codec.encode_written([text])
    room = max(1, max_length - len(codec.prefix))
    pieces = [(*codec.prefix, *ids[at : at + room]) for at in range(0, len(ids), room)]
    whole = [piece for piece in pieces if len(piece) > 1]
    return [
        Example(piece, piece, "", " ".join(map(str, piece)), number, max(1, len(piece) // 2))
        for number, piece in enumerate(whole, 1)
    ]
