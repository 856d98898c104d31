"""Keeps what is done of a scoring, row by row, so that a killed one goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.untrusted import NotPlain, parse, table

LINE_BYTES_MAX = 16 << 20


class KeptRows:
    """An append-only file of rows that are done; each is on the disk before `add` returns.

    Rows are kept under a `key` that names them within one scoring (a row's number, say). The file
    begins with `facts`: what the rows depend on. A file of other facts, or none that can be read,
    counts as empty and is written anew; a torn last line is dropped.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self._path = path
        self._head = json.dumps({"facts": facts}, sort_keys=True, ensure_ascii=False).encode()
        self._rows, whole = self._load()
        self._size = whole
        self._begun = whole > 0

    def get(self, key: str) -> dict[str, Any] | None:
        """Return what was kept under a key; None if that row is not done."""
        return self._rows.get(key)

    def rows(self, count: int) -> dict[int, dict[str, Any]]:
        """Return what was kept under the places 0 to `count` - 1."""
        found = ((at, self.get(str(at))) for at in range(count))
        return {at: row for at, row in found if row is not None}

    def __len__(self) -> int:
        """Return the number of rows that are done."""
        return len(self._rows)

    def add(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep some rows, durably.

        Raises:
            OSError: there is no room; what was kept before stands.
        """
        lines = [
            json.dumps({"key": key, "row": row}, ensure_ascii=False).encode()
            for key, row in rows.items()
        ]
        if not self._begun:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = [self._head, *lines]
        with self._path.open("r+b" if self._begun else "wb") as file:
            file.truncate(self._size)
            file.seek(self._size)
            file.write(b"".join(line + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
            self._size = file.tell()
        self._begun = True
        self._rows |= {key: dict(row) for key, row in rows.items()}

    def _load(self) -> tuple[dict[str, dict[str, Any]], int]:
        """Return the rows of the file, and its bytes up to the end of the last whole line."""
        try:
            lines = self._path.read_bytes().split(b"\n")[:-1]
        except OSError:
            return {}, 0
        if not lines or lines[0] != self._head:
            return {}, 0
        rows: dict[str, dict[str, Any]] = {}
        size = len(lines[0]) + 1
        for line in lines[1:]:
            try:
                found = table(parse(line, bytes_max=LINE_BYTES_MAX))
            except NotPlain:
                break
            rows[str(found.get("key"))] = dict(table(found.get("row")))
            size += len(line) + 1
        return rows, size
