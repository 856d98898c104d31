"""Reads and writes ranges of files over SFTP (version 3), all requests of a chunk pipelined.

paramiko's own client drops the answers of pipelined writes, so that a full disk goes unnoticed, and
reads ahead in a thread that prints a traceback when the connection is cut. Protocol: the Internet
draft draft-ietf-secsh-filexfer-02, which OpenSSH and asyncssh implement.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from remote.errors import NoSftp, shorten
from remote.ssh_transport import reply_deadline, send_all

if TYPE_CHECKING:
    import paramiko

INIT, VERSION, OPEN, CLOSE, READ, WRITE = 1, 2, 3, 4, 5, 6
STATUS, HANDLE, DATA = 101, 102, 103
OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED = 0, 1, 2, 3
FLAG_READ, FLAG_WRITE = 1, 2

BLOCK_BYTES = 32 << 10
"""What every server must accept in one request."""
ANSWER_BYTES_MAX = 256 << 10
WINDOW_BYTES = 8 << 20
"""What the server may send ahead of our reading: 160 MB/s per channel at 50 ms."""
RECEIVE_BYTES = 1 << 18
SHOWN_BYTES = 200
ENDING_S = 1.0
SUBSYSTEM = "put `Subsystem sftp internal-sftp` into /etc/ssh/sshd_config there, and restart sshd"


@dataclass(kw_only=True)
class Sftp:
    """One SFTP channel, used by one thread. Every method may raise `OSError` and `EOFError`."""

    channel: paramiko.Channel
    on_bytes: Callable[[int], None] = lambda _count: None
    """Called with the bytes of every part that arrived or was acknowledged; may raise."""
    _buffer: bytearray = field(default_factory=bytearray)
    _head: bytearray = field(default_factory=bytearray)
    """The first bytes that came, for messages."""
    _number: int = 0
    _open: tuple[tuple[str, int], bytes] = (("", 0), b"")
    """The file that is open, how, and its handle."""

    @classmethod
    def open(cls, transport: paramiko.Transport, *, silence_s: float) -> Self:
        """Open one more channel; a server that sends nothing for `silence_s` is a time-out.

        Raises `NoSftp` if the server has no SFTP, or starts something that does not speak it.
        """
        from paramiko import SSHException

        channel = transport.open_session(window_size=WINDOW_BYTES, timeout=silence_s)
        channel.settimeout(silence_s)
        sftp = cls(channel=channel)
        try:
            with reply_deadline(channel, silence_s):
                channel.invoke_subsystem("sftp")
            send_all(channel, packet(INIT, struct.pack(">I", 3)))
            kind, _ = sftp._receive()
        except TimeoutError:
            raise
        except (EOFError, OSError, SSHException) as error:
            if transport.is_active():
                message, hint = explain_no_sftp(channel, bytes(sftp._head))
                raise NoSftp(message, hint=hint) from error
            raise
        if kind != VERSION:
            raise OSError(errno.EPROTO, f"the SFTP server greets with packet type {kind}")
        return sftp

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Write `data` into an existing file; returns when all of it is acknowledged."""
        handle = self._handle(path, FLAG_WRITE)
        view = memoryview(data)
        requests = []
        for start in range(0, len(data), BLOCK_BYTES):
            block = view[start : start + BLOCK_BYTES]
            place = struct.pack(">QI", offset + start, len(block))
            requests.append(self._request(WRITE, string(handle), place, block))
        send_all(self.channel, b"".join(requests))
        answers = []
        for _ in requests:  # all of them: the next call finds none
            answers.append(self._receive())
            self.on_bytes(min(BLOCK_BYTES, len(data)))
        for kind, body in answers:
            if status_of(kind, body) != OK:
                raise_status(kind, body, path)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Read `size` bytes; shorter only if the file ends before."""
        handle = self._handle(path, FLAG_READ)
        result = bytearray(size)
        end = size
        pending: dict[int, tuple[int, int]] = {}
        failures = []

        def request_range(start: int, length: int) -> bytes:
            place = struct.pack(">QI", offset + start, length)
            request = self._request(READ, string(handle), place)
            pending[self._number] = (start, length)
            return request

        spans = range(0, size, BLOCK_BYTES)
        send_all(
            self.channel, b"".join(request_range(at, min(BLOCK_BYTES, size - at)) for at in spans)
        )
        while pending:
            kind, body = self._receive()
            if request_id(body) not in pending:
                raise OSError(errno.EPROTO, "the SFTP server answers what was not asked", path)
            start, length = pending.pop(request_id(body))
            data = body[8:][:length] if kind == DATA else b""
            result[start : start + len(data)] = data
            if 0 < len(data) < length:  # a server may give less than was asked for
                send_all(self.channel, request_range(start + len(data), length - len(data)))
            elif not data:
                end = min(end, start)
                if status_of(kind, body) != EOF:
                    failures.append((kind, body))
        for kind, body in failures:
            raise_status(kind, body, path)
        return bytes(result[:end])

    def close(self) -> None:
        """Close the channel; the connection stays."""
        self.channel.close()

    def _handle(self, path: str, flags: int) -> bytes:
        """Return the handle of a file, open already if it was used last, as by most chunks."""
        if (path, flags) == self._open[0]:
            return self._open[1]
        name = path.encode("utf-8", "surrogateescape")
        requests = self._request(OPEN, string(name), struct.pack(">II", flags, 0))
        closing = bool(self._open[1])
        if closing:
            requests = self._request(CLOSE, string(self._open[1])) + requests
        send_all(self.channel, requests)
        old, self._open = self._open, (("", 0), b"")
        if closing:
            kind, body = self._receive()
            if status_of(kind, body) != OK:
                self._receive()
                raise_status(kind, body, old[0][0])
        kind, body = self._receive()
        if kind != HANDLE:
            raise_status(kind, body, path)
        self._open = ((path, flags), bytes(body[8:]))
        return self._open[1]

    def _request(self, kind: int, *parts: bytes | memoryview) -> bytes:
        """Build the next request."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        return packet(kind, struct.pack(">I", self._number), *parts)

    def _receive(self) -> tuple[int, bytes]:
        """Read one packet: its type and its body."""
        length = int.from_bytes(self._take(4), "big")
        if not 1 <= length <= ANSWER_BYTES_MAX:
            raise OSError(errno.EPROTO, f"the SFTP server sends a packet of {length} bytes")
        body = self._take(length)
        return body[0], body[1:]

    def _take(self, size: int) -> bytes:
        """Read exactly `size` bytes."""
        while len(self._buffer) < size:
            data = self.channel.recv(RECEIVE_BYTES)
            if not data:
                raise EOFError
            self._buffer += data
            self.on_bytes(len(data))
            if len(self._head) < SHOWN_BYTES:
                self._head += data[:SHOWN_BYTES]
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def explain_no_sftp(channel: paramiko.Channel, head: bytes) -> tuple[str, str]:
    """Return why SFTP did not begin, and a hint: refused, ended, or another protocol."""
    channel.status_event.wait(ENDING_S)
    code = channel.exit_status
    output = head
    if channel.recv_stderr_ready():
        output += channel.recv_stderr(SHOWN_BYTES)
    text = shorten(output.decode("utf-8", "replace"), SHOWN_BYTES)
    if head:
        return (
            f"SFTP there begins with text in the place of its protocol: {text}",
            f"a start-up file such as ~/.bashrc prints it: silence it, or {SUBSYSTEM}",
        )
    if code == -1:
        return (
            "the server has no SFTP, so no file can be sent to it or fetched",
            f"let its owner {SUBSYSTEM}",
        )
    return (
        f"the SFTP program there ended with exit code {code} before it began"
        + (f": {text}" if text else ""),
        f"its path may be wrong, or a start-up file of the account ends it: {SUBSYSTEM}",
    )


