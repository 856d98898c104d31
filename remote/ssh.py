"""Connects to a host over SSH with a pinned host key, and runs commands there.

The key is compared before anything is sent; neither the user's `known_hosts` nor an agent nor any
other key of the user takes part, and a host without a pinned key is not connected to at all.
"""

from __future__ import annotations

import shlex
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from remote import keys
from remote.errors import (
    AuthRefused,
    CommandFailed,
    CommandResult,
    HostKeyMismatch,
    RemoteError,
    TimedOut,
    Unreachable,
    Untrusted,
    megabytes,
    shorten,
)
from remote.login_shell import MARK, OutputAfterMark, explain_early_end, wrap_for_any_shell
from remote.ssh_transport import (
    READ_BYTES,
    StdioThreads,
    is_disconnect,
    load_host_key,
    load_private_key,
    make_transport,
    open_socket,
    prefer_key_type,
    reply_deadline,
    silenced_log_name,
)

if TYPE_CHECKING:
    import paramiko

ANSWER_BYTES_MAX = 64 << 20
LATE_S = 0.5
"""How long after its channels a dead connection may still call itself alive."""
KILLED = (-1, 129, 137, 143)
"""Exit codes of a shell that a signal ended: a machine that goes down ends all of them."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """Where to connect, as whom, and which key must answer there."""

    address: str
    port: int = 22
    user: str
    key_path: Path
    """The private key to log in with, without a password, mode 0600."""
    host_key: str
    """The pinned public line (`ssh-ed25519 AAAA…`) that the host must present."""
    next_host_key: str = ""
    """The line that is about to replace it: while that is not empty, either is accepted."""

    def __str__(self) -> str:
        return f"{self.user}@{self.address}:{self.port}"


def connect(
    host: Host, *, timeout_s: float = 20.0, keepalive_s: int = 15, dead_after_s: int = 45
) -> SshConnection:
    """Open a connection to `host`.

    A silent peer is given up after `dead_after_s`, so that nothing hangs on a machine that is gone.
    The `host` of the connection has the key pinned that was presented, and no other.
    Raises `Unreachable` (refused, time-out, reset, no such name), `HostKeyMismatch`, `AuthRefused`,
    and `RemoteError` if the key file or the pinned key cannot be read.
    """
    if host.next_host_key:
        present = replace(host, next_host_key="")
        following = replace(present, host_key=host.next_host_key)
        again = partial(
            connect, timeout_s=timeout_s, keepalive_s=keepalive_s, dead_after_s=dead_after_s
        )
        try:
            return again(following)
        except HostKeyMismatch:
            return again(present)
    import fabric
    import paramiko

    pinned = load_host_key(host.host_key)
    private_key = load_private_key(host.key_path)
    fabric_connection = fabric.Connection(
        host=host.address,
        user=host.user,
        port=host.port,
        # Lazy, and with an empty one given: no settings of the user are read, of any tool.
        config=fabric.Config(ssh_config=paramiko.SSHConfig(), lazy=True),
    )
    client: paramiko.SSHClient = fabric_connection.client
    client.set_log_channel(silenced_log_name())
    # Fabric would accept any host; from here on only the pinned key is.
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    name = host.address if host.port == 22 else f"[{host.address}]:{host.port}"
    client.get_host_keys().add(name, pinned.get_name(), pinned)
    with translate_login_errors(host, client), translate_network_errors(host):
        sock = open_socket(host.address, host.port, timeout_s=timeout_s, dead_after_s=dead_after_s)
        try:
            fabric_connection.connect_kwargs = {
                "sock": sock,
                "pkey": private_key,
                "allow_agent": False,
                "look_for_keys": False,
                "timeout": timeout_s,
                "banner_timeout": timeout_s,
                "auth_timeout": timeout_s,
                "channel_timeout": timeout_s,
                "transport_factory": partial(make_transport, pinned.get_name()),
            }
            fabric_connection.open()
        except BaseException:
            fabric_connection.close()
            sock.close()
            raise
        transport: paramiko.Transport = fabric_connection.transport
        transport.set_keepalive(keepalive_s)
        return SshConnection(host=host, fabric_connection=fabric_connection, transport=transport)


@dataclass(frozen=True, kw_only=True)
class SshConnection:
    """An open connection; a context manager. Several threads may use it at once."""

    host: Host
    fabric_connection: Any
    """The fabric connection that owns the socket."""
    transport: paramiko.Transport

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout_s: float = 60.0,
        check: bool = True,
        input: str | bytes | None = None,  # noqa: A002  (the contract's and subprocess's name)
    ) -> CommandResult:
        """Run `command` with `sh` in the home directory, pass it `input`, and wait.

        A sequence is quoted word by word. Raises `CommandFailed` on another exit code than 0 (if
        `check`), `TimedOut` if it has not ended after `timeout_s` (it may still run over there),
        `Unreachable` if the connection is cut, `Untrusted` if it prints more than a machine should,
        and `LoginShellEnded` if the account's login shell ran no command.
        """
        stdout: list[bytes] = []
        line = command if isinstance(command, str) else shlex.join(command)
        code, stderr = self.stream(line, stdout.append, timeout_s=timeout_s, input=input)
        result = CommandResult(
            exit_code=code,
            stdout=b"".join(stdout).decode("utf-8", "replace"),
            stderr=stderr.decode("utf-8", "replace"),
        )
        if check and result.exit_code != 0:
            raise CommandFailed(line, result)
        return result

    def stream(
        self,
        command: str,
        on_output: Callable[[bytes], object],
        *,
        timeout_s: float,
        limit_bytes: int = ANSWER_BYTES_MAX,
        input: str | bytes | Iterable[bytes] | None = None,  # noqa: A002
    ) -> tuple[int, bytes]:
        """Run `command`, pass its output on as it comes; return exit code and stderr.

        Several parts of `input` are sent as they come: waiting for one delays nothing else. Raises
        as `run` does, except that the exit code is not judged.
        """
        ends_at = time.monotonic() + timeout_s
        with translate_network_errors(self.host, self.transport):
            channel = self.transport.open_session(timeout=max(timeout_s, 1.0))
            with channel:
                channel.settimeout(timeout_s)
                with reply_deadline(channel, max(timeout_s, 1.0)):
                    channel.exec_command(wrap_for_any_shell(command))
                output = OutputAfterMark(MARK, on_output)
                stdio = StdioThreads(channel, input, limit_bytes)
                got = 0
                try:
                    while data := channel.recv(READ_BYTES):
                        got += len(data)
                        if got > limit_bytes:
                            raise Untrusted(
                                f"{self.host} answered `{shorten(command)}` with more than"
                                f" {megabytes(limit_bytes)}: given up"
                            )
                        output.feed(data)
                        channel.settimeout(max(ends_at - time.monotonic(), 0.0))
                    ended = channel.status_event.wait(max(ends_at - time.monotonic(), 0.0))
                except TimeoutError:
                    ended = False
                if not ended and self.transport.is_active():
                    raise TimedOut(
                        f"`{shorten(command)}` on {self.host} did not end within {timeout_s:g} s"
                        + ("" if output.mark_seen else ": its login shell did not get to it"),
                        hint="it may still be running there; look before repeating it"
                        if output.mark_seen
                        else "does a start-up file there, such as ~/.bashrc, wait for something?",
                    )
                stderr = stdio.join(max(ends_at - time.monotonic(), 1.0))
                code = channel.recv_exit_status() if ended else -1
        if code == -1:  # no exit code: a signal, or a cut, which the library admits a moment late
            self.transport.join(LATE_S)
        if code == -1 and not self.transport.is_active():
            raise Unreachable(f"the connection to {self.host} was cut during `{shorten(command)}`")
        if not output.mark_seen and code in KILLED:
            raise Unreachable(f"{self.host} ended its login shell before `{shorten(command)}`")
        if not output.mark_seen:
            raise explain_early_end(str(self.host), code, output.before, stderr)
        return code, stderr

    def shell(self) -> int:
        """Run an interactive login shell there on this terminal; return its exit code."""
        return int(self.fabric_connection.shell(hide=False, warn=True).exited)

    @property
    def alive(self) -> bool:
        """Whether the connection is open as far as this side knows; a cut may show later."""
        return bool(self.transport.is_active())

    def close(self) -> None:
        """Close the connection; what runs detached over there goes on."""
        self.fabric_connection.close()
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def scan_host_key(
    address: str, port: int = 22, *, timeout_s: float = 20.0, pinned: str = ""
) -> str:
    """Return the host key line that `address` presents, for a human to confirm; send nothing.

    A server has a key of each type and shows one: with `pinned`, a public line, the one of its type
    is asked for first, as `connect` does.

    Whoever sits in between could answer too: never pin the result without asking (show
    `keys.fingerprint` of it). Raises `Unreachable`.
    """
    import paramiko

    host = Host(address=address, port=port, user="nobody", key_path=Path(), host_key="")
    with translate_network_errors(host):
        sock = open_socket(address, port, timeout_s=timeout_s, dead_after_s=int(timeout_s) + 1)
        transport = paramiko.Transport(sock)
        try:
            transport.set_log_channel(silenced_log_name())
            transport.banner_timeout = timeout_s
            if pinned:
                prefer_key_type(transport, keys.parse_line(pinned)[0])
            transport.start_client(timeout=timeout_s)
            key = transport.get_remote_server_key()
        finally:
            transport.close()
            sock.close()
    return f"{key.get_name()} {key.get_base64()}"


@contextmanager
def translate_login_errors(host: Host, client: paramiko.SSHClient) -> Iterator[None]:
    """Translate the errors of a login: `HostKeyMismatch`, `AuthRefused`.

    A login that was cut or never answered is `Unreachable`: machines do that while they boot.
    """
    import paramiko

    try:
        yield
    except paramiko.BadHostKeyException as error:
        expected = keys.fingerprint(host.host_key)
        got = keys.fingerprint(f"{error.key.get_name()} {error.key.get_base64()}")
        raise HostKeyMismatch(
            f"the machine at {host.address}:{host.port} is not the one that was pinned:"
            f"\n  expected {expected}\n  got      {got}\nnothing was sent to it",
            expected=expected,
            got=got,
            hint="the address may have been given to another machine, or somebody is in between;"
            f" compare with `ssh-keyscan -p {host.port} {host.address} | ssh-keygen -lf -`"
            " from a network you trust",
        ) from error
    except paramiko.AuthenticationException as error:
        transport = client.get_transport()
        if "timeout" in str(error) or transport is None or not transport.is_active():
            raise Unreachable(f"{host} broke off the login: {error}") from error
        raise AuthRefused(
            f"{host.address}:{host.port} does not accept the key {host.key_path}"
            f" for user `{host.user}`: {error}",
            hint=f"add {host.key_path}.pub to ~{host.user}/.ssh/authorized_keys there",
        ) from error


@contextmanager
def translate_network_errors(
    host: Host, transport: paramiko.Transport | None = None
) -> Iterator[None]:
    """Translate the network's errors to `Unreachable`; all others pass as they are."""
    import paramiko

    try:
        yield
    except (RemoteError, paramiko.BadHostKeyException, paramiko.AuthenticationException):
        raise
    except (EOFError, paramiko.SSHException, OSError) as error:
        if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
            raise RemoteError(
                f"{host} speaks SSH, and has no method or key type in common with us: {error}",
                hint="update the SSH server there, or pin its ed25519 key",
            ) from error
        if transport is not None and not is_disconnect(error, transport):
            raise
        reason = str(error) or type(error).__name__
        if isinstance(error, paramiko.ChannelException) and transport and transport.is_active():
            raise Unreachable(
                f"{host} opens no further session on this connection: {reason}",
                hint="a sync needs several at once: raise `MaxSessions` in sshd_config there to "
                "10, which is its default",
            ) from error
        raise explain_no_connection(host, error, reason) from error


def explain_no_connection(host: Host, error: Exception, reason: str) -> Unreachable:
    """Return the error for a connection that could not be opened, and where to look."""
    if isinstance(error, socket.gaierror):
        return Unreachable(
            f"no connection to {host}: the name `{shorten(host.address)}` is not known ({reason})",
            hint="check the name; `vm.ssh.host` also takes an address",
        )
    if "banner" in reason or reason == "No existing session":  # so the library says of a greeting
        return Unreachable(
            f"no connection to {host}: what answers there does not speak SSH: it is silent,"
            " hangs up, or says something else",
            hint="is that the port of its SSH server, and is `sshd` well there?",
        )
    return Unreachable(
        f"no connection to {host}: {reason}",
        hint="is the machine running, and does its firewall admit this address?",
    )
