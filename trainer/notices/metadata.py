"""Reads from an instance-metadata service, and defines what its vendor's API is asked for.

What answers there is a stranger: no proxy and no redirect is followed, and size and time of an
answer are limited.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPResponse
from typing import ClassVar, Protocol

ANSWER_BYTES_MAX = 1 << 20
CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Announced:
    """What a metadata service announces at one time."""

    seconds_left: float | None = None
    """Seconds until the machine is taken away, 0 or more; None if that is not announced."""
    rebalance: bool = False
    """Whether the vendor recommends to leave this machine, which may or may not be taken."""


class NoticeApi(Protocol):
    """How one vendor announces the end of a machine."""

    first_call_s_max: ClassVar[float]
    """How long the first answer may take, in seconds."""

    def announced(self, now: datetime, *, timeout_s: float) -> Announced:
        """Ask once what is announced; `now` is the machine's own time.

        Raises OSError (also a time-out, or a status that refuses), `http.client.HTTPException`, or
        ValueError (what was answered cannot be read).
        """


class StatusError(OSError):
    """The service answered with another status than 200; `status` is its number."""

    def __init__(self, url: str, status: int) -> None:
        super().__init__(f"`{url}` answers with HTTP status {status}")
        self.status = status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the headers of a request are for the metadata service alone."""

    def redirect_request(self, *_arguments: object, **_named: object) -> None:
        """Make no second request; the first one then ends with the status of the redirect."""


def read_url(
    url: str, *, headers: Mapping[str, str], timeout_s: float, method: str = "GET"
) -> bytes:
    """Return the body that a metadata service answers with, never through a proxy.

    Raises `StatusError` for a status that is not 200, OSError (also if the whole answer takes
    longer than `timeout_s`), `http.client.HTTPException`, or ValueError for a body of more than
    `ANSWER_BYTES_MAX`.
    """
    ends_s = time.monotonic() + timeout_s
    request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310 - link-local
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            if answer.status != 200:
                raise StatusError(url, answer.status)
            return _body(url, answer, ends_s)
    except urllib.error.HTTPError as error:
        error.close()
        raise StatusError(url, error.code) from error


def _body(url: str, answer: HTTPResponse, ends_s: float) -> bytes:
    body = bytearray()
    while chunk := answer.read1(CHUNK_BYTES):
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            raise ValueError(f"`{url}` answers with more than {ANSWER_BYTES_MAX} bytes")
        if time.monotonic() > ends_s:  # one byte now and then would never be a time-out
            raise TimeoutError(f"the answer of `{url}` takes too long")
    return bytes(body)