def packet(kind: int, *parts: bytes | memoryview) -> bytes:
    """Encode a packet: length, type, body."""
    length = 1 + sum(len(part) for part in parts)
    return b"".join((struct.pack(">IB", length, kind), *parts))


def string(data: bytes) -> bytes:
    """Encode a string: length, bytes."""
    return struct.pack(">I", len(data)) + data


def request_id(body: bytes) -> int:
    """Return the id of the request that an answer belongs to."""
    return int.from_bytes(body[:4], "big")


def status_of(kind: int, body: bytes) -> int:
    """Return the code of a status; -1 for an answer of another type."""
    return int.from_bytes(body[4:8], "big") if kind == STATUS else -1


def raise_status(kind: int, body: bytes, path: str) -> None:
    """Raise the `OSError` that the server's status stands for."""
    code = status_of(kind, body)
    if code == NO_SUCH_FILE:
        raise FileNotFoundError(errno.ENOENT, "no such file over there", path)
    if code == PERMISSION_DENIED:
        raise PermissionError(errno.EACCES, "not permitted over there", path)
    length = int.from_bytes(body[8:12], "big")
    message = body[12 : 12 + min(length, 200)].decode("utf-8", "replace")
    raise OSError(errno.EIO, message or f"SFTP answers with type {kind}, code {code}", path)
