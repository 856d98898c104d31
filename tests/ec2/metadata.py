"""Serves a machine's instance metadata by IMDSv2: a session token first, then its facts.

One service answers one machine on a port of 127.0.0.1, as 169.254.169.254 does inside a real one.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.http_server import QuietServer

TOKEN_PATH = "/latest/api/token"
TTL_S_MAX = 21600
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN_HEADER = "X-aws-ec2-metadata-token"


@dataclass(frozen=True, kw_only=True)
class MetadataFacts:
    """What a machine's metadata tells at one moment."""

    instance_id: str
    account: str = ""
    region: str = ""
    zone: str = ""
    instance_type: str = ""
    image_id: str = ""
    local_ipv4: str = ""
    public_ipv4: str = ""
    lifecycle: str = "spot"
    user_data: bytes = b""
    action: str = ""
    """`stop` or `terminate` while an interruption is ahead; empty else."""
    action_at_s: float = 0.0
    """When it happens, in seconds since 1970 of the machine's own clock."""
    rebalance_s: float | None = None
    """When a rebalance was recommended, by the same clock; None if it was not."""
    enabled: bool = True
    """`HttpEndpoint`."""
    needs_token: bool = True
    """`HttpTokens: required`."""


@dataclass(kw_only=True)
class Imds:
    """The metadata service of one machine; `facts` is read anew at every request."""

    facts: Callable[[], MetadataFacts]
    clock: Callable[[], float] = time.time
    """The machine's own clock, which ends session tokens."""
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    """Method, path and status of every request so far."""

    def __post_init__(self) -> None:
        self._tokens: dict[str, float] = {}
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer("GET")

            def do_PUT(self) -> None:
                self._answer("PUT")

            def _answer(self, method: str) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, body, more = service.answer(method, self.path, headers)
                service.requests.append((method, self.path, status))
                self.send_response(status)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(body)))
                for name, value in more.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing is written beside the tests."""

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """Its base address."""
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()

    def forget_tokens(self) -> None:
        """Let every session token be invalid from now on."""
        self._tokens.clear()

    def answer(
        self, method: str, path: str, headers: Mapping[str, str]
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers for a request whose header names are in lower case."""
        facts = self.facts()
        if not facts.enabled:
            return 403, b"", {}
        if path == TOKEN_PATH:
            return self._new_token(method, headers)
        if method != "GET":
            return 405, b"", {}
        token = headers.get(TOKEN_HEADER.lower())
        if token is None and facts.needs_token:
            return 401, b"", {}
        if token is not None and self._tokens.get(token, 0.0) <= self.clock():
            return 401, b"", {}
        found = pages(facts).get(path.rstrip("/"))
        return (404, b"", {}) if found is None else (200, found, {})

    def _new_token(
        self, method: str, headers: Mapping[str, str]
    ) -> tuple[int, bytes, dict[str, str]]:
        if method != "PUT":
            return 405, b"", {"Allow": "OPTIONS, PUT"}
        if "x-forwarded-for" in headers:  # a proxy between: the token is not for whoever asks
            return 403, b"", {}
        ttl = headers.get(TTL_HEADER.lower(), "")
        if not ttl.isdecimal() or not 1 <= int(ttl) <= TTL_S_MAX:
            return 400, b"", {}
        token = secrets.token_urlsafe(40)
        self._tokens[token] = self.clock() + int(ttl)
        return 200, token.encode(), {TTL_HEADER: ttl}


def pages(facts: MetadataFacts) -> dict[str, bytes]:
    """What can be read now, by path; everything else is a 404."""
    values = {
        "ami-id": facts.image_id,
        "instance-id": facts.instance_id,
        "instance-life-cycle": facts.lifecycle,
        "instance-type": facts.instance_type,
        "local-ipv4": facts.local_ipv4,
        "public-ipv4": facts.public_ipv4,
        "placement/availability-zone": facts.zone,
        "placement/region": facts.region,
    }
    if facts.action:
        notice = {"action": facts.action, "time": iso(facts.action_at_s)}
        values["spot/instance-action"] = json.dumps(notice)
        if facts.action == "terminate":
            values["spot/termination-time"] = iso(facts.action_at_s)
    if facts.rebalance_s is not None:
        recommended = {"noticeTime": iso(facts.rebalance_s)}
        values["events/recommendations/rebalance"] = json.dumps(recommended)
    found = {f"/latest/meta-data/{name}": value.encode() for name, value in values.items() if value}
    identity = {
        "accountId": facts.account,
        "availabilityZone": facts.zone,
        "imageId": facts.image_id,
        "instanceId": facts.instance_id,
        "instanceType": facts.instance_type,
        "privateIp": facts.local_ipv4,
        "region": facts.region,
    }
    found["/latest/dynamic/instance-identity/document"] = json.dumps(identity).encode()
    found["/latest/meta-data"] = "\n".join(sorted(values)).encode()
    if facts.user_data:
        found["/latest/user-data"] = facts.user_data
    return found


def iso(at_s: float) -> str:
    """A time as the service writes it: whole seconds, UTC."""
    return datetime.fromtimestamp(at_s, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
