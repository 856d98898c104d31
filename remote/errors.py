"""Defines the errors of one host over SSH, by what to do next.

RemoteError
├── Unreachable         no answer, or the connection was cut: try again later, partial work is kept
│   ├── TimedOut        a command did not end in time; it may still be running over there
│   └── TooSlow         bytes arrive, but more slowly than is worth waiting for
├── HostKeyMismatch     another machine answers at that address: never retry, never send data
├── AuthRefused         the machine does not accept our key: a human, or a new machine
├── LoginShellEnded     no command runs for that account: a human mends its shell or start-up files
├── NoSftp              no file can be sent: a human mends the server's settings
├── CommandFailed       a command ended with an exit code other than 0; holds the whole result
├── Absent              there is no such directory over there
├── NoSpace             a disk is too small: what is needed and what is free, nothing overwritten
├── Damaged             bytes differ from their checksum, or a source changed while it was read
├── Unfit               nothing that we may do makes the machine able to train: another machine
└── Untrusted           the machine offered something illegal; nothing of it was written
    └── Garbled         its answer is malformed: the act failed, and may be tried a few times more
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class RemoteError(Exception):
    """Base class: what happened, and a hint with the command or step that helps."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Unreachable(RemoteError):  # noqa: N818  (the room's vocabulary, not a suffix)
    """The machine does not answer, or the connection was cut. Next: the same call, later."""


class TimedOut(Unreachable):
    """A command did not end in time; it may still run there. Next: look, then try again."""


class TooSlow(Unreachable):
    """A transfer fell below the least speed allowed. Next: the same call, later."""


class HostKeyMismatch(RemoteError):  # noqa: N818
    """The host presented another key than the pinned one. Next: a human; never retried."""

    def __init__(self, message: str, *, expected: str, got: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.expected = expected
        self.got = got


class AuthRefused(RemoteError):  # noqa: N818
    """The host does not accept our key for that user. Next: a human, or a new machine."""


class LoginShellEnded(RemoteError):  # noqa: N818
    """The login shell ended before our command. Next: a human; trying again changes nothing."""


class NoSftp(RemoteError):  # noqa: N818
    """The server has no SFTP for that account. Next: a human; trying again changes nothing."""


class CommandFailed(RemoteError):  # noqa: N818
    """A command ended with an exit code other than 0; `result` holds its output.

    `final` means that the same command would end the same way.
    """

    def __init__(
        self, command: str, result: CommandResult, *, hint: str = "", final: bool = False
    ) -> None:
        last = (result.stderr.strip() or result.stdout.strip()).splitlines()[-10:]
        lines = "".join(f"\n  {line}" for line in last) or " without a word"
        super().__init__(f"`{shorten(command)}` ended {result.exit_code}:{lines}", hint=hint)
        self.command = command
        self.result = result
        self.final = final


class Absent(RemoteError):  # noqa: N818
    """There is no directory of that name over there."""


class NoSpace(RemoteError):  # noqa: N818
    """A disk cannot hold what should be written; what was there before is intact."""

    def __init__(self, where: str, *, needed_bytes: int, free_bytes: int, hint: str = "") -> None:
        super().__init__(
            f"no space left on {where}: {megabytes(needed_bytes)} needed,"
            f" {megabytes(free_bytes)} free; the files that were there are intact",
            hint=hint or "free some space or choose a bigger disk, then repeat the command",
        )
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class Damaged(RemoteError):  # noqa: N818
    """Bytes differ from their checksum, or a source changed while it was read. Next: once more."""


class Untrusted(RemoteError):  # noqa: N818
    """The machine offered something illegal. Next: a human; nothing of it was written."""


class Garbled(Untrusted):
    """The machine's answer is malformed. Next: the same call again, a few times at most."""


class Unfit(RemoteError):  # noqa: N818
    """The machine cannot be made able to train. Next: another size, image or machine."""

    def __init__(self, reasons: Sequence[str], *, hint: str = "") -> None:
        super().__init__(f"this machine cannot train: {'; '.join(reasons)}", hint=hint)
        self.reasons = tuple(reasons)


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """The output and the exit code of a command."""

    exit_code: int
    """As the shell reports it; -1 if a signal ended the command."""
    stdout: str
    stderr: str


def shorten(text: str, limit: int = 160) -> str:
    """Cut `text` to one line of at most `limit` characters, for messages."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def megabytes(count: int) -> str:
    """Format a number of bytes for people, exact below 10 KB."""
    if abs(count) < 10_000:
        return f"{count} bytes"
    if abs(count) < 10_000_000:
        return f"{count / 1e3:.1f} KB"
    return f"{count / 1e6:,.1f} MB" if abs(count) < 10_000_000_000 else f"{count / 1e9:,.1f} GB"
