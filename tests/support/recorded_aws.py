"""AWS clients that send nothing: each call is checked against botocore's model and recorded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import botocore.session
from botocore import xform_name
from botocore.model import ListShape, OperationModel, Shape, StructureShape
from botocore.validate import ParamValidator

from infra.aws.context import AwsContext
from infra.aws.sdk import AwsClients
from infra.aws.settings import AwsSettings
from infra.errors import ProviderError
from infra.timestamps import parse_utc_s

ACCOUNT = "123456789012"
NOW_S = float(parse_utc_s("2026-11-30T10:00:20Z") or 0)
Answer = ProviderError | Mapping[str, Any] | Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of an operation."""

    service: str
    region: str
    operation: str
    parameters: dict[str, Any]


@dataclass
class RecordedAws:
    """Answers calls from a table; an operation that is not in it answers with nothing."""

    answers: dict[str, Answer] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def call(
        self,
        service: str,
        region: str,
        operation: str,
        *,
        doing: str,
        once: bool = False,
        **parameters: Any,
    ) -> dict[str, Any]:
        """Check, record and answer a call."""
        assert doing
        del once
        assert problems(service, operation, parameters) == []
        self.calls.append(
            Call(service=service, region=region, operation=operation, parameters=parameters)
        )
        answer = self.answers.get(operation, {})
        if isinstance(answer, ProviderError):
            raise answer
        return answer(parameters) if callable(answer) else dict(answer)

    def pages(
        self, service: str, region: str, operation: str, key: str, *, doing: str, **parameters: Any
    ) -> list[dict[str, Any]]:
        """Check, record and answer a call whose answer has one page."""
        return list(self.call(service, region, operation, doing=doing, **parameters).get(key, []))

    def account(self) -> str:
        """The account that is signed in."""
        return ACCOUNT

    def made(self, *operations: str) -> list[dict[str, Any]]:
        """The parameters of the calls of some operations, in order."""
        return [one.parameters for one in self.calls if one.operation in operations]

    def close(self) -> None:
        """Nothing is open."""


def context_of(clients: object, state_dir: Path, **settings: Any) -> AwsContext:
    """A context around recorded clients, at a time that stands still unless somebody sleeps."""
    now = [NOW_S]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    return AwsContext(
        settings=AwsSettings(**settings),
        clients=cast("AwsClients", clients),
        state_dir=state_dir,
        clock=lambda: now[0],
        sleep=sleep,
        find_address=lambda: "203.0.113.7",
    )


def problems(service: str, operation: str, parameters: Mapping[str, Any]) -> list[str]:
    """What botocore's model of an operation does not admit in parameters, patterns included."""
    shape = _operation(service, operation).input_shape
    if shape is None:
        return [f"{operation} takes no parameters"] if parameters else []
    report = ParamValidator().validate(dict(parameters), shape)
    found = [report.generate_report()] if report.has_errors() else []
    return found + list(_beyond(shape, parameters, operation))


@cache
def _operation(service: str, operation: str) -> OperationModel:
    model = _session().get_service_model(service)
    (name,) = [one for one in model.operation_names if xform_name(one) == operation]
    return model.operation_model(name)


@cache
def _session() -> botocore.session.Session:
    return botocore.session.Session()


def _beyond(shape: Shape, value: Any, path: str) -> list[str]:
    """Texts and lists that are longer than a model admits, or of another form."""
    if isinstance(shape, StructureShape) and isinstance(value, Mapping):
        return [
            line
            for name, one in value.items()
            if name in shape.members
            for line in _beyond(shape.members[name], one, f"{path}.{name}")
        ]
    if isinstance(shape, ListShape) and isinstance(value, list):
        own = _too_long(shape, value, path)
        return [*own, *(line for one in value for line in _beyond(shape.member, one, f"{path}[]"))]
    if isinstance(value, str):
        pattern = shape.metadata.get("pattern")
        enum = shape.metadata.get("enum")
        own = _too_long(shape, value, path)
        if enum and value not in enum:
            own.append(f"{path}: `{value}` is none of {enum}")
        if pattern and "\\p{" not in pattern and not re.fullmatch(pattern, value):
            own.append(f"{path}: `{value}` is not of the form {pattern}")
        return own
    return []


def _too_long(shape: Shape, value: Any, path: str) -> list[str]:
    most = shape.metadata.get("max")
    return [f"{path}: longer than {most}"] if most is not None and len(value) > most else []
