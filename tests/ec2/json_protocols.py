"""Reads and writes the JSON protocols of AWS: JSON 1.x and REST-JSON, by the operation's shape."""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from botocore.model import OperationModel, ServiceModel

from ec2.forms import parse_time, scalar
from ec2.replies import REQUEST_ID, AwsError, HttpReply, HttpRequest


def parse_json(request: HttpRequest, operation: OperationModel) -> dict[str, Any]:
    """The parameters of a JSON 1.x request."""
    found = _object(request.body)
    return dict(_read(found, operation.input_shape)) if operation.input_shape else {}


def parse_rest(
    request: HttpRequest, operation: OperationModel, labels: Mapping[str, str]
) -> dict[str, Any]:
    """The parameters of a REST-JSON request: from the path, the query string and the body."""
    shape = operation.input_shape
    if shape is None:
        return {}
    made: dict[str, Any] = {}
    names: dict[str, str] = {}
    query = dict(request.query)
    for name, member in shape.members.items():
        where, key = member.serialization.get("location"), member.serialization.get("name", name)
        if where == "uri":
            made[name] = scalar(labels[key], member, name)
        elif where == "querystring":
            if key in query:
                made[name] = scalar(query.pop(key), member, name)
        else:
            names[key] = name
    body = _object(request.body) if request.body else {}
    for key, value in body.items():
        if key not in names:
            raise AwsError("ValidationException", f"{key} is not recognized")
        made[names[key]] = _read(value, shape.members[names[key]])
    if query:
        raise AwsError("ValidationException", f"{sorted(query)} are not recognized")
    return made


def find_rest(model: ServiceModel, request: HttpRequest) -> tuple[str, dict[str, str]]:
    """The operation that a method and a path mean, and the labels in the path."""
    for name in model.operation_names:
        http = model.operation_model(name).http
        pattern = re.sub(r"\\\{(\w+)(?:\\\+)?\\\}", r"(?P<\1>[^/]+)", re.escape(http["requestUri"]))
        found = re.fullmatch(pattern, request.path)
        if found and http["method"] == request.method:
            labels = {key: urllib.parse.unquote(one) for key, one in found.groupdict().items()}
            return name, labels
    raise AwsError("UnknownOperationException", f"{request.method} {request.path}", status=404)


def json_answer(operation: OperationModel, answer: Mapping[str, Any]) -> HttpReply:
    """The answer of an operation; a member with `statusCode` as its location is the status."""
    shape = operation.output_shape
    status = int(operation.http.get("responseCode", 200))
    body = _write(answer, shape) if shape is not None else {}
    return _page(status, body)


def json_error(error: AwsError) -> HttpReply:
    """An error in the shape of the JSON protocols."""
    body = {"__type": error.code, "message": error.message, **error.members}
    return _page(error.status, body, {"x-amzn-ErrorType": error.code})


def _page(status: int, body: Any, more: Mapping[str, str] | None = None) -> HttpReply:
    headers = {"Content-Type": "application/json", "x-amzn-RequestId": REQUEST_ID, **(more or {})}
    return HttpReply(status=status, body=json.dumps(body), headers=headers)


def _object(body: str) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except json.JSONDecodeError as error:
        raise AwsError("SerializationException", "The body is no JSON.") from error
    if not isinstance(found, dict):
        raise AwsError("SerializationException", "The body is no JSON object.")
    return found


def _key(shape: Any, name: str) -> str:
    return str(shape.members[name].serialization.get("name", name))


def _read(value: Any, shape: Any) -> Any:
    if shape.type_name == "structure" and isinstance(value, dict):
        names = {_key(shape, name): name for name in shape.members}
        for key in value:
            if key not in names:
                raise AwsError("ValidationException", f"{key} is not recognized")
        return {names[key]: _read(one, shape.members[names[key]]) for key, one in value.items()}
    if shape.type_name == "list" and isinstance(value, list):
        return [_read(one, shape.member) for one in value]
    if shape.type_name == "map" and isinstance(value, dict):
        return {key: _read(one, shape.value) for key, one in value.items()}
    if shape.type_name == "timestamp":
        return parse_time(str(value))
    return base64.b64decode(value) if shape.type_name == "blob" else value


def _write(value: Any, shape: Any) -> Any:
    if shape.type_name == "structure":
        return {_key(shape, name): _write(one, shape.members[name]) for name, one in value.items()}
    if shape.type_name == "list":
        return [_write(one, shape.member) for one in value]
    if shape.type_name == "map":
        return {key: _write(one, shape.value) for key, one in value.items()}
    if isinstance(value, datetime):
        return value.timestamp()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value
