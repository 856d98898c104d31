"""Reads the form of a Query or EC2 request into a dictionary, by the shape of its operation."""

from __future__ import annotations

import urllib.parse
from datetime import UTC, datetime
from typing import Any

from botocore.model import Shape

from ec2.replies import AwsError

Tree = dict[str, Any]
ENVELOPE = {"Action", "Version"}


def parse_form(body: str, shape: Shape | None, *, ec2: bool) -> dict[str, Any]:
    """The parameters of a request, by the names of the model; unknown ones raise `AwsError`."""
    fields = dict(urllib.parse.parse_qsl(body, keep_blank_values=True))
    tree: Tree = {}
    for name, value in fields.items():
        if name in ENVELOPE:
            continue
        _put(tree, name.split("."), value)
    if shape is None:
        _refuse(tree)
        return {}
    return dict(_structure(tree, shape, "", ec2=ec2))


def _put(tree: Tree, parts: list[str], value: str) -> None:
    for part in parts[:-1]:
        below = tree.setdefault(part, {})
        if not isinstance(below, dict):
            raise AwsError("MalformedQueryString", f"{part} is both a value and a structure.")
        tree = below
    tree[parts[-1]] = value


def _refuse(names: Any, at: str = "") -> None:
    for name in names:
        raise AwsError("UnknownParameter", f"The parameter {at}{name} is not recognized")


def _name(member: Shape, default: str, *, ec2: bool) -> str:
    """The name of a member in the form."""
    serialization = member.serialization
    if ec2:
        if "queryName" in serialization:
            return str(serialization["queryName"])
        name = str(serialization.get("name", ""))
        return name[:1].upper() + name[1:] if name else default
    if member.type_name == "list" and serialization.get("flattened"):
        inner = member.member.serialization.get("name")
        return str(inner or serialization.get("name", default))
    return str(serialization.get("name", default))


def _structure(tree: Any, shape: Any, at: str, *, ec2: bool) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise AwsError("InvalidParameterValue", f"{at} is a structure.")
    left = dict(tree)
    made: dict[str, Any] = {}
    for name, member in shape.members.items():
        key = _name(member, name, ec2=ec2)
        if key in left:
            made[name] = _value(left.pop(key), member, f"{at}{key}", ec2=ec2)
    _refuse(left, at)
    return made


def _value(tree: Any, shape: Any, at: str, *, ec2: bool) -> Any:
    match shape.type_name:
        case "structure":
            return _structure(tree, shape, f"{at}.", ec2=ec2)
        case "list":
            return _list(tree, shape, at, ec2=ec2)
        case "map":
            return _map(tree, shape, at, ec2=ec2)
    if isinstance(tree, dict):
        raise AwsError("UnknownParameter", f"The parameter {at} has no members")
    return scalar(tree, shape, at)


def _list(tree: Any, shape: Any, at: str, *, ec2: bool) -> list[Any]:
    if tree == "":
        return []
    if not ec2 and not shape.serialization.get("flattened"):
        inner = shape.member.serialization.get("name", "member")
        if not isinstance(tree, dict) or set(tree) != {inner}:
            raise AwsError("UnknownParameter", f"The parameter {at} is a list of {inner}")
        tree = tree[inner]
    return [_value(tree[key], shape.member, f"{at}.{key}", ec2=ec2) for key in _numbered(tree, at)]


def _map(tree: Any, shape: Any, at: str, *, ec2: bool) -> dict[str, Any]:
    rows = tree if shape.serialization.get("flattened") else tree.get("entry", {})
    key_name = shape.key.serialization.get("name", "key")
    value_name = shape.value.serialization.get("name", "value")
    return {
        rows[i][key_name]: _value(rows[i][value_name], shape.value, f"{at}.{i}", ec2=ec2)
        for i in _numbered(rows, at)
    }


def _numbered(tree: Any, at: str) -> list[str]:
    """The keys of a list: 1, 2, 3 … without a gap."""
    if not isinstance(tree, dict):
        raise AwsError("InvalidParameterValue", f"{at} is a list.")
    keys = [str(i) for i in range(1, len(tree) + 1)]
    if set(keys) != set(tree):
        raise AwsError("InvalidParameterValue", f"{at} is not numbered from 1.")
    return keys


def scalar(text: str, shape: Shape, at: str) -> Any:
    """One value of a form or of a path by its shape."""
    try:
        match shape.type_name:
            case "boolean":
                return {"true": True, "false": False}[text.lower()]
            case "integer" | "long":
                return int(text)
            case "float" | "double":
                return float(text)
            case "timestamp":
                return parse_time(text)
    except (KeyError, ValueError) as error:
        message = f"Value ({text}) for parameter {at} is invalid."
        raise AwsError("InvalidParameterValue", message) from error
    return text


def parse_time(text: str) -> datetime:
    """A time as requests write it: ISO 8601 in UTC, or seconds since 1970."""
    if text.replace(".", "", 1).isdecimal():
        return datetime.fromtimestamp(float(text), tz=UTC)
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
