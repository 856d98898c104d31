"""What goes on in one SSH channel beside its output: input fed, errors drained, silence ended."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import paramiko

READ_BYTES = 1 << 18
PACKET_BYTES = 32 << 10  # what SSH servers accept in one packet of a channel


@contextmanager
def reply_deadline(channel: paramiko.Channel, timeout_s: float) -> Iterator[None]:
    """Close the channel if a request takes longer: the library waits for its answer for ever.

    Raises `TimeoutError` then.
    """
    late = threading.Event()

    def give_up() -> None:
        late.set()
        with suppress(EOFError, OSError):  # a dead line closes it as well
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
        self, channel: paramiko.Channel, given: str | bytes | None, limit_bytes: int
    ) -> None:
        self._channel = channel
        self._given = given.encode() if isinstance(given, str) else given or b""
        self._limit_bytes = limit_bytes
        self._stderr = bytearray()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._feed, self._drain)
        ]
        for thread in self._threads:
            thread.start()

    def _feed(self) -> None:
        try:
            send_all(self._channel, self._given)
            self._channel.shutdown_write()
        except (OSError, EOFError):
            # The command ended without reading all of it; its exit code tells the story.
            return

    def _drain(self) -> None:
        try:
            while data := self._channel.recv_stderr(READ_BYTES):
                room = max(self._limit_bytes - len(self._stderr), 0)
                self._stderr += data[:room]
        except OSError:
            return  # the reader of stdout meets the same error and reports it

    def join(self, timeout_s: float) -> bytes:
        """Wait for both; return what was said on stderr."""
        for thread in self._threads:
            thread.join(timeout_s)
        return bytes(self._stderr)


def send_all(channel: paramiko.Channel, data: bytes) -> None:
    """Send everything; the library's own loop copies all that is left for every packet.

    Raises `EOFError` if the other side takes no more, and `OSError` as the channel does.
    """
    view = memoryview(data)
    while view:
        sent = channel.send(bytes(view[:PACKET_BYTES]))
        if not sent:
            raise EOFError("the other side takes no more")
        view = view[sent:]
