"""The rules of EC2 for tags: how many, how long, and whose names they may not take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ec2.replies import AwsError

TAGS_MAX = 50
KEY_CHARS_MAX = 127
VALUE_CHARS_MAX = 256


def check_tags(tags: Sequence[Mapping[str, Any]], *, present: int = 0) -> None:
    """Refuse tags that a resource with `present` other tags cannot have."""
    keys = [str(tag.get("Key", "")) for tag in tags]
    if len(set(keys)) != len(keys):
        raise AwsError("InvalidParameterValue", "Duplicate tag keys found. Please note that Tag")
    if len(keys) + present > TAGS_MAX:
        raise AwsError("TagLimitExceeded", "The maximum number of tags per resource is 50")
    for tag in tags:
        key, value = str(tag.get("Key", "")), str(tag.get("Value", ""))
        if not 0 < len(key) <= KEY_CHARS_MAX:
            message = f"Tag key exceeds the maximum length of {KEY_CHARS_MAX} characters"
            raise AwsError("InvalidParameterValue", message if key else "Tag key cannot be empty")
        if key.lower().startswith("aws:"):
            message = f"Value ( {key} ) for parameter key is invalid. Tag keys starting with"
            raise AwsError("InvalidParameterValue", f"{message} 'aws:' are reserved")
        if len(value) > VALUE_CHARS_MAX:
            message = f"Tag value exceeds the maximum length of {VALUE_CHARS_MAX} characters"
            raise AwsError("InvalidParameterValue", message)


def check_specifications(parameters: Mapping[str, Any], *kinds: str) -> None:
    """Refuse tags at birth for what the call does not make, and tags that break the rules."""
    seen = set()
    for row in parameters.get("TagSpecifications", []):
        kind = row.get("ResourceType", "")
        if kind not in kinds:
            message = f"'{kind}' is not a valid taggable resource type for this operation."
            raise AwsError("InvalidParameterValue", message)
        if kind in seen:
            message = f"Tag specification resource type '{kind}' is duplicated"
            raise AwsError("InvalidParameterValue", message)
        seen.add(kind)
        if not row.get("Tags"):
            raise AwsError("InvalidParameterValue", "Tag specification must have at least one tag")
        check_tags(row["Tags"])
