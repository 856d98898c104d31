"""Reads policies as IAM does, as far as they are played: statements, resources, conditions."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

CONDITIONS = ("Null", "StringEquals", "StringLike", "ArnEquals", "ArnLike")
"""The operators of conditions that are played; others are refused."""


def allowed(
    policies: Sequence[Mapping[str, Any]], action: str, arn: str, context: Mapping[str, str]
) -> bool:
    """Whether policies allow an action on a resource; what none allows is denied."""
    effects = [
        one["Effect"]
        for policy in policies
        for one in listed(policy["Statement"])
        if any(matches(action, wanted) for wanted in listed(one["Action"]))
        and any(matches(arn, wanted) for wanted in listed(one["Resource"]))
        and conditions_hold(one.get("Condition", {}), context)
    ]
    return "Allow" in effects and "Deny" not in effects


def matches(text: str, pattern: str) -> bool:
    """Whether a name fits one with wildcards, in any case."""
    return fnmatch.fnmatchcase(text.lower(), pattern.lower())


def conditions_hold(conditions: Mapping[str, Any], context: Mapping[str, str]) -> bool:
    """Whether all conditions of a statement hold for what is true of a request."""
    return all(
        _holds(operator, context.get(key), [str(one) for one in listed(wanted)])
        for operator, rows in conditions.items()
        for key, wanted in rows.items()
    )


def _holds(operator: str, value: str | None, wanted: Sequence[str]) -> bool:
    if operator not in CONDITIONS:
        raise NotImplementedError(f"the condition {operator} is not played")
    if operator == "Null":
        return (value is None) == (wanted[0].lower() == "true")
    if value is None:
        return False
    if operator == "StringEquals":
        return value in wanted
    return any(fnmatch.fnmatchcase(value, one) for one in wanted)


def listed(value: Any) -> list[Any]:
    """A value, or all of them: policies leave out the brackets of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]
