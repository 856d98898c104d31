"""Checks values by a shape of botocore's models: members, enums, patterns, lengths and ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from botocore.model import Shape

NUMBERS: dict[str, tuple[type[float], ...]] = {
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
}


def problems(value: Any, shape: Shape, at: str = "") -> list[str]:
    """List everything in which a value differs from its shape; empty if nothing does."""
    match shape.type_name:
        case "structure":
            return _structure(value, shape, at)
        case "list":
            if not isinstance(value, list):
                return [f"{at} is no list"]
            rows = [
                line
                for i, one in enumerate(value, 1)
                for line in problems(one, shape.member, f"{at}.{i}")
            ]
            return rows + _size(len(value), shape, at)
        case "map":
            if not isinstance(value, Mapping):
                return [f"{at} is no map"]
            return [
                line
                for key, one in value.items()
                for line in (*problems(key, shape.key, at), *problems(one, shape.value, at))
            ]
        case "string" | "character":
            return _text(value, shape, at)
        case "boolean":
            return [] if isinstance(value, bool) else [f"{at} is no boolean"]
        case "timestamp":
            return [] if isinstance(value, datetime) else [f"{at} is no time"]
        case "blob":
            return [] if isinstance(value, (bytes, str)) else [f"{at} is no blob"]
        case number:
            kinds = NUMBERS[number]
            if isinstance(value, bool) or not isinstance(value, kinds):
                return [f"{at} is no {number}"]
            return _size(value, shape, at)


def _structure(value: Any, shape: Any, at: str) -> list[str]:
    if not isinstance(value, Mapping):
        return [f"{at} is no structure"]
    prefix = f"{at}." if at else ""
    missing = [f"{prefix}{name} is missing" for name in shape.required_members if name not in value]
    unknown = [f"{prefix}{name} is not recognized" for name in value if name not in shape.members]
    inner = [
        line
        for name, one in value.items()
        if name in shape.members
        for line in problems(one, shape.members[name], f"{prefix}{name}")
    ]
    return missing + unknown + inner


def _text(value: Any, shape: Any, at: str) -> list[str]:
    if not isinstance(value, str):
        return [f"{at} is no text"]
    if shape.enum and value not in shape.enum:
        return [f"{at}: '{value}' is none of the {len(shape.enum)} values that the model has"]
    pattern = shape.metadata.get("pattern")
    if pattern and not re.search(_python(pattern), value):
        return [f"{at}: '{value}' does not match {pattern}"]
    return _size(len(value), shape, at)


def _size(size: float, shape: Shape, at: str) -> list[str]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if low is not None and size < low:
        return [f"{at} is below the minimum of {low}"]
    if high is not None and size > high:
        return [f"{at} is above the maximum of {high}"]
    return []


def _python(pattern: str) -> str:
    """A pattern of the models, matched as a whole, in Python's dialect of expressions."""
    classes = {r"\p{L}": "a-zA-Z", r"\p{Z}": r"\s", r"\p{N}": "0-9", r"\p{P}": r"!-/:-@\[-`{-~"}
    for theirs, ours in classes.items():
        pattern = pattern.replace(theirs, ours)
    return f"^(?:{pattern})$"
