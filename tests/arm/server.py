"""The HTTPS front of the simulated cloud: one throwaway CA, one port, every request recorded."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme

from arm.disruptions import DisruptionKind, Disruptions
from arm.replies import Reply, Request

Answer = Callable[[Request], Reply]


class Server(ThreadingHTTPServer):
    """Serves `answer` over TLS on a free loopback port."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # plans ask from many threads, and one turned away waits a second

    def __init__(
        self, answer: Answer, disruptions: Disruptions, *, directory: Path, now: Callable[[], float]
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.now = now
        self.answer = answer
        self.disruptions = disruptions
        self.recorded: list[tuple[Request, int]] = []
        """Every request with the status it got; 0 for a broken connection."""
        self.lock = threading.Lock()
        self.watcher: Callable[[Request, bool], None] | None = None
        """Told of every request before it is done (False) and after (True), before the answer."""
        self.ca_file = directory / "sim-ca.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca_file))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
        self.context = context
        self.connections: set[socket.socket] = set()
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    @property
    def base(self) -> str:
        """Where it listens."""
        return f"https://127.0.0.1:{self.server_address[1]}"

    def open(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving and let go of every connection."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        with self.lock:
            open_ones = list(self.connections)
        for one in open_ones:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Speak TLS in the connection's own thread, so that nobody waits for a handshake."""
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            secure = self.context.wrap_socket(request, server_side=True)
            with self.lock:
                self.connections.add(secure)
            try:
                super().finish_request(secure, client_address)
            finally:
                with self.lock:
                    self.connections.discard(secure)
                secure.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    """Decodes a request, applies its disruption, encodes the answer."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    server: Server

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The cloud's own time, for the `Date` of an answer."""
        return super().date_time_string(self.server.now() if timestamp is None else timestamp)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's name)
        """Say nothing: the requests are recorded."""

    def _serve(self) -> None:
        request = self._decode()
        disruption = self.server.disruptions.take(request)
        if disruption is not None and disruption.kind is DisruptionKind.SLOW:
            disruption.enough.wait(disruption.slow_s)
        if disruption is not None and disruption.kind is DisruptionKind.DROP_BEFORE:
            self._drop(request)
            return
        self._watch(request, done=False)
        reply = (
            disruption.reply
            if disruption is not None and disruption.kind is DisruptionKind.ANSWER
            else self.server.answer(request)
        )
        self._watch(request, done=True)
        if disruption is not None and disruption.kind is DisruptionKind.DROP_AFTER:
            self._drop(request)
            return
        self._record(request, reply.status)
        self._send(reply)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _serve  # noqa: N815  (http.server's names)

    def _decode(self) -> Request:
        split = urllib.parse.urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length).decode() if length else ""
        body: Any = raw
        if raw and "json" in self.headers.get("Content-Type", ""):
            body = json.loads(raw)
        return Request(
            method=self.command,
            path=urllib.parse.unquote(split.path),
            query=dict(urllib.parse.parse_qsl(split.query, keep_blank_values=True)),
            body=body,
            headers={name.lower(): value for name, value in self.headers.items()},
        )

    def _watch(self, request: Request, *, done: bool) -> None:
        if self.server.watcher is not None:
            self.server.watcher(request, done)

    def _record(self, request: Request, status: int) -> None:
        with self.server.lock:
            self.server.recorded.append((request, status))

    def _drop(self, request: Request) -> None:
        self._record(request, 0)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, reply: Reply) -> None:
        data = b"" if reply.body is None else json.dumps(reply.body).encode()
        if isinstance(reply.body, str):
            data = reply.body.encode()
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            if value:
                self.send_header(name, value)
        self.send_header("x-ms-correlation-request-id", "00000000-0000-0000-0000-000000000000")
        if data:
            kind = "text/plain" if isinstance(reply.body, str) else "application/json"
            self.send_header("Content-Type", kind)
        if reply.status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()
