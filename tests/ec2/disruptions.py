"""Disruptions in the words of AWS: throttling, its own errors, empty bodies, a proxy's page.

`call` is what they match: a regular expression over routes such as `/ec2/us-east-1/RunInstances`.
"""

from __future__ import annotations

from arm.disruptions import Disruption, DisruptionKind
from arm.replies import Reply

from ec2.json_protocols import json_error
from ec2.replies import AwsError, HttpReply
from ec2.xml_answers import xml_error

PROXY_PAGE = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
XML_SERVICES = ("/ec2/", "/sts/", "/iam/")


def refused(error: AwsError, *, call: str = "", times: int = 1, skip: int = 0) -> Disruption:
    """An error of AWS in the protocol of the service with which `call` begins, EC2's without."""
    json = call.startswith("/") and not call.startswith(XML_SERVICES)
    reply = json_error(error) if json else xml_error(error, ec2=not call.startswith("/sts/"))
    return _answer(reply, call, times, skip)


def throttled(*, call: str = "", times: int = 1, skip: int = 0) -> Disruption:
    """503 as EC2 sends it, without `Retry-After`."""
    error = AwsError("RequestLimitExceeded", "Request limit exceeded.", status=503)
    return refused(error, call=call, times=times, skip=skip)


def internal_error(*, call: str = "", times: int = 1, skip: int = 0) -> Disruption:
    """500 as EC2 sends it."""
    error = AwsError("InternalError", "An internal error has occurred", status=500)
    return refused(error, call=call, times=times, skip=skip)


def proxy_page(*, call: str = "", times: int = 1, status: int = 502) -> Disruption:
    """A proxy answers with a page instead of AWS."""
    page = HttpReply(status=status, body=PROXY_PAGE, headers={"Content-Type": "text/html"})
    return _answer(page, call, times)


def unreadable_page(*, call: str = "", times: int = 1) -> Disruption:
    """A proxy's page with status 200, which botocore's parser cannot read."""
    return proxy_page(call=call, times=times, status=200)


def empty_answer(*, call: str = "", times: int = 1, status: int = 200) -> Disruption:
    """An answer without a body."""
    return _answer(HttpReply(status=status), call, times)


def dropped(*, call: str = "", times: int = 1, skip: int = 0, done: bool = False) -> Disruption:
    """A connection that breaks before the request is carried out, or after it is `done`."""
    kind = DisruptionKind.DROP_AFTER if done else DisruptionKind.DROP_BEFORE
    return Disruption(kind=kind, path=call, times=times, skip=skip)


def _answer(reply: HttpReply, call: str, times: int, skip: int = 0) -> Disruption:
    canned = Reply(status=reply.status, body=reply.body, headers=reply.headers)
    kind = DisruptionKind.ANSWER
    return Disruption(kind=kind, path=call, times=times, skip=skip, reply=canned)
