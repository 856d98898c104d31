"""Reads and writes ranges of files over SFTP (version 3), all requests of a chunk pipelined.

paramiko's own client drops the answers of pipelined writes, so that a full disk goes unnoticed, and
reads ahead in a thread that prints a traceback when the connection is cut. Protocol: the Internet
draft draft-ietf-secsh-filexfer-02, which OpenSSH and asyncssh implement.
"""

from __future__ import annotations

import errno
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from remote.errors import NoSftp, shorten
from remote.ssh_transport import reply_deadline, send_all

if TYPE_CHECKING:
    import paramiko

INIT, VERSION, OPEN, CLOSE, READ, WRITE, EXTENDED = 1, 2, 3, 4, 5, 6, 200
STATUS, HANDLE, DATA, EXTENDED_REPLY = 101, 102, 103, 201
OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED = 0, 1, 2, 3
FLAG_READ, FLAG_WRITE = 1, 2

LIMITS = b"limits@openssh.com"
"""The extension by which a server says how much it takes in one request."""

BLOCK_BYTES = 32 << 10
"""What every server must accept in one request."""
LONG_BLOCK_BYTES = 255 << 10
"""What we send in one request if the server takes it (OpenSSH's limit) and the line is quick: an
answer costs as much as the sending of 32 KB."""
QUICK_S = 10.0
"""How soon a write must be acknowledged for its line to be quick: its long blocks are acknowledged
every few seconds too, far from looking like silence."""
READ_BYTES = 64 << 10
"""What we ask for in one request: OpenSSH gives so much, others less, and are asked again."""
ANSWER_BYTES_MAX = 256 << 10
WINDOW_BYTES = 8 << 20
"""What the server may send ahead of our reading: 160 MB/s per channel at 50 ms."""
PACKET_BYTES_MAX = 128 << 10
"""The longest packet of SSH that we accept: four times the usual one costs a quarter of the time,
since each passes through Python."""
RECEIVE_BYTES = 1 << 18
SHOWN_BYTES = 200
ENDING_S = 1.0
SUBSYSTEM = "put `Subsystem sftp internal-sftp` into /etc/ssh/sshd_config there, and restart sshd"


WriteAt = Callable[[memoryview, int], None]
"""Writes bytes at an offset of a file."""


