"""An OpenAI-compatible service on loopback that judges in the way that a test asks for.

It reads the two answers between the markers of the request, as a model would see them, so that it
can choose the one that holds a word whichever its place is.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECTION = re.compile(
    r"^(?P<marker>\[[0-9a-f]{16}\]) (?P<title>QUESTION|ANSWER A|ANSWER B) BEGINS\n"
    r"(?P<text>.*?)\n(?P=marker) (?P=title) ENDS$",
    re.DOTALL | re.MULTILINE,
)
Trouble = tuple[int, dict[str, str], bytes]
"""An answer instead of a verdict: status, headers and body."""


def always_a(_answers: dict[str, str]) -> str:
    """Judge the order alone."""
    return "The first one convinces me.\nA"


def honest(answers: dict[str, str]) -> str:
    """Choose the answer that holds the word `right`."""
    first, second = ("right" in answers[key] for key in ("ANSWER A", "ANSWER B"))
    return "Checked.\n" + ("TIE" if first == second else "A" if first else "B")


def error_body(message: str, **more: Any) -> bytes:
    """Return the body of an error as such services write it."""
    return json.dumps(
        {"error": {"message": message, "type": "invalid_request_error", **more}}
    ).encode()


@dataclass
class JudgeService:
    """What the service answers, and what it was asked.

    `troubles` are answered first, one a request; `refuses` names parameters that it does not take.
    """

    url: str = ""
    key: str | None = None
    judge: Callable[[dict[str, str]], str] = honest
    troubles: list[Trouble] = field(default_factory=list)
    refuses: tuple[str, ...] = ()
    usage: dict[str, int] | None = field(
        default_factory=lambda: {"prompt_tokens": 200, "completion_tokens": 10}
    )
    finish_reason: str = "stop"
    drip_s: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def answer(self, body: dict[str, Any], headers: dict[str, str]) -> Trouble:
        """Return what a request is answered."""
        self.requests.append(body)
        self.headers.append(headers)
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            sent = headers.get("authorization", "").removeprefix("Bearer ")
            return 401, {}, error_body(f"Incorrect API key provided: {sent}")
        if self.troubles:
            return self.troubles.pop(0)
        for name in self.refuses:
            if name in body:
                text = f"Unsupported parameter: '{name}' is not supported with this model."
                return 400, {}, error_body(text, param=name, code="unsupported_parameter")
        content = self.judge(answers_in(body["messages"][1]["content"]))
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": content},
            "finish_reason": self.finish_reason,
        }
        reply: dict[str, Any] = {"id": "1", "object": "chat.completion", "choices": [choice]}
        if self.usage is not None:
            reply["usage"] = self.usage
        return 200, {}, json.dumps(reply).encode()


def answers_in(text: str) -> dict[str, str]:
    """Return the question and the answers of a request by their titles, as they are fenced."""
    return {found["title"]: found["text"] for found in SECTION.finditer(text)}


class _Handler(BaseHTTPRequestHandler):
    """Answers as the service of the server says."""

    server: _Server

    def do_POST(self) -> None:
        """Answer one request."""
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        service = self.server.service
        headers: dict[str, str] = {}
        if self.path != "/v1/chat/completions":
            status, body = 404, error_body("no such path")
        else:
            sent = {name.lower(): value for name, value in self.headers.items()}
            status, headers, body = service.answer(json.loads(data), sent)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            for at in range(0, len(body), 16) if service.drip_s else [0]:
                self.wfile.write(body[at : at + 16] if service.drip_s else body)
                self.wfile.flush()
                time.sleep(service.drip_s)
        except OSError:
            self.close_connection = True  # who asked has left

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Print nothing."""


class _Server(ThreadingHTTPServer):
    """A server that knows its service."""

    daemon_threads = True

    def __init__(self, service: JudgeService) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.service = service


@contextmanager
def judge_service(**settings: Any) -> Iterator[JudgeService]:
    """Run a service while the block goes on."""
    service = JudgeService(**settings)
    server = _Server(service)
    service.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
