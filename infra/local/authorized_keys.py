"""Reads `~/.ssh/authorized_keys` of a machine as OpenSSH's server does, see sshd(8).

Lines come out as the embedded server's library takes them: it knows neither `restrict` nor what the
client asked for beside a forced command, and ignores options that it does not know.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

FORCED = "forced-command"
"""The option that stands for `command` in the lines that are returned: its value is to run."""
FILE_BYTES_MAX = 1 << 20
OPTIONS_MAX = 100
_RESTRICTED = {
    "agent-forwarding": "no-agent-forwarding",
    "port-forwarding": "no-port-forwarding",
    "pty": "no-pty",
    "user-rc": "no-user-rc",
    "x11-forwarding": "no-X11-forwarding",
}
"""What `restrict` takes away, and a later option of that name gives back."""
_REFUSALS = {refusal.lower(): refusal for refusal in _RESTRICTED.values()}
_GROUP_OR_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def read_authorized_keys(home: Path) -> list[str]:
    """Return the lines of the machine's own file that admit a key, for the library.

    Like OpenSSH's server it believes no file that others can write, and no line with an option
    that it does not know.
    """
    file = home / ".ssh" / "authorized_keys"
    try:
        if not file.is_file() or any(map(_is_writable_by_others, (home, file.parent, file))):
            return []
        with file.open("rb") as opened:
            text = opened.read(FILE_BYTES_MAX + 1)
    except OSError:
        return []  # there is none that could be read
    if len(text) > FILE_BYTES_MAX:
        return []
    lines = (line.strip() for line in text.decode(errors="replace").splitlines())
    found = (_for_library(line) for line in lines if line and not line.startswith("#"))
    return [line for line in found if line]


def _is_writable_by_others(path: Path) -> bool:
    """Whether somebody else owns or can change a file or folder."""
    seen = path.stat()
    return seen.st_uid not in {0, os.getuid()} or bool(seen.st_mode & _GROUP_OR_OTHERS_WRITE)


def _for_library(line: str) -> str:
    """Return a line as the library takes it; empty if OpenSSH would not honour it."""
    if line.startswith(("ssh-", "ecdsa-", "sk-")):
        return line
    split = _split_options(line)
    if split is None:
        return ""
    options, key = split
    refused: dict[str, bool] = {}
    kept = []
    for option in options:
        name, _, value = option.partition("=")
        name = name.lower()
        if name == "restrict":
            refused.update(dict.fromkeys(_RESTRICTED.values(), True))
        elif name in _RESTRICTED:
            refused[_RESTRICTED[name]] = False
        elif name in _REFUSALS:
            refused[_REFUSALS[name]] = True
        elif name == "command" and value:
            kept.append(_quoted(FORCED, value))
        elif name in {"from", "permitopen"}:
            kept.append(_quoted(name, value))
        elif name != "environment":  # which OpenSSH's server ignores unless it is told otherwise
            return ""
    kept += [name for name, is_refused in refused.items() if is_refused]
    return f"{','.join(kept)} {key}" if kept else key


def _split_options(line: str) -> tuple[list[str], str] | None:
    r"""Split a line into its options, without quotes, and the rest; None if a quote stays open.

    A backslash means something before a quote only: `command="printf \"%s\\n\" x"` holds `\\n`.
    """
    options, option, quoted, at = [], "", False, 0
    while at < len(line) and (quoted or line[at] not in " \t"):
        one = line[at]
        if one == "\\" and line[at + 1 : at + 2] == '"':
            option += '"'
            at += 1
        elif one == '"':
            quoted = not quoted
        elif one == "," and not quoted:
            options.append(option)
            option = ""
        else:
            option += one
        at += 1
    if quoted or len(options) >= OPTIONS_MAX:
        return None
    return [*options, option], line[at:].strip()


def _quoted(name: str, value: str) -> str:
    """Return an option as the library reads it, to which every backslash is one too many."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}="{escaped}"'