@dataclass(kw_only=True)
class Sftp:
    """One SFTP channel, used by one thread. Every method may raise `OSError` and `EOFError`."""

    channel: paramiko.Channel
    on_bytes: Callable[[int], None] = lambda _count: None
    """Called with the bytes of every part that arrived or was acknowledged; may raise."""
    _buffer: bytearray = field(default_factory=bytearray)
    _head: bytearray = field(default_factory=bytearray)
    """The first bytes that came, for messages."""
    clock: Callable[[], float] = time.monotonic
    """Seconds, for how quick the line is."""
    _has_limits: bool = False
    """Whether the server can say its limits and was not asked yet."""
    _block_bytes_max: int = BLOCK_BYTES
    _block_bytes: int = BLOCK_BYTES
    """What the next request to write takes with it."""
    _number: int = 0
    _answers: dict[int, tuple[int, bytes] | None] = field(default_factory=dict)
    """By the number of its request: what came, None while it is outstanding."""
    _open: tuple[tuple[str, int], bytes] = (("", 0), b"")
    """The file that is open, how, and its handle."""

    @classmethod
    def open(cls, transport: paramiko.Transport, *, silence_s: float) -> Self:
        """Open one more channel; a server that sends nothing for `silence_s` is a time-out.

        Raises `NoSftp` if the server has no SFTP, or starts something that does not speak it.
        """
        from paramiko import SSHException

        channel = transport.open_session(
            window_size=WINDOW_BYTES, max_packet_size=PACKET_BYTES_MAX, timeout=silence_s
        )
        channel.settimeout(silence_s)
        sftp = cls(channel=channel)
        try:
            with reply_deadline(channel, silence_s):
                channel.invoke_subsystem("sftp")
            send_all(channel, packet(INIT, struct.pack(">I", 3)))
            kind, body = sftp._receive()
        except TimeoutError:
            raise
        except (EOFError, OSError, SSHException) as error:
            if transport.is_active():
                message, hint = explain_no_sftp(channel, bytes(sftp._head))
                raise NoSftp(message, hint=hint) from error
            raise
        if kind != VERSION:
            raise OSError(errno.EPROTO, f"the SFTP server greets with packet type {kind}")
        sftp._has_limits = LIMITS in body
        return sftp

    def write(self, path: str, offset: int, data: bytes) -> Callable[[], None]:
        """Send `data` for an existing file; the result waits until all of it is acknowledged.

        More may be sent before that, so that the connection never lies idle for a round trip.
        """
        handle = self._handle(path, FLAG_WRITE)
        view = memoryview(data)
        began_s = self.clock()
        sent: list[tuple[int, int]] = []
        for start in range(0, len(data), self._block_bytes):
            block = view[start : start + self._block_bytes]
            place = struct.pack(">QI", offset + start, len(block))
            head = self._request(WRITE, string(handle), place, followed_by=len(block))
            send_all(self.channel, block, head=head)
            sent.append((self._number, len(block)))

        def wait() -> None:
            for number, size in sent:
                kind, body = self._answer(number)
                self.on_bytes(size)
                if status_of(kind, body) != OK:
                    raise_status(kind, body, path)
            is_quick = self.clock() - began_s <= QUICK_S
            self._block_bytes = self._block_bytes_max if is_quick else BLOCK_BYTES

        return wait

    def read(self, path: str, offset: int, size: int) -> Callable[[WriteAt], int]:
        """Ask for `size` bytes; the result waits for them and passes them on, each with its offset.

        It returns how many came: fewer than `size` only if the file ends before. More may be asked
        for before that, as in `write`.
        """
        handle = self._handle(path, FLAG_READ)

        pending: deque[tuple[int, int, int]] = deque()

        def request_range(start: int, length: int) -> bytes:
            place = struct.pack(">QI", offset + start, length)
            request = self._request(READ, string(handle), place)
            pending.append((self._number, start, length))
            return request

        spans = range(0, size, READ_BYTES)
        send_all(
            self.channel, b"".join(request_range(at, min(READ_BYTES, size - at)) for at in spans)
        )

        def wait(write_at: WriteAt) -> int:
            end = size
            while pending:
                number, start, length = pending.popleft()
                kind, body = self._answer(number)
                data = memoryview(body)[8 : 8 + length] if kind == DATA else memoryview(b"")
                if data:
                    write_at(data, offset + start)
                if 0 < len(data) < length:  # a server may give less than was asked for
                    rest = request_range(start + len(data), length - len(data))
                    send_all(self.channel, rest)
                elif not data:
                    end = min(end, start)
                    if status_of(kind, body) != EOF:
                        raise_status(kind, body, path)
            return end

        return wait

    def close(self) -> None:
        """Close the channel; the connection stays."""
        self.channel.close()

    def _handle(self, path: str, flags: int) -> bytes:
        """Return the handle of a file, open already if it was used last, as by most chunks."""
        if (path, flags) == self._open[0]:
            return self._open[1]
        name = path.encode("utf-8", "surrogateescape")
        old, self._open = self._open, (("", 0), b"")
        requests, closing = b"", 0
        if old[1]:  # requests are served in turn: what was sent for the old file is done by then
            requests = self._request(CLOSE, string(old[1]))
            closing = self._number
        requests += self._request(OPEN, string(name), struct.pack(">II", flags, 0))
        opening = self._number
        if self._has_limits:  # beside what is sent anyway: no round trip of its own
            requests += self._request(EXTENDED, string(LIMITS))
            asking = self._number
        send_all(self.channel, requests)
        if self._has_limits:
            self._has_limits = False
            self._block_bytes_max = read_block_bytes_max(*self._answer(asking))
        if closing:
            kind, body = self._answer(closing)
            if status_of(kind, body) != OK:
                self._answer(opening)
                raise_status(kind, body, old[0][0])
        kind, body = self._answer(opening)
        if kind != HANDLE:
            raise_status(kind, body, path)
        self._open = ((path, flags), bytes(body[8:]))
        return self._open[1]

    def _request(self, kind: int, *parts: bytes, followed_by: int = 0) -> bytes:
        """Build the next request, but for the last bytes of it that are sent after it."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._answers[self._number] = None
        return packet(kind, struct.pack(">I", self._number), *parts, followed_by=followed_by)

    def _answer(self, number: int) -> tuple[int, bytes]:
        """Wait for the answer to a request: its type and its body; keep those to others."""
        while (answer := self._answers[number]) is None:
            kind, body = self._receive()
            if self._answers.get(request_id(body), body) is not None:
                raise OSError(errno.EPROTO, "the SFTP server answers what was not asked")
            self._answers[request_id(body)] = kind, body
        del self._answers[number]
        return answer

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
        with memoryview(self._buffer) as view:
            taken = bytes(view[:size])
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


def packet(kind: int, *parts: bytes, followed_by: int = 0) -> bytes:
    """Encode a packet: length, type, body. Of its body `followed_by` bytes are sent after it."""
    length = 1 + sum(len(part) for part in parts) + followed_by
    return b"".join((struct.pack(">IB", length, kind), *parts))


def string(data: bytes) -> bytes:
    """Encode a string: length, bytes."""
    return struct.pack(">I", len(data)) + data


def request_id(body: bytes) -> int:
    """Return the id of the request that an answer belongs to."""
    return int.from_bytes(body[:4], "big")


def read_block_bytes_max(kind: int, body: bytes) -> int:
    """Return how much may be sent in one request, from the answer to `LIMITS`.

    The answer has the longest packet, read and write, with 0 for what the server does not say.
    """
    if kind != EXTENDED_REPLY or len(body) < 28:
        return BLOCK_BYTES
    return min(max(int.from_bytes(body[20:28], "big"), BLOCK_BYTES), LONG_BLOCK_BYTES)


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
