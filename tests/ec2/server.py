"""The HTTP front of the simulated AWS: one port for all services, every request recorded."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from arm.disruptions import DisruptionKind, Disruptions
from arm.replies import Request

from ec2.replies import HttpReply, HttpRequest

Answer = Callable[[HttpRequest], HttpReply]
Route = Callable[[HttpRequest], str]


class Server(ThreadingHTTPServer):
    """Serves `answer` on a free loopback port.

    `route` names what a request asks for, such as `/ec2/us-east-1/RunInstances`: disruptions
    match it as their path.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # plans ask from many threads, and one turned away waits a second

    def __init__(
        self, answer: Answer, route: Route, disruptions: Disruptions, *, now: Callable[[], float]
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.route = route
        self.disruptions = disruptions
        self.now = now
        self.recorded: list[tuple[str, int]] = []
        """What every request asked for with the status it got; 0 for a broken connection."""
        self.lock = threading.Lock()
        self.watcher: Callable[[str, bool], None] | None = None
        """Called with every request's route before it is done (False) and after (True)."""
        self.connections: set[socket.socket] = set()
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    @property
    def base(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

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
            with contextlib.suppress(OSError):  # closed by the other side meanwhile
                one.shutdown(socket.SHUT_RDWR)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection, which `close` can end."""
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.lock:
            self.connections.add(request)
        try:
            super().finish_request(request, client_address)
        finally:
            with self.lock:
                self.connections.discard(request)

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
        route = self.server.route(request)
        disruption = self.server.disruptions.take(
            Request(method=request.method, path=route, query={}, headers=request.headers)
        )
        if disruption is not None and disruption.kind is DisruptionKind.SLOW:
            disruption.enough.wait(disruption.slow_s)
        if disruption is not None and disruption.kind is DisruptionKind.DROP_BEFORE:
            self._drop(route)
            return
        if self.server.watcher is not None:
            self.server.watcher(route, False)
        if disruption is not None and disruption.kind is DisruptionKind.ANSWER:
            canned = disruption.reply
            reply = HttpReply(
                status=canned.status, body=str(canned.body or ""), headers=canned.headers
            )
        else:
            reply = self.server.answer(request)
        if self.server.watcher is not None:
            self.server.watcher(route, True)
        if disruption is not None and disruption.kind is DisruptionKind.DROP_AFTER:
            self._drop(route)
            return
        self._record(route, reply.status)
        self._send(reply)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _serve  # noqa: N815  (http.server's names)

    def _decode(self) -> HttpRequest:
        split = urllib.parse.urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        return HttpRequest(
            method=self.command,
            path=split.path,
            query=dict(urllib.parse.parse_qsl(split.query, keep_blank_values=True)),
            body=self.rfile.read(length).decode() if length else "",
            headers={name.lower(): value for name, value in self.headers.items()},
        )

    def _record(self, route: str, status: int) -> None:
        with self.server.lock:
            self.server.recorded.append((route, status))

    def _drop(self, route: str) -> None:
        self._record(route, 0)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, reply: HttpReply) -> None:
        data = reply.body.encode()
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()
