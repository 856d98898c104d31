"""Reads EC2's interruption notices and rebalance recommendations, by IMDSv2.

A notice comes about two minutes ahead, where it comes at all ("best effort"). A recommendation may
come earlier, or with it, or without it. Each is a document that answers 404 while there is none:
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import ClassVar

from trainer.notices.metadata import ANSWER_BYTES_MAX, Announced, StatusError, read_url
from trainer.untrusted import parse

TOKEN_PATH = "/latest/api/token"  # noqa: S105 - a path
INTERRUPTION_PATH = "/latest/meta-data/spot/instance-action"
REBALANCE_PATH = "/latest/meta-data/events/recommendations/rebalance"
TOKEN_S = 21600  # the longest life that IMDSv2 gives a token
TOKEN_RENEWAL_S = 10800.0
TOKEN = re.compile(rb"[\x21-\x7e]{1,1024}")
ACTIONS = {"stop", "terminate", "hibernate"}
NOTICE_S = 120.0  # EC2's documented notice: assumed if it tells no time, and never exceeded
OVER_S = 600.0
"""A notice whose time has passed for so long was of an interruption that is over, or never came:
the machine still runs. Taken for the end, it would stop every trainer that is started here."""


class AwsNotices:
    """The notices of one EC2 instance; renews its session token by itself."""

    first_call_s_max: ClassVar[float] = 10.0

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url.rstrip("/")
        self._clock = clock
        self._token = ""
        self._token_s = 0.0

    def announced(self, now: datetime, *, timeout_s: float) -> Announced:
        """Ask once for a notice and, if there is none, for a recommendation."""
        notice = self._document(INTERRUPTION_PATH, timeout_s)
        seconds_left = None if notice is None else interruption_in(notice, now)
        if seconds_left is not None:
            return Announced(seconds_left=seconds_left)
        return Announced(rebalance=recommends_rebalance(self._document(REBALANCE_PATH, timeout_s)))

    def _document(self, path: str, timeout_s: float) -> object:
        """Return the document at `path`, None if there is none."""
        try:
            return self._read(path, timeout_s)
        except StatusError as error:
            if error.status == 404:
                return None
            if error.status != 401:
                raise
        self._token = ""  # it is not accepted any more: once more, with a new one
        try:
            return self._read(path, timeout_s)
        except StatusError as error:
            if error.status == 404:
                return None
            raise

    def _read(self, path: str, timeout_s: float) -> object:
        headers = {"X-aws-ec2-metadata-token": self._session_token(timeout_s)}
        body = read_url(self._url + path, headers=headers, timeout_s=timeout_s)
        return parse(body, bytes_max=ANSWER_BYTES_MAX)

    def _session_token(self, timeout_s: float) -> str:
        """Return a session token, a new one if there is none or it is old."""
        if not self._token or self._clock() - self._token_s > TOKEN_RENEWAL_S:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}
            url = self._url + TOKEN_PATH
            answer = read_url(url, headers=headers, timeout_s=timeout_s, method="PUT").strip()
            if not TOKEN.fullmatch(answer):
                raise ValueError(f"`{url}` answers with no token")
            self._token, self._token_s = answer.decode("ascii"), self._clock()
        return self._token


def interruption_in(document: object, now: datetime) -> float | None:
    """Return the seconds until the instance is interrupted, or None if that is not announced.

    Between 0 and EC2's two minutes: a missing or unreadable time is taken as those two minutes, one
    just past as zero, and a far one is bounded, because the clock of the machine may be wrong. An
    action that EC2 does not document is none, and neither is one that is long past.
    """
    if not isinstance(document, Mapping) or str(document.get("action")) not in ACTIONS:
        return None
    try:
        moment = datetime.fromisoformat(str(document.get("time")))
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        left_s = (aware - now).total_seconds()
    except (ValueError, OverflowError):
        return NOTICE_S
    return None if left_s < -OVER_S else min(max(0.0, left_s), NOTICE_S)


def recommends_rebalance(document: object) -> bool:
    """Whether this is a recommendation to leave the machine; what is in it is of no use."""
    return isinstance(document, Mapping) and "noticeTime" in document
