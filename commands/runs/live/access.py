"""Decides which requests the live page answers; pure.

A page of another site can make a browser ask this computer's ports: its requests carry another
`Host` (where it let its name point here), or say `cross-site`, and do not know the token. Other
users of this computer reach the port, too, and do not know the token either.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

VERSION_DIGITS_MAX = 15


class Route(Enum):
    """What can be asked for."""

    PAGE = ""
    EVENTS = "events"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What decides of a request; headers as often as they were sent."""

    method: str
    target: str
    hosts: Sequence[str]
    fetch_sites: Sequence[str] = ()
    origins: Sequence[str] = ()


def route(request: Request, *, token: str, port: int) -> Route | HTTPStatus:
    """Return what is asked for, or the status with which it is refused."""
    names = [f"127.0.0.1:{port}", f"localhost:{port}"]
    if len(request.hosts) != 1 or request.hosts[0].lower() not in names:
        return HTTPStatus.MISDIRECTED_REQUEST
    if request.method != "GET":
        return HTTPStatus.METHOD_NOT_ALLOWED
    if not {"same-origin", "none"}.issuperset(request.fetch_sites):
        return HTTPStatus.FORBIDDEN
    if any(
        origin.lower() not in {f"http://{name}" for name in names} for origin in request.origins
    ):
        return HTTPStatus.FORBIDDEN
    _, _, path = request.target.partition("?")[0].partition("/")
    given, _, rest = path.partition("/")
    # Compared first, and in constant time: what else is right of a path tells nothing.
    if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode()):
        return HTTPStatus.NOT_FOUND
    if "/" not in path or rest not in {one.value for one in Route}:
        return HTTPStatus.NOT_FOUND
    return Route(rest)


def version_of(target: str, last_event_id: str | None) -> int:
    """Return the version that a browser says it has; 0 if it says none that could be one.

    A browser that connects anew names the last event it got; it counts more than the address,
    which is that of the page as it was loaded.
    """
    query = parse_qs(urlsplit(target).query).get("since", [""])[-1]
    for word in (last_event_id or "", query):
        if word.isascii() and word.isdigit() and len(word) <= VERSION_DIGITS_MAX:
            return int(word)
    return 0
