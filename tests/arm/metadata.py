"""The metadata service as a machine sees it: tokens from the cloud, the rest from within."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.http_server import QuietServer

from arm.replies import Reply, Request

BOOT_S = 30.0


class MetadataService:
    """Answers for one machine: about its identity in the cloud's name, else as the guest does."""

    def __init__(self, *, identity: Callable[[Request], Reply], port_of: Callable[[], int]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urllib.parse.urlsplit(self.path)
                if url.path == "/metadata/identity/oauth2/token":
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    query = dict(urllib.parse.parse_qsl(url.query))
                    request = Request(method="GET", path=url.path, query=query, headers=headers)
                    reply = identity(request)
                    self._send(reply.status, json.dumps(reply.body).encode())
                    return
                deadline = time.monotonic() + BOOT_S
                while not (port := port_of()) and time.monotonic() < deadline:
                    time.sleep(0.02)  # on a real machine it is there before everything else
                self._send(*inside(self.path, dict(self.headers.items()), port))

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing is written beside the tests."""

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()


def inside(path: str, headers: dict[str, str], port: int) -> tuple[int, bytes]:
    """What the machine's own service answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310  (loopback)
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError:  # the machine has ended since
        return 503, b""
