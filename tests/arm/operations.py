"""What Azure Resource Manager answers at all: every operation of the SDK's management packages.

Read from the installed packages and never from the code that is judged here: which path exists, for
which method, and under which api-versions. A path for which a package has an operation, or a type
that one knows, is admitted with the versions that the package sends, and with no others.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from arm.replies import ArmError, Request

PACKAGES = {
    "": ("resource/resources", "resource/subscriptions"),
    "microsoft.authorization": ("authorization",),
    "microsoft.compute": ("compute", "computerecommender"),
    "microsoft.devtestlab": ("devtestlabs",),
    "microsoft.insights": ("monitor",),
    "microsoft.network": ("network",),
    "microsoft.resourcegraph": ("resourcegraph",),
}
"""Where the operations of a namespace stand under `azure/mgmt`; the empty one is ARM's own."""
VERSION = r"20\d\d-\d\d-\d\d(?:-preview)?"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation: what a request for it looks like."""

    method: str
    template: str
    """The path with `{names}` in it."""
    version: str

    @property
    def type(self) -> str:
        """The resource type in lower case, such as `microsoft.compute/disks`."""
        return type_of(self.template)

    def matches(self, request: Request) -> bool:
        """Whether a request asks for this operation, in any case."""
        same = request.method == self.method
        return same and bool(_pattern(self.template).fullmatch(request.path.rstrip("/")))


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    words = re.split(r"(\{[^}]+\})", template.rstrip("/"))
    inner = [
        (r".+" if word == "{scope}" else r"[^/]+") if word.startswith("{") else re.escape(word)
        for word in words
    ]
    return re.compile("".join(inner), re.IGNORECASE)


@functools.cache
def operations(namespace: str) -> tuple[Operation, ...]:
    """Every operation that the installed packages know of a namespace (in lower case)."""
    found = importlib.util.find_spec("azure.mgmt.core")
    assert found is not None
    assert found.origin is not None
    root = Path(found.origin).parent.parent
    return tuple(
        one
        for package in PACKAGES.get(namespace, ())
        for path in sorted((root / package).glob("**/operations/_*operations.py"))
        if "aio" not in path.parts
        for one in _in_file(path.read_text(encoding="utf-8"))
    )


def _in_file(text: str) -> Iterator[Operation]:
    """The operations that a module of the SDK builds requests for."""
    for part in re.split(r"\n(?=def |class )", text):
        version = re.search(rf'"api-version", "({VERSION})"', part)
        path = re.search(r'(?:_url = |"template_url",)\s*(?:\(\s*)?"(/[^"]*)"', part)
        method = re.search(r'HttpRequest\(\s*method="([A-Z]+)"', part)
        if part.startswith("def build_") and version and path and method:
            yield Operation(method=method[1], template=path[1], version=version[1])


def type_of(path: str) -> str:
    """The resource type that a path or a template speaks of, in lower case."""
    _, found, rest = path.strip("/").lower().rpartition("providers/")
    if not found:
        below = "resourcegroups" if "/resourcegroups" in path.lower() else "subscriptions"
        return f"microsoft.resources/{below}"
    namespace, *words = rest.split("/")
    return "/".join([namespace, *words[::2]])


def versions_of(request: Request) -> list[str]:
    """The api-versions under which a request may come; empty if nobody knows such a thing."""
    type_ = type_of(request.path)
    versions = operations(_namespace(request.path))
    exact = {one.version for one in versions if one.matches(request)}
    return sorted(exact or {o.version for o in versions if f"{type_}/".startswith(f"{o.type}/")})


def check_version(request: Request, location: str = "") -> None:
    """Refuse a request without an api-version, or with one that its type does not have."""
    if not request.version:
        raise ArmError(
            400,
            "MissingApiVersionParameter",
            "The api-version query parameter (?api-version=) is required for all requests.",
        )
    versions = versions_of(request)
    if request.version in versions:
        return
    supported = ", ".join(versions)
    namespace, _, type_ = type_of(request.path).partition("/")
    if namespace == "microsoft.resources":
        raise ArmError(
            400,
            "InvalidApiVersionParameter",
            f"The api-version '{request.version}' is invalid. The supported versions are "
            f"'{supported}'.",
        )
    if not versions:
        raise ArmError(
            400,
            "InvalidResourceType",
            f"The resource type '{type_}' could not be found in the namespace '{namespace}' for "
            f"api version '{request.version}'.",
        )
    raise ArmError(
        400,
        "NoRegisteredProviderFound",
        f"No registered resource provider found for location '{location}' and API version "
        f"'{request.version}' for type '{type_}'. The supported api-versions are '{supported}'.",
    )


def _namespace(path: str) -> str:
    """The namespace that answers a path; ARM itself for groups and for the providers themselves."""
    found = re.search(r"(?i).*/providers/([^/]+)/[^/]", path.removesuffix("/register"))
    return found[1].lower() if found else ""
