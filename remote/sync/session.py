"""Sends many requests to one process of a script on the machine: a start there costs 0.2 s."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from remote.errors import TimedOut
from remote.remote_script import ANSWER_BYTES_MAX, RemoteScript
from remote.sync.background import Background

SESSION_S_MAX = 30 * 24 * 3600.0
"""For a whole session; a lost connection is noticed earlier, and each request has its own limit."""


class ScriptSession:
    """One process `serve` of a script there, until it is closed.

    One thread may use it; `notify` may be called by any.
    """

    def __init__(self, script: RemoteScript) -> None:
        self._script = script
        self._lines: list[bytes] = []
        self._changed = threading.Condition()
        self._closed = False
        self._rest = bytearray()
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        """One line each; None once the process has ended."""
        self._process = Background(self._run)

    def call(
        self,
        verb: str,
        request: Mapping[str, Any],
        *,
        timeout_s: float,
        after_request: Callable[[], bytes] | None = None,
    ) -> dict[str, Any]:
        """Run a verb there and return its answer; raises what `RemoteScript.call` does.

        What `after_request` returns is sent after the request, as a line.
        """
        self.notify(verb, request)
        if after_request is not None:
            self._send(after_request() + b"\n")
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty as error:
            raise TimedOut(
                f"{self._script.connection.host} did not answer `{verb}` within {timeout_s:g} s"
            ) from error
        if line is None:
            code, stderr = self._process.result()
            raise self._script.failure(verb, code, bytes(self._rest), stderr)
        return self._script.read(verb, line)

    def notify(self, verb: str, request: Mapping[str, Any]) -> None:
        """Send a request that has no answer, without waiting; a lost one is no error."""
        self._send(json.dumps([verb, request]).encode() + b"\n")

    def close(self) -> None:
        """End the process there, without waiting for its end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _send(self, line: bytes) -> None:
        with self._changed:
            self._lines.append(line)
            self._changed.notify_all()

    def _run(self) -> tuple[int, bytes]:
        try:
            return self._script.run(
                "serve",
                self._stdin,
                self._split,
                timeout_s=SESSION_S_MAX,
                limit_bytes=2 * ANSWER_BYTES_MAX,
            )
        finally:
            self._answers.put(None)

    def _stdin(self) -> Iterator[bytes]:
        """Yield all lines from the first, as they come, until the session is closed."""
        at = 0
        while True:
            with self._changed:
                while len(self._lines) == at and not self._closed:
                    self._changed.wait()
                part, at = b"".join(self._lines[at:]), len(self._lines)
            if not part:
                return
            yield part

    def _split(self, data: bytes) -> None:
        """Put the whole lines among what came into the queue."""
        self._rest += data
        if b"\n" not in data:
            return
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            self._answers.put(bytes(line))
