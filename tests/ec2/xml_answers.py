"""Writes the answers and errors of the Query and EC2 protocols as XML, by the operation's shape."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from xml.sax.saxutils import escape

from botocore.model import OperationModel

from ec2.replies import REQUEST_ID, AwsError, HttpReply


def xml_answer(operation: OperationModel, answer: Mapping[str, Any], *, ec2: bool) -> HttpReply:
    """The answer of an operation, in the envelope of its protocol."""
    shape = operation.output_shape
    body = _members(answer, shape) if shape is not None else ""
    name = operation.name
    namespace = operation.metadata.get("xmlNamespace", "")
    if ec2:
        text = f"{body}<requestId>{REQUEST_ID}</requestId>"
    else:
        wrapper = shape.serialization.get("resultWrapper", f"{name}Result") if shape else ""
        inner = f"<{wrapper}>{body}</{wrapper}>" if wrapper else ""
        text = f"{inner}<ResponseMetadata><RequestId>{REQUEST_ID}</RequestId></ResponseMetadata>"
    return _page(200, f'<{name}Response xmlns="{namespace}">{text}</{name}Response>')


def xml_error(error: AwsError, *, ec2: bool) -> HttpReply:
    """An error in the shape of its protocol."""
    words = f"<Code>{escape(error.code)}</Code><Message>{escape(error.message)}</Message>"
    if ec2:
        text = (
            f"<Response><Errors><Error>{words}</Error></Errors>"
            f"<RequestID>{REQUEST_ID}</RequestID></Response>"
        )
    else:
        side = "Receiver" if error.status >= 500 else "Sender"
        text = (
            f"<ErrorResponse><Error><Type>{side}</Type>{words}</Error>"
            f"<RequestId>{REQUEST_ID}</RequestId></ErrorResponse>"
        )
    return _page(error.status, text)


def _page(status: int, text: str) -> HttpReply:
    return HttpReply(
        status=status,
        body=f'<?xml version="1.0" encoding="UTF-8"?>\n{text}',
        headers={"Content-Type": "text/xml;charset=UTF-8", "x-amzn-RequestId": REQUEST_ID},
    )


def _members(value: Mapping[str, Any], shape: Any) -> str:
    return "".join(
        _element(str(shape.members[name].serialization.get("name", name)), one, shape.members[name])
        for name, one in value.items()
    )


def _element(name: str, value: Any, shape: Any) -> str:
    if shape.type_name == "list":
        inner = str(shape.member.serialization.get("name", "member"))
        if shape.serialization.get("flattened"):
            return "".join(_element(name, one, shape.member) for one in value)
        rows = "".join(_element(inner, one, shape.member) for one in value)
        return f"<{name}>{rows}</{name}>"
    if shape.type_name == "map":
        rows = "".join(
            f"<entry>{_element('key', key, shape.key)}{_element('value', one, shape.value)}</entry>"
            for key, one in value.items()
        )
        return f"<{name}>{rows}</{name}>"
    text = _members(value, shape) if shape.type_name == "structure" else escape(_text(value))
    return f"<{name}>{text}</{name}>"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        moment = value.astimezone(UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)
