"""EC2's instance-metadata service, version 2, over real HTTP on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Thread
from typing import Any

from support.http_server import QuietServer

TOKEN_PATH = "/latest/api/token"
INTERRUPTION_PATH = "/latest/meta-data/spot/instance-action"
REBALANCE_PATH = "/latest/meta-data/events/recommendations/rebalance"

Reply = tuple[int, bytes, dict[str, str]]


@dataclass
class Imds:
    """IMDSv2 of one instance, with whatever a test has it answer instead."""

    documents: dict[str, Any] = field(default_factory=dict)
    """What is announced, by path."""
    replies: list[Reply] = field(default_factory=list)
    """Sent first, one for each request, whatever it is."""
    requests: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    """Every token that was given out; the last one counts."""
    url: str = ""

    def answer(self, method: str, path: str, headers: Any) -> Reply:
        """Answer as EC2 documents it."""
        self.requests.append(f"{method} {path}")
        if self.replies:
            return self.replies.pop(0)
        if method == "PUT" and path == TOKEN_PATH:
            if not 1 <= int(headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21600:
                return 400, b"", {}
            self.tokens.append(f"AQAEA{len(self.tokens)}==")
            return 200, self.tokens[-1].encode(), {}
        if headers.get("X-aws-ec2-metadata-token") not in self.tokens[-1:]:
            return 401, b"", {}
        if path not in self.documents:
            return 404, b"<html>Not Found</html>", {}
        document = self.documents[path]
        document = document() if callable(document) else document
        return 200, document if isinstance(document, bytes) else json.dumps(document).encode(), {}


@contextmanager
def serving(imds: Imds) -> Iterator[Imds]:
    """Serve it on loopback until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            status, body, headers = imds.answer(self.command, self.path, self.headers)
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except ConnectionError:
                return  # the client had enough

        def do_GET(self) -> None:
            self._reply()

        def do_PUT(self) -> None:
            self._reply()

        def log_message(self, *_arguments: object) -> None:
            """Write nothing."""

    server = QuietServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    imds.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield imds
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
