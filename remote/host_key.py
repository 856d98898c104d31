"""Replaces the host key of a machine over a connection that has its present key pinned.

A machine whose first-boot data others can read has a host key that others have. `make_host_key`
makes a new one there, whose private half never leaves the machine; the caller writes its public
line down, and accepts both from then on; `use_host_key` puts it into use, and returns when the
machine presents it. Each may be repeated after a cut at any point.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files

from remote import keys
from remote.errors import Garbled, HostKeyMismatch, RemoteError, Unreachable, Untrusted
from remote.ssh import SshConnection, connect

KIND = "ssh-ed25519"
LINE_CHARS_MAX = 200
SCRIPT_S = 60.0
PRESENTED_S = 30.0
"""How long a server may take to present a key that was put into use."""
POLL_S = 0.5
RUN = (
    "script=$1; shift; key=${QFT_SSH_HOST_KEY:-/etc/ssh/ssh_host_ed25519_key};"
    ' if [ -w "${key%/*}" ]; then exec sh -c "$script" host-key "$key" "$@";'
    ' else exec sudo -n sh -c "$script" host-key "$key" "$@"; fi'
)
"""Root where the keys are root's. A machine that a computer plays names a key of its own."""


def make_host_key(connection: SshConnection, *, expected: str = "") -> str:
    """Make the next host key there, unless there is one; return its public line.

    `expected` is the line of a change that was cut: if that key is in use already, its line is
    returned. Raises `Garbled` for an answer that is no key, `Untrusted` for one of another kind or
    for that which is pinned, and whatever `SshConnection.run` does.
    """
    line = _run(connection, "make", expected).strip()
    if len(line) > LINE_CHARS_MAX or "\n" in line:
        raise Untrusted(f"{connection.host} answers with no host key: it is too long")
    try:
        made = keys.plain_line(line)
    except RemoteError as error:
        # As a machine that is taken away meanwhile may do: half a line, or none.
        raise Garbled(f"{connection.host} answers with no host key") from error
    old = {keys.plain_line(connection.host.host_key)} - {expected}
    if not made.startswith(f"{KIND} ") or made in old:
        raise Untrusted(f"{connection.host} answers with a host key that is not new")
    return made


def use_host_key(
    connection: SshConnection,
    line: str,
    *,
    reconnect: Callable[..., SshConnection] = connect,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> SshConnection:
    """Put the key with that public line into use; return a connection that has it alone pinned.

    The connection that was given stays open. Raises `RemoteError` if the machine goes on presenting
    its old key for half a minute, `HostKeyMismatch` if it presents a third one, and whatever
    `SshConnection.run` does.
    """
    _run(connection, "use", line)
    host = replace(connection.host, host_key=line)
    old = keys.fingerprint(connection.host.host_key)
    ends_s = clock() + PRESENTED_S
    while True:
        late = clock() >= ends_s
        try:
            return reconnect(host)
        except HostKeyMismatch as error:
            if error.got != old:
                raise
            if late:
                raise RemoteError(f"the SSH server of {host} does not take a new key") from error
        except Unreachable:  # the server is starting again
            if late:
                raise
        sleep(POLL_S)


def _run(connection: SshConnection, step: str, expected: str) -> str:
    script = (files("remote.on_machine") / "host_key.sh").read_text(encoding="utf-8")
    blob = keys.plain_line(expected).split()[1] if expected else ""
    argv = ["sh", "-c", RUN, "host-key", script, step, blob]
    return connection.run(argv, timeout_s=SCRIPT_S).stdout
