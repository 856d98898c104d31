"""Filters and pages what the Describe calls of EC2 list, with EC2's refusals."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ec2.replies import AwsError
from ec2.resources import Ec2Resource

R = TypeVar("R")
Fields = Mapping[str, Callable[[Any], Iterable[Any]]]
"""How a resource's values for a filter are read, by the name of the filter."""
LEAST = 5
MOST = 1000


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as answers list them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def filtered(rows: Iterable[R], parameters: Mapping[str, Any], fields: Fields) -> list[R]:
    """The rows that match all filters, each by any of its values; `*` and `?` are wildcards."""
    found = list(rows)
    for one in parameters.get("Filters", []):
        name, values = one.get("Name", ""), one.get("Values", [])
        if not values:
            raise AwsError("InvalidParameterValue", f"The filter '{name}' has no value")
        read = _reader(name, fields)
        found = [row for row in found if any(_matches(value, values) for value in read(row))]
    return found


def _reader(name: str, fields: Fields) -> Callable[[Any], Iterable[Any]]:
    if name.startswith("tag:"):
        key = name.removeprefix("tag:")
        return lambda row: [row.tags[key]] if key in row.tags else []
    if name == "tag-key":
        return lambda row: row.tags.keys()
    if name == "tag-value":
        return lambda row: row.tags.values()
    if name not in fields:
        raise AwsError("InvalidParameterValue", f"The filter '{name}' is invalid")
    return fields[name]


def _matches(value: Any, patterns: Sequence[str]) -> bool:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return any(fnmatch.fnmatchcase(text, re.sub(r"\[", "[[]", one)) for one in patterns)


def chosen(
    rows: Sequence[Any],
    parameters: Mapping[str, Any],
    ids: str,
    *,
    missing: str,
    words: str,
    of: Callable[[Any], Ec2Resource] = lambda row: row,
) -> list[Any]:
    """The rows that the parameter `ids` names, or all; an id that is not there is an error."""
    wanted = parameters.get(ids)
    if not wanted:
        return list(rows)
    if parameters.get("MaxResults") is not None:
        message = f"The parameter {ids} cannot be used with the parameter maxResults"
        raise AwsError("InvalidParameterCombination", message)
    by_id = {of(row).id: row for row in rows}
    unknown = [one for one in wanted if one not in by_id]
    if unknown:
        many = len(unknown) > 1
        listed = ", ".join(unknown)
        verb = "do" if many else "does"
        raise AwsError(missing, f"The {words}{'s' * many} '{listed}' {verb} not exist")
    return [by_id[one] for one in dict.fromkeys(wanted)]


def page(
    rows: Sequence[Any], parameters: Mapping[str, Any], key: str, *, least: int = LEAST
) -> dict[str, Any]:
    """One page of an answer, with the token of the next one if there is more."""
    size = parameters.get("MaxResults")
    if size is not None and not least <= size <= MOST:
        raise AwsError(
            "InvalidParameterValue",
            f"Value ( {size} ) for parameter maxResults is invalid. Expecting a value between "
            f"{least} and {MOST}.",
        )
    token = parameters.get("NextToken") or "page-0"
    found = re.fullmatch(r"page-(\d+)", token)
    if found is None:
        raise AwsError("InvalidNextToken", f"The token '{token}' is invalid")
    begin = int(found[1])
    end = len(rows) if size is None else begin + size
    answer: dict[str, Any] = {key: list(rows[begin:end])}
    if end < len(rows):
        answer["NextToken"] = f"page-{end}"
    return answer
