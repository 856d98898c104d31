"""Gets a command past the login shell, whichever it is, and tells when that ended before it.

A server hands every command to the login shell of the account. That may be fish or tcsh, which read
it differently, or bash, whose start-up files may print, start another shell, or end. So `sh` runs
the command, and says on a line of its own that it has begun: what comes before is chatter.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from remote.errors import LoginShellEnded, shorten

MARK = b"qft-begun\n"
ECHO_MARK = 'echo "qft"-begun; '
"""Not the mark itself: a shell that repeats what it reads must not be taken for one that ran it."""
SAFE = re.compile(rb"[A-Za-z0-9 _./:=,+@%~#^*?<>|&;(){}$\"\[\]`-]*")
"""What every shell takes literally between single quotes: csh minds `!` and line ends there, fish
the backslash."""
CHATTER_BYTES_MAX = 64 << 10
CHATTER_SHOWN = 300
EXPIRED = re.compile(
    r"password (?:has expired|change required)|change your password", re.IGNORECASE
)
EXPIRED_ACCOUNT = re.compile(r"account (?:has|is) expired", re.IGNORECASE)
NO_LOGIN = re.compile(r"not available|nologin|no login|not allowed to log ?in", re.IGNORECASE)


def wrap_for_any_shell(command: str) -> str:
    """Write `command`, which is for `sh`, as a line that every login shell understands alike."""
    data = (ECHO_MARK + command).encode("utf-8", "surrogateescape")
    if SAFE.fullmatch(data):
        return f"sh -c '{data.decode('ascii')}'"
    coded = "".join(
        chr(byte) if SAFE.fullmatch(bytes([byte])) else f"\\0{byte:03o}" for byte in data
    )
    # The last word keeps line ends at the end, which `$(…)` takes away.
    return f"""sh -c 'eval "$(printf %b "$1")"' sh '{coded}'"""


class CommandOutput:
    """Hands on what the command says, and keeps what its login shell said before."""

    def __init__(self, take: Callable[[bytes], object]) -> None:
        self._take = take
        self.begun = False
        self.chatter = b""

    def hear(self, data: bytes) -> None:
        """Take the next piece of output, however it is cut."""
        if not self.begun:
            before, mark, data = (self.chatter + data).partition(MARK)
            self.begun = bool(mark)
            self.chatter = before[-CHATTER_BYTES_MAX:]
        if self.begun and data:
            self._take(data)


def explain_early_end(where: str, code: int, chatter: bytes, stderr: bytes) -> LoginShellEnded:
    """Say why no command ran: what kind of account or start-up file that is, as far as it shows."""
    said = (chatter[-2000:] + b"\n" + stderr[-2000:]).decode("utf-8", "replace")
    words = shorten(said, CHATTER_SHOWN)
    quoted = f"; it said: {words}" if words else ""
    if EXPIRED.search(said):
        return LoginShellEnded(
            f"the password of the account {where} has to be changed before anything runs{quoted}",
            hint="sign in there once with a terminal, change it, and repeat the command",
        )
    if EXPIRED_ACCOUNT.search(said):
        return LoginShellEnded(
            f"the account {where} has expired{quoted}",
            hint="ask whoever runs the machine, or name another account in `vm.ssh.user`",
        )
    if NO_LOGIN.search(said):
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
