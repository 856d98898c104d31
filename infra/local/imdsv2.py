"""Serves a local machine's instance metadata as EC2 does: IMDSv2, tokens required."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

TOKEN_PATH = "/latest/api/token"  # noqa: S105  (a path)
DATA_PATH = "/latest/meta-data/"
TTL_HEADER = "x-aws-ec2-metadata-token-ttl-seconds"
TOKEN_HEADER = "x-aws-ec2-metadata-token"  # noqa: S105  (a name)
TTL_S_MAX = 21600


@dataclass(kw_only=True)
class Imdsv2:
    """The metadata of one instance; what is not announced does not exist there."""

    compute: Mapping[str, str]
    clock: Callable[[], float]
    """Seconds since 1970."""
    _tokens: dict[str, float] = field(default_factory=dict)
    """When each token ends."""
    _interruption: dict[str, str] | None = None

    def announce_interruption(self, notice_s: float) -> None:
        """Announce that the instance will be stopped in `notice_s` seconds."""
        when = datetime.fromtimestamp(self.clock() + notice_s, UTC)
        self._interruption = {"action": "stop", "time": f"{when:%Y-%m-%dT%H:%M:%SZ}"}

    def answer(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[HTTPStatus, Any]:
        """Choose the reply; the names of `headers` are in lower case."""
        if path == TOKEN_PATH:
            return self._new_token(method, headers.get(TTL_HEADER, ""))
        if self._tokens.get(headers.get(TOKEN_HEADER, ""), 0.0) <= self.clock():
            return HTTPStatus.UNAUTHORIZED, ""
        if method != "GET":
            return HTTPStatus.METHOD_NOT_ALLOWED, ""
        found = self._data(path.removeprefix(DATA_PATH)) if path.startswith(DATA_PATH) else None
        return (HTTPStatus.NOT_FOUND, "") if found is None else (HTTPStatus.OK, found)

    def _new_token(self, method: str, ttl: str) -> tuple[HTTPStatus, Any]:
        if method != "PUT":
            return HTTPStatus.METHOD_NOT_ALLOWED, ""
        if not ttl.isdecimal() or not 1 <= int(ttl) <= TTL_S_MAX:
            return HTTPStatus.BAD_REQUEST, ""
        now_s = self.clock()
        self._tokens = {token: end_s for token, end_s in self._tokens.items() if end_s > now_s}
        token = secrets.token_urlsafe(40)
        self._tokens[token] = now_s + int(ttl)
        return HTTPStatus.OK, token

    def _data(self, name: str) -> Any:
        """Return a document (a table) or a value (a text); None for what is not there."""
        if name == "spot/instance-action":
            return self._interruption
        values = {
            "instance-id": "vmId",
            "instance-type": "vmSize",
            "placement/region": "location",
        }
        return self.compute.get(values.get(name, ""))
