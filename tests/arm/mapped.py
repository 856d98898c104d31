"""Strict reading of bodies whose SDK package still describes its models by maps of attributes."""

from __future__ import annotations

import types
from typing import Any

from arm.replies import ArmError

_PLAIN: dict[str, type] = {"str": str, "int": int, "bool": bool, "iso-8601": str}


def check_mapped(body: Any, model: str, models: types.ModuleType) -> None:
    """Refuse a body as ARM does: unknown members, wrong types, missing ones."""
    errors = schema_errors(body, model, models)
    if errors:
        raise ArmError(400, "InvalidRequestContent", f"Could not find member: {'; '.join(errors)}")


def schema_errors(body: Any, name: str, models: types.ModuleType, path: str = "$") -> list[str]:
    """Everything in `body` that the model does not admit; empty for a good one."""
    if not isinstance(body, dict):
        return [f"{path}: expected an object, not {type(body).__name__}"]
    model: Any = getattr(models, name)
    rules: dict[str, dict[str, Any]] = getattr(model, "_validation", {})
    members = {
        f"{path}.{described['key']}": (described["type"], rules.get(attribute, {}))
        for attribute, described in model._attribute_map.items()
    }
    values = _flat(body, members, path)
    errors = [f"{key}: unknown member of {name}" for key in values if key not in members]
    for key, (kind, rule) in members.items():
        if rule.get("required") and key not in values:
            errors.append(f"{key}: required member of {name} is missing")
        if key in values and not rule.get("readonly"):
            errors += _errors_in_value(values[key], kind, models, key)
    return errors


def _flat(body: dict[str, Any], members: dict[str, Any], path: str) -> dict[str, Any]:
    """The members with their paths; what the model describes below a member is taken apart."""
    found: dict[str, Any] = {}
    for key, value in body.items():
        here = f"{path}.{key}"
        below = any(one.startswith(f"{here}.") for one in members)
        found |= _flat(value, members, here) if below and isinstance(value, dict) else {here: value}
    return found


def _errors_in_value(value: Any, kind: str, models: types.ModuleType, path: str) -> list[str]:
    if value is None:
        return []
    if kind.startswith("["):
        if not isinstance(value, list):
            return [f"{path}: expected a list"]
        inner = [(f"{path}[{index}]", one) for index, one in enumerate(value)]
        return [f for at, one in inner for f in _errors_in_value(one, kind[1:-1], models, at)]
    if kind.startswith("{"):
        if not isinstance(value, dict):
            return [f"{path}: expected an object"]
        inner = [(f"{path}.{key}", one) for key, one in value.items()]
        return [f for at, one in inner for f in _errors_in_value(one, kind[1:-1], models, at)]
    plain = _PLAIN.get(kind)
    if plain is None:
        return schema_errors(value, kind, models, path) if hasattr(models, kind) else []
    good = isinstance(value, plain) and not (isinstance(value, bool) and plain is not bool)
    return [] if good else [f"{path}: expected {kind}, not {type(value).__name__}"]
