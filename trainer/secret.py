"""Holds a token in memory so that no message, record or dump shows it."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import TextIOBase
from typing import TextIO

BYTES_MAX = 4096
HIDDEN = "***"


class Secret:
    """A text that is shown to nobody: as `str` and `repr` it is `***`, and it is never pickled."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself, for the one who has to use it."""
        return self._text

    def hide_in(self, text: str) -> str:
        """Return `text` with `***` wherever the secret stood."""
        return text.replace(self._text, HIDDEN) if self._text else text

    def __repr__(self) -> str:
        """Show nothing of it."""
        return HIDDEN

    def __reduce__(self) -> str:
        """Refuse to be written anywhere."""
        raise TypeError("a secret is not written")


def read_secret() -> Secret:
    """Read a secret from stdin, to its end, and leave an empty stdin to whatever this starts.

    No crash writes this process's memory to a disk after that: the limit is 1 and not 0, since only
    then does Linux not run a program that collects dumps, either.
    """
    with suppress(OSError, ValueError):  # the limit is lower already
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    text = sys.stdin.buffer.read(BYTES_MAX).decode().strip()
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return Secret(text)


@contextmanager
def hidden_in_output(secret: Secret | None) -> Iterator[None]:
    """Hide a secret in all that is written to stdout and stderr inside, tracebacks included."""
    if secret is None:
        yield
        return
    with (
        redirect_stdout(HidingStream(sys.stdout, secret)),
        redirect_stderr(HidingStream(sys.stderr, secret)),
    ):
        yield


class HidingStream(TextIOBase):
    """Writes to another stream, with `***` wherever the secret stood."""

    def __init__(self, stream: TextIO, secret: Secret) -> None:
        self._stream = stream
        self._secret = secret

    def write(self, text: str) -> int:
        """Write the text without the secret."""
        self._stream.write(self._secret.hide_in(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()

    def fileno(self) -> int:
        """Return the stream's own descriptor, past which nothing is hidden."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether people look at it."""
        return self._stream.isatty()
