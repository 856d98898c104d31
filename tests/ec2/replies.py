"""What a handler of the simulated AWS gets and gives: calls, replies, and AWS's errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

REQUEST_ID = "59dbff89-35bd-4eac-99ed-be587EXAMPLE"
"""What every answer of AWS carries, and no page of a proxy does."""
USER = "user"
"""The caller whose access key is in the environment."""


@dataclass(frozen=True, kw_only=True)
class ApiCall:
    """One call of an operation, decoded by the service's model; kept for tests to read."""

    service: str
    """The name under which it is signed, such as `ec2`, `monitoring` or `servicequotas`."""
    region: str
    operation: str
    """Such as `RunInstances`."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """By the names of the model, such as `InstanceIds`."""
    caller: str = USER
    """Whose rights count: the user's, or the ARN of a role that a service has taken on."""
    key_id: str = ""

    @property
    def action(self) -> str:
        """The action as policies name it, such as `ec2:RunInstances`."""
        prefix = {"monitoring": "cloudwatch"}.get(self.service, self.service)
        return f"{prefix}:{self.operation}"


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """One HTTP request as it came."""

    method: str
    path: str
    query: Mapping[str, str]
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""

    def header(self, name: str) -> str:
        """One header, empty if absent."""
        return self.headers.get(name.lower(), "")


@dataclass(frozen=True, kw_only=True)
class HttpReply:
    """One HTTP answer."""

    status: int = 200
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


class AwsError(Exception):
    """An answer in AWS's error shape, whatever the protocol."""

    def __init__(self, code: str, message: str = "", *, status: int = 400, **members: Any) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
        self.members = members
        """Further members of a modelled error, such as `ResourceType` of the Scheduler."""


class ModelError(AssertionError):
    """The simulator itself answers with what the service's model does not have."""
