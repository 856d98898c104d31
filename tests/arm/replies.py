"""What a handler of the simulated cloud gets and gives: requests, replies, and ARM's errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request, decoded; kept for the tests to read afterwards."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""

    @property
    def version(self) -> str:
        """The api-version that was asked for."""
        return self.query.get("api-version", "")

    def header(self, name: str) -> str:
        """One header, empty if absent."""
        return self.headers.get(name.lower(), "")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer; `body` None means an empty one."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


class ArmError(Exception):
    """An answer in ARM's error shape."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: list[dict[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.details = details or []
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {"code", "message", "details"?}}`."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.details:
            error["details"] = self.details
        return {"error": error}

    def reply(self) -> Reply:
        """The error as an answer."""
        return Reply(status=self.status, body=self.body, headers=self.headers)


@dataclass(frozen=True, kw_only=True)
class Route:
    """A path of ARM, taken apart without regard to case."""

    subscription: str = ""
    group: str = ""
    namespace: str = ""
    types: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    action: str = ""
    """A trailing word after the last name, such as `start` or `instanceView`."""

    @property
    def type(self) -> str:
        """Such as `microsoft.compute/virtualmachines`."""
        return "/".join((self.namespace, *self.types))

    @property
    def name(self) -> str:
        """The last name as it was written; empty for a list."""
        return self.names[-1] if len(self.names) == len(self.types) and self.names else ""


def route_of(path: str) -> Route:
    """Take a path apart: `/subscriptions/S/resourceGroups/G/providers/NS/T/N[/T/N][/action]`."""
    found = re.match(
        r"(?i)^/subscriptions/(?P<sub>[^/]+)"
        r"(?:/resourcegroups(?:/(?P<group>[^/]+))?)?(?:/resources)?"
        r"(?:/providers/(?P<ns>[^/]+)(?P<rest>(?:/[^/]+)*))?/?$",
        path,
    )
    if not found or not found["ns"]:
        return Route(
            subscription=found["sub"] if found else "",
            group=(found["group"] or "") if found else "",
        )
    parts = [part for part in (found["rest"] or "").split("/") if part]
    action = parts.pop().lower() if len(parts) % 2 and len(parts) > 1 else ""
    return Route(
        subscription=found["sub"],
        group=found["group"] or "",
        namespace=found["ns"].lower(),
        types=tuple(part.lower() for part in parts[::2]),
        names=tuple(parts[1::2]),
        action=action,
    )
