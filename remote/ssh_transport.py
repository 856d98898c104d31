"""Sets up paramiko's sockets, keys, transports and channels for `remote.ssh` and `remote.sync`."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote import keys
from remote.errors import RemoteError, Unreachable, shorten

if TYPE_CHECKING:
    import paramiko

FAST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
SIGNATURES = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}
"""How a key of a type is asked for where that is not the type's own name (RFC 8332)."""
READ_BYTES = 1 << 18
PACKET_BYTES = (32 << 10) - 64
"""What SSH servers accept in one packet of a channel, less what paramiko keeps free in each."""
LOG_NAME = "qft.ssh"


def make_transport(kind: str, sock: socket.socket, **options: Any) -> paramiko.Transport:
    """Create a transport that prefers the host key of one type, and ciphers that authenticate.

    With other ciphers a separate checksum in Python halves the speed.
    """
    import paramiko

    transport = paramiko.Transport(sock, **options)
    security = transport.get_security_options()
    security.ciphers = sorted(security.ciphers, key=lambda name: name not in FAST_CIPHERS)
    prefer_key_type(transport, kind)
    return transport


def prefer_key_type(transport: paramiko.Transport, kind: str) -> None:
    """Ask for the host key of one type first: a server has one of each type and presents one."""
    security, of_it = transport.get_security_options(), SIGNATURES.get(kind, (kind,))
    security.key_types = sorted(security.key_types, key=lambda name: name not in of_it)


def open_socket(address: str, port: int, *, timeout_s: float, dead_after_s: int) -> socket.socket:
    """Open a TCP connection on which the kernel notices a peer that fell silent."""
    try:
        sock = socket.create_connection((address, port), timeout=timeout_s)
    except ValueError as error:  # a name with an empty or endless part, which IDNA refuses
        raise Unreachable(f"`{shorten(address)}` is no host name: {error}") from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {
        "TCP_KEEPIDLE": max(dead_after_s // 3, 1),
        "TCP_KEEPINTVL": max(dead_after_s // 6, 1),
        "TCP_KEEPCNT": 4,
        "TCP_USER_TIMEOUT": dead_after_s * 1000,  # unacknowledged data; Linux only
    }
    for name, value in wanted.items():
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock


def load_host_key(line: str) -> paramiko.PKey:
    """Parse a pinned host key line; raises `RemoteError` for a type that cannot be checked."""
    import paramiko
    from cryptography.exceptions import UnsupportedAlgorithm
    from paramiko.pkey import UnknownKeyType

    kind, blob = keys.parse_line(line)
    try:
        return paramiko.PKey.from_type_string(kind, blob)
    except (paramiko.SSHException, UnknownKeyType, UnsupportedAlgorithm, ValueError) as error:
        raise RemoteError(
            f"the pinned host key of type {kind} cannot be used: {error!r}",
            hint="pin the host's ed25519 key: /etc/ssh/ssh_host_ed25519_key.pub there",
        ) from error


def load_private_key(path: Path) -> paramiko.PKey:
    """Load a private key of any type and format; raises `RemoteError` that says what is wrong."""
    import paramiko
    from cryptography.exceptions import UnsupportedAlgorithm
    from paramiko.pkey import UnknownKeyType

    try:
        return paramiko.PKey.from_path(path)
    except OSError as error:
        raise RemoteError(f"the private key {path} cannot be read: {error.strerror}") from error
    except (paramiko.SSHException, UnknownKeyType, UnsupportedAlgorithm, ValueError) as error:
        raise RemoteError(
            f"{path} is not a private key that can be read without a password: {error}",
            hint="name another key file, or make one with `ssh-keygen -t ed25519 -N ''`",
        ) from error


@contextmanager
def reply_deadline(channel: paramiko.Channel, timeout_s: float) -> Iterator[None]:
    """Close the channel and raise `TimeoutError` if the server does not reply in time.

    paramiko itself waits for the reply for ever.
    """
    late = threading.Event()

    def give_up() -> None:
        late.set()
        with suppress(EOFError, OSError):  # a dead connection closes it as well
            channel.close()

    timer = threading.Timer(timeout_s, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        if late.is_set():
            raise TimeoutError(f"the server does not answer within {timeout_s:g} s") from error
        raise
    finally:
        timer.cancel()


class StdioThreads:
    """Two threads that feed a channel's stdin and drain its stderr, so that neither blocks."""

    def __init__(
        self,
        channel: paramiko.Channel,
        stdin: str | bytes | Iterable[bytes] | None,
        limit_bytes: int,
    ) -> None:
        self._channel = channel
        whole = stdin.encode() if isinstance(stdin, str) else stdin or b""
        self._stdin = [whole] if isinstance(whole, bytes) else whole
        self._limit_bytes = limit_bytes
        self._stderr = bytearray()
        self._drainer = threading.Thread(target=self._drain, daemon=True)
        self._drainer.start()
        threading.Thread(target=self._feed, daemon=True).start()

    def _feed(self) -> None:
        try:
            for part in self._stdin:  # a part may be waited for
                send_all(self._channel, part)
            self._channel.shutdown_write()
        except (OSError, EOFError):
            return  # the command ended without reading all of it; its exit code says why

    def _drain(self) -> None:
        try:
            while data := self._channel.recv_stderr(READ_BYTES):
                room = max(self._limit_bytes - len(self._stderr), 0)
                self._stderr += data[:room]
        except OSError:
            return  # the reader of stdout meets the same error and reports it

    def join(self, timeout_s: float) -> bytes:
        """Wait for the end of the command's stderr and return it."""
        self._drainer.join(timeout_s)
        return bytes(self._stderr)


def send_all(channel: paramiko.Channel, data: bytes | memoryview, *, head: bytes = b"") -> None:
    """Send `head` and all of `data`, in packets as long as may be, and copy each byte once.

    paramiko's `sendall` copies the rest of the data for every packet; each packet costs the same
    time in Python, however short it is. Raises `EOFError` if the other side takes no more, and
    `OSError` as the channel does.
    """
    rest = memoryview(data)
    while head or rest:
        sent = channel.send(head + rest[: PACKET_BYTES - len(head)])
        if not sent:
            raise EOFError("the other side takes no more")
        head, rest = head[sent:], rest[max(sent - len(head), 0) :]


def is_disconnect(error: BaseException, transport: paramiko.Transport) -> bool:
    """Whether an error means that the connection is cut, rather than that a file is missing."""
    if isinstance(error, OSError) and error.errno is None and transport.is_active():
        return isinstance(error, TimeoutError) or str(error) == "Socket is closed"
    return (
        not transport.is_active()
        or not isinstance(error, OSError)
        or isinstance(error, ConnectionError)
    )


def silenced_log_name() -> str:
    """Return the name of a silent logger for paramiko, whose tracebacks would go to stderr."""
    logger = logging.getLogger(LOG_NAME)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return LOG_NAME
