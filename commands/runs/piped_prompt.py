"""Reads what is piped into `qft generate`: a row as JSON, or a ready prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from commands.ui.errors import UsageError
from trainer.untrusted import NotPlain, parse

PIPED_BYTES_MAX = 16 << 20
ROWS_HINT = "save them as FILE.jsonl and write `--rows FILE.jsonl`"


@dataclass(frozen=True, kw_only=True)
class PipedPrompt:
    """What was piped in: either the fields of a row, or the text of a ready prompt."""

    row: Mapping[str, object] | None = None
    text: str = ""

    def flags(self, scratch: Path) -> list[str]:
        """Write it into a file, since a command line has little room, and return its flag."""
        if self.row is None:
            path = scratch / "prompt.txt"
            path.write_text(self.text, encoding="utf-8", newline="")
            return ["--prompt-file", str(path)]
        path = scratch / "row.jsonl"
        path.write_text(json.dumps(self.row) + "\n", encoding="utf-8")
        return ["--row-file", str(path)]


def read_piped(stream: TextIO | None) -> PipedPrompt | None:
    """Read a stream to its end; None if it is a terminal, or has nothing but space.

    A JSON object is a row; any other text is a prompt, without its last line end.

    Raises:
        UsageError: it is no UTF-8, too long, several rows, or begins as a row and is none.
    """
    if stream is None or stream.isatty():
        return None
    data = stream.buffer.read(PIPED_BYTES_MAX + 1)
    if len(data) > PIPED_BYTES_MAX:
        raise UsageError(f"stdin: more than {PIPED_BYTES_MAX >> 20} MiB are no prompt")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"stdin: this is no UTF-8 ({error.reason} at byte {error.start})"
        ) from None
    if not text.strip():
        return None
    if not text.lstrip().startswith("{"):
        return PipedPrompt(text=without_last_line_end(text))
    try:
        row = parse(text.encode(), bytes_max=PIPED_BYTES_MAX)
    except NotPlain as error:
        return _no_row(text, error)
    assert isinstance(row, dict)  # it begins with a brace
    return PipedPrompt(row=row)


def _no_row(text: str, error: Exception) -> PipedPrompt:
    """Return a text that begins with a brace as the prompt that it is, unless it looks like a row.

    Raises:
        UsageError: it does.
    """
    lines = text.strip().splitlines()
    if len(lines) > 1 and all(_is_object(line) for line in lines if line.strip()):
        raise UsageError("stdin: these are several rows, and one is answered", hint=ROWS_HINT)
    if text.lstrip()[1:].lstrip().startswith('"'):
        raise UsageError(
            f"stdin: this begins as a row in JSON and is none: {error}",
            hint="mend it, or give a ready prompt with `--prompt`",
        )
    return PipedPrompt(text=without_last_line_end(text))


def _is_object(line: str) -> bool:
    try:
        return isinstance(parse(line.encode(), bytes_max=PIPED_BYTES_MAX), dict)
    except NotPlain:
        return False


def without_last_line_end(text: str) -> str:
    """Return a text without the line end that editors and `echo` put behind the last line."""
    return text.removesuffix("\n").removesuffix("\r")
