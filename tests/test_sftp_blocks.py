"""How much one request to write takes with it: 32 KB, and more where server and line allow it."""

from __future__ import annotations

import os
import struct

import pytest

from remote.ssh_transport import PACKET_BYTES
from remote.sync import sftp
from remote.sync.sftp import BLOCK_BYTES, LIMITS, LONG_BLOCK_BYTES, QUICK_S, Sftp, packet, string

CHUNK_BYTES = 1 << 20


class MemoryServer:
    """A channel whose other end is an SFTP server with one file, held in memory.

    It acknowledges a write `answer_s` after the one before, by a clock of its own.
    """

    remote_chanid = 0

    def __init__(self, limits: bytes | None, *, window: int = 1 << 30) -> None:
        self.limits = limits
        self.window = window
        self.file = bytearray(3 * CHUNK_BYTES)
        self.now_s = 0.0
        self.answer_s = 0.0
        self.blocks: list[int] = []
        self.packets: list[int] = []
        self._received = bytearray()
        self._answers = bytearray()

    def send(self, data: bytes) -> int:
        """Take a part, as a window that is nearly used up does."""
        taken = data[: self.window]
        self.packets.append(len(taken))
        self._received += taken
        while len(self._received) >= 4:
            length = int.from_bytes(self._received[:4], "big")
            if len(self._received) < 4 + length:
                break
            self._serve(self._received[4], bytes(self._received[5 : 4 + length]))
            del self._received[: 4 + length]
        return len(taken)

    def recv(self, size: int) -> bytes:
        """Give what was answered."""
        given = bytes(self._answers[:size])
        del self._answers[:size]
        return given

    def _serve(self, kind: int, body: bytes) -> None:
        number, rest = body[:4], body[4:]
        if kind == sftp.OPEN:
            self._answers += packet(sftp.HANDLE, number, string(b"h"))
        elif kind == sftp.EXTENDED:
            assert rest == string(LIMITS)
            supported = self.limits is not None
            code = struct.pack(">I", 8)  # not supported
            answer = (sftp.EXTENDED_REPLY, self.limits or b"") if supported else (sftp.STATUS, code)
            self._answers += packet(answer[0], number, answer[1])
        else:
            assert kind == sftp.WRITE
            offset, length = struct.unpack(">QI", rest[5:17])
            assert len(rest) == 17 + length
            self.file[offset : offset + length] = rest[17:]
            self.blocks.append(length)
            self.now_s += self.answer_s
            self._answers += packet(sftp.STATUS, number, struct.pack(">I", sftp.OK))


def limits(write: int) -> bytes:
    """Say the limits of a server: of a packet, a read, a write, and of open files."""
    return struct.pack(">4Q", 256 << 10, 255 << 10, write, 0)


def open_on(server: MemoryServer, *, announced: bool = True) -> Sftp:
    """Return a channel to it, as after the greeting."""
    return Sftp(
        channel=server,  # type: ignore[arg-type]  # as much of a channel as is used
        clock=lambda: server.now_s,
        _has_limits=announced,
    )


def write_chunks(server: MemoryServer, channel: Sftp, count: int = 3) -> list[list[int]]:
    """Write chunk after chunk; return the blocks of each, having compared the file."""
    data = os.urandom(count * CHUNK_BYTES)
    blocks = []
    for start in range(0, len(data), CHUNK_BYTES):
        server.blocks.clear()
        channel.write("file", start, data[start : start + CHUNK_BYTES])()
        blocks.append(list(server.blocks))

    assert server.file[: len(data)] == data
    return blocks


SHORT = [BLOCK_BYTES] * 32
LONG = [LONG_BLOCK_BYTES] * 4 + [CHUNK_BYTES - 4 * LONG_BLOCK_BYTES]


def test_blocks_are_long_once_the_line_proved_quick() -> None:
    """The first chunk goes in blocks that every server takes; the bytes acknowledged add up."""
    server, counted = MemoryServer(limits(LONG_BLOCK_BYTES)), list[int]()
    channel = open_on(server)
    channel.on_bytes = counted.append

    assert write_chunks(server, channel) == [SHORT, LONG, LONG]
    assert [size for size in counted if size >= 4096] == [*SHORT, *LONG, *LONG]


def test_a_slow_line_keeps_short_blocks() -> None:
    """So that answers come often: silence is what ends a transfer."""
    server = MemoryServer(limits(LONG_BLOCK_BYTES))
    channel = open_on(server)
    server.answer_s = 1.01 * QUICK_S / len(SHORT)

    assert write_chunks(server, channel, 2) == [SHORT, SHORT]
    server.answer_s = 0.0
    assert write_chunks(server, channel, 2) == [SHORT, LONG]
    server.answer_s = QUICK_S
    assert write_chunks(server, channel, 2) == [LONG, SHORT]


@pytest.mark.parametrize("answer", [None, b"", limits(0), limits(BLOCK_BYTES), limits(1)[:24]])
def test_without_a_word_of_the_server_blocks_stay_short(answer: bytes | None) -> None:
    """Nor does an answer that is cut short, or names less than every server must take, count."""
    server = MemoryServer(answer)

    assert write_chunks(server, open_on(server)) == [SHORT, SHORT, SHORT]


def test_a_server_that_announces_no_limits_is_sent_no_request_for_them() -> None:
    """It might not answer what it does not know."""
    server = MemoryServer(limits(LONG_BLOCK_BYTES))

    assert write_chunks(server, open_on(server, announced=False)) == [SHORT, SHORT, SHORT]


def test_a_server_that_claims_more_gets_no_more_than_our_longest() -> None:
    """What a machine says bounds nothing upwards."""
    server = MemoryServer(limits(1 << 63))

    assert write_chunks(server, open_on(server))[1] == LONG


def test_packets_are_full() -> None:
    """Each costs time in Python: a block and its header share them, and none is too long."""
    server = MemoryServer(limits(LONG_BLOCK_BYTES))
    channel = open_on(server)
    write_chunks(server, channel, 2)
    server.packets.clear()
    channel.write("file", 0, bytes(LONG_BLOCK_BYTES))()

    assert server.packets[:-1] == [PACKET_BYTES] * (LONG_BLOCK_BYTES // PACKET_BYTES)
    assert 0 < server.packets[-1] < PACKET_BYTES


@pytest.mark.parametrize("window", [1, 7, 1000])
def test_a_narrow_window_loses_no_byte(window: int) -> None:
    """Also where it ends within a header."""
    server = MemoryServer(None, window=window)
    data = os.urandom(BLOCK_BYTES + 100)
    open_on(server, announced=False).write("file", 50, data)()

    assert server.file[50 : 50 + len(data)] == data
