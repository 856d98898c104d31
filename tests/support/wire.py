"""A wire on loopback that can be cut after any number of bytes, and made as long as an ocean."""

from __future__ import annotations

import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

BLOCK = 1 << 16
END = b""


@dataclass(kw_only=True)
class Wire:
    """What a running wire is told and has seen."""

    port: int
    target_port: int
    delay_s: float = 0.0
    """One way: a round trip takes twice as long."""
    cut_after_bytes: int | None = None
    """Both connections are reset once so many bytes have gone through, both ways together."""
    carried_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def may_carry(self, size: int) -> int:
        """Count `size` bytes; return how many of them still go through."""
        with self.lock:
            left = size
            if self.cut_after_bytes is not None:
                left = min(size, max(self.cut_after_bytes - self.carried_bytes, 0))
            self.carried_bytes += left
            return left


@contextmanager
def stretch(
    target_port: int, *, delay_s: float = 0.0, cut_after: int | None = None
) -> Iterator[Wire]:
    """Listen on a port that leads to `target_port`, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wire = Wire(
            port=listener.getsockname()[1],
            target_port=target_port,
            delay_s=delay_s,
            cut_after_bytes=cut_after,
        )
        threading.Thread(target=accept, args=(listener, wire), daemon=True).start()
        yield wire


def accept(listener: socket.socket, wire: Wire) -> None:
    """Take connections until the listener is closed."""
    with suppress(OSError):
        while True:
            near, _ = listener.accept()
            threading.Thread(target=converse, args=(near, wire), daemon=True).start()


def converse(near: socket.socket, wire: Wire) -> None:
    """Carry both directions of one connection until both have ended."""
    with near, suppress(OSError), socket.create_connection(("127.0.0.1", wire.target_port)) as far:
        threads = []
        for source, sink in ((near, far), (far, near)):
            sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            under_way: queue.Queue[tuple[float, bytes]] = queue.Queue()
            threads += [
                threading.Thread(target=take, args=(source, under_way, wire), daemon=True),
                threading.Thread(target=give, args=(sink, source, under_way, wire), daemon=True),
            ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def take(source: socket.socket, under_way: queue.Queue[tuple[float, bytes]], wire: Wire) -> None:
    """Read one direction."""
    with suppress(OSError):
        while data := source.recv(BLOCK):
            under_way.put((time.monotonic() + wire.delay_s, data))
    under_way.put((time.monotonic() + wire.delay_s, END))


def give(
    sink: socket.socket,
    source: socket.socket,
    under_way: queue.Queue[tuple[float, bytes]],
    wire: Wire,
) -> None:
    """Write one direction, each block when it is due; reset both ends at the cut."""
    with suppress(OSError):
        while True:
            due, data = under_way.get()
            time.sleep(max(due - time.monotonic(), 0.0))
            if data == END:
                sink.shutdown(socket.SHUT_WR)
                return
            left = wire.may_carry(len(data))
            sink.sendall(data[:left])
            if left < len(data):
                break
    for sock in (sink, source):
        with suppress(OSError):
            # Lingering for no time makes the close a reset, as a machine that is gone does.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def stretch_apart(target_port: int, *, delay_s: float) -> Iterator[int]:
    """Run a wire in a process of its own, so that it takes no time from what is measured."""
    command = [sys.executable, __file__, str(target_port), str(delay_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.terminate()


if __name__ == "__main__":
    with stretch(int(sys.argv[1]), delay_s=float(sys.argv[2])) as running:
        print(running.port, flush=True)  # noqa: T201  (tells the port to its parent)
        sys.stdin.read()
