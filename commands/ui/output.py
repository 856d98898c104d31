"""Writes results to stdout and messages and errors to stderr, for people and for scripts."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from commands.ui.errors import Exit, QftError, StoppedError

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What could repaint a terminal or turn its text around; line ends and tabs are harmless."""
READER_GONE = 141
"""The exit code when nobody reads our output any more: as if SIGPIPE had come."""


def print_error(trouble: QftError, *, as_json: bool) -> None:
    """Print an error on stderr; with --json also on stdout, so that a script can read it."""
    log(f"error: {trouble.message}")
    for problem in trouble.problems:
        log(f"  - {problem}")
    if trouble.hint:
        log(f"\nhint: {trouble.hint}")
    if as_json:
        _print_error_json(trouble)


def print_interrupted(*, as_json: bool) -> int:
    """Print the JSON of an interruption for a script, and return its exit code.

    A person has already read on stderr what goes on.
    """
    if as_json:
        _print_error_json(StoppedError("interrupted"))
    return Exit.INTERRUPTED


def _print_error_json(trouble: QftError) -> None:
    fields = {"error": trouble.message, "problems": trouble.problems, "hint": trouble.hint}
    with contextlib.suppress(OSError):  # stdout takes nothing; stderr has it already
        # On one line: it is a document, and it may also end a stream of JSON lines.
        _print_json_line({**fields, "exit_code": int(trouble.exit_code)})


def open_std_streams() -> None:
    """Open standard streams that are closed, and make stdout take any text.

    Where one was closed (`2>&-`), the next file that is opened, the journal for one, would take its
    number and be written into. A terminal that lacks our arrows is no reason to end either.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def columns(rows: list[tuple[str, str]]) -> str:
    """Align rows of a word and its fact."""
    width = max(len(word) for word, _ in rows)
    return "\n".join(f"{word:<{width}}  {fact}" for word, fact in rows)


def table(rows: list[dict[str, object]]) -> str:
    """Lay out a plain table: the keys as heading, a line per row."""
    heads = list(rows[0])
    cells = [heads, *([str(row[head]) for head in heads] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    shape: Callable[[list[str]], str] = lambda line: "  ".join(  # noqa: E731
        cell.ljust(width) for cell, width in zip(line, widths, strict=True)
    ).rstrip()
    return "\n".join(shape(line) for line in cells)


def clean(text: str) -> str:
    """Replace control characters: some of what we print comes from a machine we do not trust."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n").replace("\r", "\n"))


def log_writer() -> Callable[[bytes], None]:
    """Return a function that writes a log to stdout: as it is to a file, cleaned to a terminal."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    to_terminal = sys.stdout.isatty()

    def write(data: bytes) -> None:
        with _end_if_unread():
            sys.stdout.buffer.write(clean(decode(data)).encode() if to_terminal else data)
            sys.stdout.buffer.flush()

    return write


def data_writer() -> Callable[[bytes], None]:
    """Return a function that writes a result to stdout in pieces, cleaned as `print_data` does.

    A piece may end in the middle of a character, or between the two characters of a line end.
    """
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    rest = ""

    def write(data: bytes) -> None:
        nonlocal rest
        text = rest + decode(data)
        rest = "\r" * text.endswith("\r")
        with _end_if_unread():
            sys.stdout.write(clean(text.removesuffix("\r")))
            sys.stdout.flush()

    return write


@contextlib.contextmanager
def json_log_writer(*, follow: bool) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that writes a log as JSON: one document, or with `follow` an object a line.

    A line is printed once its end is there; the last one may lack it. No document is printed when
    reading the log fails: the error will be one. Objects of lines are printed all the same.
    """
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    lines: list[str] = []
    rest = ""

    def write(data: bytes) -> None:
        nonlocal rest
        *whole, rest = (rest + decode(data)).split("\n")
        lines.extend(whole)
        while follow and lines:
            _print_json_line({"line": lines.pop(0)})

    try:
        yield write
    finally:
        lines += [rest] if rest else []
        for line in lines if follow else []:
            _print_json_line({"line": line})
    if not follow:
        print_json({"lines": lines})


def _print_json_line(value: object) -> None:
    print_data(json.dumps(value))


def print_data(text: str) -> None:
    """Print a result on stdout."""
    with _end_if_unread():
        print(clean(text), flush=True)  # noqa: T201


def print_json(value: object) -> None:
    """Print a result as JSON on stdout."""
    print_data(json.dumps(value, indent=2))


@contextlib.contextmanager
def _end_if_unread() -> Iterator[None]:
    """End the process quietly when nobody reads stdout any more: it only had to print."""
    try:
        yield
    except BrokenPipeError:
        silence(sys.stdout)
        sys.exit(READER_GONE)
    except OSError:
        silence(sys.stdout)  # or the end of the process would try again, and complain
        raise


def log(text: str) -> None:
    """Print a message on stderr."""
    write_line(sys.stderr, text)


def write_line(stream: TextIO, text: str) -> None:
    """Print a line; if the stream takes no more, silence it and go on with the work.

    The reader has left, the terminal was closed, or the disk with the log is full.
    """
    try:
        print(clean(text), file=stream, flush=True)
    except OSError:
        silence(stream)


def silence(stream: TextIO) -> None:
    """Send what is still printed there to nowhere, so that the end of the process does not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
