"""Serves a local machine's instance metadata, with Azure's scheduled events or as EC2 does."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import socket
import sys
import urllib.parse
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from infra.local.imdsv2 import Imdsv2

REQUEST_BYTES_MAX = 65536
READ_TIMEOUT_S = 10.0
FORBIDDEN: tuple[HTTPStatus, Any] = (HTTPStatus.FORBIDDEN, {"error": "Forbidden"})
CONNECTIONS = Path("/proc/net/tcp")


@dataclass(kw_only=True)
class MetadataService:
    """Answers `/metadata/scheduledevents` and `/metadata/instance` as Azure documents them.

    With `vendor` `aws` it answers as EC2 does instead (`imdsv2.py`). For Azure every request must
    carry `Metadata: true` and an `api-version`, or it is a 400: the header keeps a browser or a
    redirected request from reading what only the machine may know. Azure's answers one machine
    only; here it is one user's, and one machine's by the secret in its address.
    """

    vm_name: str
    compute: dict[str, str]
    first_call_s: float
    """How long the first look at the events takes; on Azure that call enables them."""
    clock: Callable[[], float]
    """Seconds since 1970."""
    on_start_request: Callable[[], None]
    """Called when the machine approves the announced event before its time."""
    vendor: str = "azure"
    """As whose service it answers: `azure` or `aws`."""
    secret: str = ""
    """What every path begins with; whoever asks without it is another machine of this computer."""
    owner: int = field(default_factory=os.getuid)
    """The user of this computer who is answered; all others are refused."""
    _incarnation: int = 1
    _events: list[dict[str, Any]] = field(default_factory=list)
    _requested_before: bool = False
    _imdsv2: Imdsv2 = field(init=False)

    def __post_init__(self) -> None:
        self._imdsv2 = Imdsv2(compute=self.compute, clock=self.clock)

    def announce_preemption(self, notice_s: float) -> None:
        """Announce that the machine will be taken away in `notice_s` seconds."""
        self._imdsv2.announce_interruption(notice_s)
        self._incarnation += 1
        not_before = email.utils.formatdate(self.clock() + notice_s, usegmt=True)
        self._events = [
            {
                "EventId": str(uuid.uuid4()).upper(),
                "EventType": "Preempt",
                "ResourceType": "VirtualMachine",
                "Resources": [self.vm_name],
                "EventStatus": "Scheduled",
                "NotBefore": not_before,
                "Description": "",
                "EventSource": "Platform",
                "DurationInSeconds": -1,
            }
        ]

    def start_preemption(self) -> None:
        """Mark the announced event as begun; its `NotBefore` is empty from now on."""
        self._incarnation += 1
        for event in self._events:
            event.update(EventStatus="Started", NotBefore="")

    async def serve(self) -> asyncio.Server:
        """Listen on a free loopback port."""
        return await asyncio.start_server(self._handle, "127.0.0.1", 0)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close: polls come once a second, so nothing is gained by more."""
        try:
            request = await asyncio.wait_for(_read_request(reader), READ_TIMEOUT_S)
            status, body = await self._answer(request) if self._may_ask(writer) else FORBIDDEN
        except (ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
            status, body = HTTPStatus.BAD_REQUEST, {"error": f"Bad request: {error}"}
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        kind = "text/plain" if isinstance(body, str) else "application/json"
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}; charset=utf-8\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + data)
        try:
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            return  # the client hung up

    def _may_ask(self, writer: asyncio.StreamWriter) -> bool:
        """Whether the client is our own user; where the kernel cannot say, the secret has to do."""
        here, there = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
        if not CONNECTIONS.exists():
            return True
        return user_of(CONNECTIONS.read_text(), ours=there, theirs=here) == self.owner

    async def _answer(self, request: _Request) -> tuple[HTTPStatus, Any]:
        """Choose the reply; the order of the checks is Azure's, or EC2's."""
        url = urllib.parse.urlsplit(request.target)
        query = dict(urllib.parse.parse_qsl(url.query))
        if not url.path.startswith(self.secret):
            return FORBIDDEN
        if self.vendor == "aws":
            path = url.path.removeprefix(self.secret)
            return self._imdsv2.answer(request.method, path, request.headers)
        path = url.path.removeprefix(self.secret).rstrip("/").lower()
        if request.headers.get("metadata", "").lower() != "true":
            return HTTPStatus.BAD_REQUEST, {
                "error": "Bad request. Required metadata header missing"
            }
        if "api-version" not in query:
            error = "Bad request. api-version was not specified in the request"
            return HTTPStatus.BAD_REQUEST, {"error": error}
        if path == "/metadata/scheduledevents":
            return await self._scheduled_events(request)
        if request.method != "GET":
            return HTTPStatus.METHOD_NOT_ALLOWED, {"error": "Method not allowed"}
        if path == "/metadata/instance" or path.startswith("/metadata/instance/"):
            return self._instance(path.split("/")[3:], query.get("format", "json"))
        return HTTPStatus.NOT_FOUND, {"error": "Not found"}

    async def _scheduled_events(self, request: _Request) -> tuple[HTTPStatus, Any]:
        """Return the events, or start one that the machine approves."""
        if request.method == "POST":
            message = json.loads(request.body)
            requests = message.get("StartRequests") if isinstance(message, dict) else None
            if not isinstance(requests, list) or not requests:
                raise ValueError("StartRequests is missing")
            event_ids = {event["EventId"] for event in self._events}
            if any(
                not isinstance(one, dict) or one.get("EventId") not in event_ids for one in requests
            ):
                return HTTPStatus.BAD_REQUEST, {"error": "Unknown EventId"}
            self.on_start_request()
            return HTTPStatus.OK, {}
        if not self._requested_before:
            self._requested_before = True
            await asyncio.sleep(self.first_call_s)
        return HTTPStatus.OK, {"DocumentIncarnation": self._incarnation, "Events": self._events}

    def _instance(self, path: list[str], style: str) -> tuple[HTTPStatus, Any]:
        """Return facts about the machine; a single value is only served as text."""
        value: Any = {"compute": self.compute}
        for name in path:
            folded = {key.lower(): key for key in value} if isinstance(value, dict) else {}
            if name not in folded:
                return HTTPStatus.NOT_FOUND, {"error": "Not found"}
            value = value[folded[name]]
        if isinstance(value, str) != (style == "text"):
            error = "Bad request. Single values need format=text, and only they can have it"
            return HTTPStatus.BAD_REQUEST, {"error": error}
        return HTTPStatus.OK, value


