"""Serves a page and its changes on loopback, to whoever has the address with the token.

Standard library only. Nothing is logged: a log of requests would hold the token. `access.route`
decides what is answered.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from commands.runs.live.access import Request, Route, route, version_of
from commands.runs.live.changes import Snapshot
from commands.runs.live.feed import Feed, TooManyListeners

TOKEN_BYTES, NONCE_BYTES = 24, 18
KEEP_ALIVE_S = 15.0
"""A comment as often as this keeps the line, and finds browsers that are gone."""
SOCKET_S = 30.0
"""How long a browser may take to ask, or to take what it is sent."""
RETRY_MS = 1000
ADDRESS = "127.0.0.1"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
NOTHING = "default-src 'none'; frame-ancestors 'none'"

MakeDocument = Callable[[Snapshot, str], str]
"""Makes the whole page of a version; its scripts carry the nonce."""


def policy(nonce: str) -> str:
    """Return the content security policy of the page: its own scripts, and nothing from elsewhere.

    Styles may be inline: tables colour their cells so.
    """
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


class LiveServer(ThreadingHTTPServer):
    """One page at `url`, until it is closed."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = False

    def __init__(self, feed: Feed, make_document: MakeDocument) -> None:
        self.feed = feed
        self.make_document = make_document
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        super().__init__((ADDRESS, 0), Handler)

    @property
    def url(self) -> str:
        """The address with the token: who has it sees the page."""
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a browser that broke off: it comes again, or it does not."""

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Answer in a thread of its own while inside; afterwards the feed is closed."""
        thread = threading.Thread(target=self.serve_forever, name="live-server", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.feed.close()
            self.shutdown()
            self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: LiveServer
    timeout: ClassVar[float] = SOCKET_S
    server_version = "qft"
    sys_version = ""

    def do_GET(self) -> None:
        """Send the page, or its changes as they come."""
        wanted = route(self._request(), token=self.server.token, port=self.server.server_port)
        if isinstance(wanted, HTTPStatus):
            self._refuse(wanted)
        elif wanted is Route.PAGE:
            self._send_page()
        else:
            self._send_events()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what the library cannot read, or has no method for, by the same rules."""
        del message, explain
        status = HTTPStatus(code)
        if status is HTTPStatus.NOT_IMPLEMENTED:  # any method but GET
            wanted = route(self._request(), token=self.server.token, port=self.server.server_port)
            status = wanted if isinstance(wanted, HTTPStatus) else HTTPStatus.METHOD_NOT_ALLOWED
        self._refuse(status)

    def _request(self) -> Request:
        def every(name: str) -> list[str]:
            return [str(value) for value in self.headers.get_all(name, [])]

        return Request(
            method=self.command,
            target=self.path,
            hosts=every("Host"),
            fetch_sites=every("Sec-Fetch-Site"),
            origins=every("Origin"),
        )

    def _send_page(self) -> None:
        nonce = secrets.token_urlsafe(NONCE_BYTES)
        page = self.server.make_document(self.server.feed.ask(), nonce).encode()
        self._begin(HTTPStatus.OK, "text/html; charset=utf-8", policy(nonce), len(page))
        self.wfile.write(page)

    def _send_events(self) -> None:
        feed = self.server.feed
        version = version_of(self.path, self.headers.get("Last-Event-ID"))
        try:
            with feed.listening():
                self._begin(HTTPStatus.OK, "text/event-stream; charset=utf-8", NOTHING)
                self.wfile.write(f"retry: {RETRY_MS}\n\n".encode())
                while (snapshot := feed.wait(version, KEEP_ALIVE_S)) is not None:
                    fresh = snapshot.version != version
                    self.wfile.write(snapshot.event(version) if fresh else b": here\n\n")
                    self.wfile.flush()
                    version = snapshot.version
        except TooManyListeners:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer without a word of what there is."""
        self._begin(status, "text/plain; charset=utf-8", NOTHING, 0)

    def _begin(self, status: HTTPStatus, kind: str, csp: str, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        self.send_header("Content-Security-Policy", csp)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the library's name)
        """Log nothing: the path holds the token."""
