"""A TCP proxy on loopback that delays every byte, and cuts connections after some bytes."""

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
class SlowProxy:
    """The settings and the counts of a running proxy."""

    port: int
    target_port: int
    delay_s: float = 0.0
    """One way: a round trip takes twice as long."""
    cut_after_bytes: int | None = None
    """Both connections are reset once so many bytes have been forwarded, both ways together."""
    forwarded_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count_allowed(self, size: int) -> int:
        """Count `size` bytes; return how many of them are still forwarded."""
        with self.lock:
            left = size
            if self.cut_after_bytes is not None:
                left = min(size, max(self.cut_after_bytes - self.forwarded_bytes, 0))
            self.forwarded_bytes += left
            return left


@contextmanager
def run_proxy(
    target_port: int, *, delay_s: float = 0.0, cut_after: int | None = None
) -> Iterator[SlowProxy]:
    """Listen on a port that leads to `target_port`, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = SlowProxy(
            port=listener.getsockname()[1],
            target_port=target_port,
            delay_s=delay_s,
            cut_after_bytes=cut_after,
        )
        threading.Thread(target=accept, args=(listener, proxy), daemon=True).start()
        yield proxy


def accept(listener: socket.socket, proxy: SlowProxy) -> None:
    """Take connections until the listener is closed."""
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            threading.Thread(target=forward, args=(client, proxy), daemon=True).start()


def forward(client: socket.socket, proxy: SlowProxy) -> None:
    """Forward both directions of one connection until both have ended."""
    with (
        client,
        suppress(OSError),
        socket.create_connection(("127.0.0.1", proxy.target_port)) as target,
    ):
        threads = []
        for source, sink in ((client, target), (target, client)):
            sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            delayed: queue.Queue[tuple[float, bytes]] = queue.Queue()
            threads += [
                threading.Thread(target=read_from, args=(source, delayed, proxy), daemon=True),
                threading.Thread(target=write_to, args=(sink, source, delayed, proxy), daemon=True),
            ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def read_from(
    source: socket.socket, delayed: queue.Queue[tuple[float, bytes]], proxy: SlowProxy
) -> None:
    """Read one direction."""
    with suppress(OSError):
        while data := source.recv(BLOCK):
            delayed.put((time.monotonic() + proxy.delay_s, data))
    delayed.put((time.monotonic() + proxy.delay_s, END))


def write_to(
    sink: socket.socket,
    source: socket.socket,
    delayed: queue.Queue[tuple[float, bytes]],
    proxy: SlowProxy,
) -> None:
    """Write one direction, each block when it is due; reset both ends at the cut."""
    with suppress(OSError):
        while True:
            due, data = delayed.get()
            time.sleep(max(due - time.monotonic(), 0.0))
            if data == END:
                sink.shutdown(socket.SHUT_WR)
                return
            left = proxy.count_allowed(len(data))
            sink.sendall(data[:left])
            if left < len(data):
                break
    for sock in (sink, source):
        with suppress(OSError):
            # Lingering for no time makes the close a reset, as a machine that is gone does.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def run_proxy_process(target_port: int, *, delay_s: float) -> Iterator[int]:
    """Run a proxy in a process of its own, so that it takes no time from what is measured."""
    command = [sys.executable, __file__, str(target_port), str(delay_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.terminate()


if __name__ == "__main__":
    with run_proxy(int(sys.argv[1]), delay_s=float(sys.argv[2])) as running:
        print(running.port, flush=True)  # noqa: T201  (tells the port to its parent)
        sys.stdin.read()
