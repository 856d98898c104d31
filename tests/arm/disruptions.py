"""Disruptions on demand: throttling, server errors, broken connections, slow answers."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from enum import StrEnum

from arm.replies import Reply, Request


class DisruptionKind(StrEnum):
    """How one request can be disrupted."""

    ANSWER = "answer"
    """An error instead of the answer; nothing happens behind it."""
    DROP_BEFORE = "drop before"
    """The connection breaks before anything happens."""
    DROP_AFTER = "drop after"
    """It happens, and the connection breaks before the answer."""
    SLOW = "slow"
    """The answer takes its time."""


@dataclass(kw_only=True)
class Disruption:
    """One disruption of some requests."""

    kind: DisruptionKind
    times: int = 1
    method: str = ""
    path: str = ""
    """A regular expression, searched for without regard to case."""
    skip: int = 0
    """How many matching requests go well first."""
    reply: Reply = field(default_factory=lambda: Reply(status=500, body=None))
    slow_s: float = 0.0
    """Real seconds."""
    enough: threading.Event = field(default_factory=threading.Event)
    """Set to let a slow answer go before its time."""

    def matches(self, request: Request) -> bool:
        """Whether it disrupts this request."""
        return (not self.method or self.method == request.method) and bool(
            re.search(self.path, request.path, re.IGNORECASE)
        )


@dataclass
class Disruptions:
    """The disruptions to come."""

    queue: list[Disruption] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, disruption: Disruption) -> None:
        """Queue a disruption."""
        with self._lock:
            self.queue.append(disruption)

    def take(self, request: Request) -> Disruption | None:
        """Take the disruption of this request, if any."""
        with self._lock:
            for disruption in self.queue:
                if not disruption.matches(request):
                    continue
                if disruption.skip > 0:
                    disruption.skip -= 1
                    return None
                disruption.times -= 1
                if disruption.times <= 0:
                    self.queue.remove(disruption)
                return disruption
        return None


def throttled(*, times: int = 1, retry_after_s: int | None = 7, method: str = "") -> Disruption:
    """429 as ARM sends it."""
    headers = {"x-ms-ratelimit-remaining-resource": "Microsoft.Compute/PutVM3Min;0"}
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    body = {
        "error": {
            "code": "TooManyRequests",
            "message": "The server rejected the request because too many requests have been "
            "received for this subscription.",
        }
    }
    reply = Reply(status=429, body=body, headers=headers)
    return Disruption(kind=DisruptionKind.ANSWER, times=times, method=method, reply=reply)
