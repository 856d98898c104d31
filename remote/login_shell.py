"""Wraps a command so that any login shell runs it alike, and explains one that ended before it.

A server hands every command to the login shell of the account. That may be fish or tcsh, which read
it differently, or bash, whose start-up files may print, start another shell, or end. So `sh` runs
the command, and first prints a mark: what comes before it is not the command's output.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from remote.errors import LoginShellEnded, shorten

MARK = b"qft-begun\n"
ECHO_MARK = 'echo "qft"-begun; '
"""Not the mark itself: a shell that echoes its input must not be taken for one that ran it."""
SAFE = re.compile(rb"[A-Za-z0-9 _./:=,+@%~#^*?<>|&;(){}$\"\[\]`-]*")
"""What every shell takes literally between single quotes: csh does not `!` and line ends there,
fish not the backslash."""
PREAMBLE_BYTES_MAX = 64 << 10
"""How much a login shell may print before the mark."""
SHOWN_CHARACTERS = 300
EXPIRED = re.compile(
    r"password (?:has expired|change required)|change your password", re.IGNORECASE
)
EXPIRED_ACCOUNT = re.compile(r"account (?:has|is) expired", re.IGNORECASE)
NO_LOGIN = re.compile(r"not available|nologin|no login|not allowed to log ?in", re.IGNORECASE)


def wrap_for_any_shell(command: str) -> str:
    """Return a line that every login shell understands alike, and that runs `command` with `sh`."""
    data = (ECHO_MARK + command).encode("utf-8", "surrogateescape")
    if SAFE.fullmatch(data):
        return f"sh -c '{data.decode('ascii')}'"
    coded = "".join(
        chr(byte) if SAFE.fullmatch(bytes([byte])) else f"\\0{byte:03o}" for byte in data
    )
    # The last word keeps line ends at the end, which `$(…)` takes away.
    return f"""sh -c 'eval "$(printf %b "$1")"' sh '{coded}'"""


class OutputAfterMark:
    """Passes on the output that follows a mark, however it is split, and keeps what came before."""

    def __init__(self, mark: bytes, on_output: Callable[[bytes], object]) -> None:
        self._mark = mark
        self._on_output = on_output
        self.mark_seen = False
        self.before = b""
        """The output before the mark; of a long one the end."""
        self.size = 0
        """Bytes that were passed on."""

    def feed(self, data: bytes) -> None:
        """Take the next part of the output."""
        if not self.mark_seen:
            before, mark, data = (self.before + data).partition(self._mark)
            self.mark_seen = bool(mark)
            self.before = before[-PREAMBLE_BYTES_MAX:]
        if self.mark_seen and data:
            self.size += len(data)
            self._on_output(data)


def explain_early_end(where: str, code: int, stdout: bytes, stderr: bytes) -> LoginShellEnded:
    """Return the error for a login shell that ran no command, as far as its output tells why."""
    output = (stdout[-2000:] + b"\n" + stderr[-2000:]).decode("utf-8", "replace")
    shown = shorten(output, SHOWN_CHARACTERS)
    quoted = f"; it said: {shown}" if shown else ""
    if EXPIRED.search(output):
        return LoginShellEnded(
            f"the password of the account {where} has to be changed before anything runs{quoted}",
            hint="sign in there once with a terminal, change it, and repeat the command",
        )
    if EXPIRED_ACCOUNT.search(output):
        return LoginShellEnded(
            f"the account {where} has expired{quoted}",
            hint="ask whoever runs the machine, or name another account in `vm.ssh.user`",
        )
    if NO_LOGIN.search(output):
        return LoginShellEnded(
            f"the account {where} may not log in: its shell only says so{quoted}",
            hint="`chsh -s /bin/bash` there gives it a shell, or name another `vm.ssh.user`",
        )
    return LoginShellEnded(
        f"the login shell of {where} ended with exit code {code} before our command{quoted}",
        hint="look at the start-up files of that account, such as ~/.bashrc, ~/.zshenv, ~/.cshrc or"
        " config.fish: one of them ends the shell or starts another; let it do so only in a"
        " terminal (`case $- in *i*) …;; esac`). An account for SFTP only, or one whose shell is"
        " /bin/false or not there at all (`getent passwd` tells), cannot train",
    )
