"""Drives a headless Chromium over the DevTools protocol, with the standard library's sockets.

The browser opens files of this computer and addresses on loopback, nothing else; it has a profile
of its own, which goes with it.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--force-device-scale-factor=1", "--remote-debugging-port=0", "--remote-allow-origins=*",
)  # fmt: skip
START_S, ANSWER_S = 120.0, 120.0
"""As long as a busy computer may take."""
CONTINUATION, TEXT, CLOSE, PING = 0, 1, 8, 9
"""Kinds of frames (RFC 6455, section 5.2)."""


class DevTools:
    """One tab of a browser: sends commands, and keeps what the page complained of."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=ANSWER_S)
        self._received = b""
        self._count = 0
        self.errors: list[str] = []
        """Uncaught exceptions, errors on the console, and what a policy forbade."""
        self._events: list[str] = []
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
            .encode()
        )  # fmt: skip
        while b"\r\n\r\n" not in self._received:
            self._receive()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        assert b" 101 " in head.split(b"\r\n")[0], head
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come before it are kept."""
        self._count += 1
        number = self._count
        self._write(json.dumps({"id": number, "method": method, "params": parameters}).encode())
        while True:
            message = self._message()
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                found: dict[str, Any] = message["result"]
                return found

    def open(self, url: str, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a page in a window of that size and scheme of colours, and wait for it."""
        self.errors.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.send("Page.navigate", url=url)
        while "Page.loadEventFired" not in self._events:
            self._message()

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression on the page."""
        found = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def move(self, x: float, y: float) -> None:
        """Move the mouse to a place in the window."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        """Press and release a key, by its name in events of the keyboard."""
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        height = self.ask("Math.ceil(document.documentElement.scrollHeight)")
        width = self.ask("window.innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 16_000), "scale": 1}
        found = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _message(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._frame())
        kind, found = message.get("method", ""), message.get("params", {})
        self._events.append(kind)
        if kind == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(found["exceptionDetails"]))
        elif kind == "Runtime.consoleAPICalled" and found["type"] in {"error", "assert"}:
            self.errors.append(json.dumps(found["args"]))
        elif kind == "Log.entryAdded" and found["entry"]["level"] in {"error", "warning"}:
            self.errors.append(found["entry"]["text"])
        return message

    def _frame(self) -> bytes:
        """Return the next text message, whole; pings are answered."""
        parts = b""
        while True:
            first, second = self._take(2)
            size = second & 127
            if size > 125:
                size = int.from_bytes(self._take(2 if size == 126 else 8))
            body = self._take(size)
            kind = first & 15
            assert kind != CLOSE, "the browser has gone"
            if kind == PING:
                self._write(body, kind=10)
            elif kind in (TEXT, CONTINUATION):
                parts += body
                if first & 128:
                    return parts

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            self._receive()
        taken, self._received = self._received[:size], self._received[size:]
        return taken

    def _receive(self) -> None:
        found = self._socket.recv(1 << 20)
        assert found, "the browser has gone"
        self._received += found

    def _write(self, body: bytes, *, kind: int = TEXT) -> None:
        size = len(body)
        if size < 126:
            head = struct.pack(">BB", 128 | kind, 128 | size)
        elif size < 1 << 16:
            head = struct.pack(">BBH", 128 | kind, 128 | 126, size)
        else:
            head = struct.pack(">BBQ", 128 | kind, 128 | 127, size)
        self._socket.sendall(head + bytes(4) + body)  # a mask of zeroes changes nothing


@contextmanager
def browser(profile: Path) -> Iterator[DevTools]:
    """Start a headless Chromium with an empty profile, and end it afterwards."""
    program = shutil.which("chromium")
    assert program is not None, "this proof needs Debian's chromium: apt-get install chromium"
    with (profile.parent / f"{profile.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            tab = DevTools(_address(profile, process))
            try:
                yield tab
            finally:
                tab.close()
        finally:
            process.terminate()
            process.wait(timeout=START_S)


def _address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the address of the first tab, as soon as the browser has written its port."""
    until = time.monotonic() + START_S
    note = profile / "DevToolsActivePort"
    while time.monotonic() < until:
        assert process.poll() is None, "the browser did not start"
        if note.is_file() and note.read_text().count("\n"):
            port = int(note.read_text().split("\n")[0])
            for tab in _tabs(port):
                if tab["type"] == "page":
                    return str(tab["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise AssertionError("the browser told no port")


def _tabs(port: int) -> list[dict[str, Any]]:

    connection = HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        connection.request("GET", "/json/list")
        found: list[dict[str, Any]] = json.loads(connection.getresponse().read())
        return found
    finally:
        connection.close()
