"""What is piped into `qft generate` is a row as JSON or a ready prompt, and never a guess."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from commands.runs.piped_prompt import PipedPrompt, read_piped
from commands.ui.errors import UsageError


def piped(data: bytes) -> io.TextIOWrapper:
    """A stream of bytes that is no terminal, as a shell's `|` and `<` make it."""
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"text": "it\\u0027s late"}\n', PipedPrompt(row={"text": "it's late"})),
        (b'\n{\n "text":\n  "a", "n": 3}', PipedPrompt(row={"text": "a", "n": 3})),
        (b"\xef\xbb\xbf{}", PipedPrompt(row={})),
        ("Größe:\n\n".encode(), PipedPrompt(text="Größe:\n")),
        (b"two\r\nlines\r\n", PipedPrompt(text="two\r\nlines")),
        (b"  def f(x):", PipedPrompt(text="  def f(x):")),
        (b"{% for m in rows %}\n", PipedPrompt(text="{% for m in rows %}")),
        (b'["a"]', PipedPrompt(text='["a"]')),
        (b"12", PipedPrompt(text="12")),
        (b"", None),
        (b" \n", None),
    ],
)
def test_a_pipe_is_a_row_or_a_prompt(data: bytes, expected: PipedPrompt | None) -> None:
    """A JSON object is a row; all else is a prompt as it is, but for the last line end."""
    assert read_piped(piped(data)) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"text": "it\'s" late}', "begins as a row in JSON and is none: it is no JSON"),
        (b'{"text": "a", "text": "b"}', "it has a key twice"),
        (b'{"text": "a"}\n{"text": "b"}\n', "these are several rows"),
        (b"\xff\xfe", "this is no UTF-8"),
        (b"x" * ((16 << 20) + 1), "more than 16 MiB"),
    ],
)
def test_a_pipe_that_is_neither_is_refused(data: bytes, message: str) -> None:
    """What begins as a row is not taken for a prompt, and several rows are not one."""
    with pytest.raises(UsageError, match=message):
        read_piped(piped(data))


def test_without_a_pipe_nothing_is_read() -> None:
    """A terminal is never waited for, and a closed stdin is none."""

    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    assert read_piped(Terminal(io.BytesIO(b"typed\n"))) is None
    assert read_piped(None) is None


def test_what_was_piped_reaches_the_model_unchanged(tmp_path: Path) -> None:
    """It goes by a file, since the system limits the length of an argument."""
    text = "x" * 200_000 + "\r\n\\ü"
    flag, path = PipedPrompt(text=text).flags(tmp_path)
    assert (flag, Path(path).read_bytes()) == ("--prompt-file", text.encode())

    flag, path = PipedPrompt(row={"text": text}).flags(tmp_path)
    assert (flag, json.loads(Path(path).read_text())) == ("--row-file", {"text": text})