def user_of(table: str, *, ours: tuple[str, int], theirs: tuple[str, int]) -> int | None:
    """Read from the kernel's table (proc(5), `net/tcp`) whose the connection `ours` is.

    None if it is not there: its process has ended.
    """
    wanted = [_as_in_table(*ours), _as_in_table(*theirs)]
    for line in table.splitlines()[1:]:
        words = line.split()
        if words[1:3] == wanted:
            return int(words[7])
    return None


def _as_in_table(address: str, port: int) -> str:
    """Write an address as the kernel does: four bytes in this computer's order, and the port."""
    number = int.from_bytes(socket.inet_aton(address), sys.byteorder)
    return f"{number:08X}:{port:04X}"


@dataclass(frozen=True, kw_only=True)
class _Request:
    """One HTTP request as far as this service needs to understand it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


async def _read_request(reader: asyncio.StreamReader) -> _Request:
    """Read one request; raises `ValueError` for what is no HTTP or too long."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.LimitOverrunError as error:
        raise ValueError("the head is too long") from error
    method, target, _version = head[0].split(" ")
    headers = {}
    for line in head[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    length = int(headers.get("content-length", "0"))
    if not 0 <= length <= REQUEST_BYTES_MAX:
        raise ValueError("the body is too long")
    return _Request(
        method=method, target=target, headers=headers, body=await reader.readexactly(length)
    )
