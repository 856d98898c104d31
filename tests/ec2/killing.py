"""A client that dies before or after a chosen request, as `kill -9` would have it."""

from __future__ import annotations

from typing import Any

import botocore.session
from arm.killing import KilledError
from botocore.awsrequest import AWSPreparedRequest
from botocore.httpsession import URLLib3Session

__all__ = ["KilledError", "Killer"]


class Killer:
    """Dies around request number `at` (from 1) of the sessions it watches; with 0 it counts."""

    def __init__(self, *, at: int = 0, answered: bool = False) -> None:
        self.at = at
        self.answered = answered
        """Whether the request still reaches AWS, and only its answer is lost."""
        self.sent: list[str] = []
        """The operation of each request so far, such as `ec2.RunInstances`."""

    def watch(self, session: botocore.session.Session) -> None:
        """Watch the requests of a session, of every client that it makes."""
        session.register("before-send", self._before_send)

    def _before_send(self, request: AWSPreparedRequest, event_name: str, **_: Any) -> None:
        self.sent.append(event_name.removeprefix("before-send."))
        if len(self.sent) != self.at:
            return
        if self.answered:
            sender = URLLib3Session()
            try:
                sender.send(request)
            finally:
                sender.close()
        raise KilledError
