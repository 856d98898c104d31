"""Decodes a signed HTTP request into a call of an operation, and encodes its answer.

Both sides are checked against botocore's own model in strict form. A request that differs from it
gets AWS's error; an answer that does raises `ModelError`, which fails the test.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import DataNotFoundError
from botocore.model import OperationModel, OperationNotFoundError

from ec2.forms import parse_form
from ec2.json_protocols import find_rest, json_answer, json_error, parse_json, parse_rest
from ec2.models import SERVICES, operation_model, service_model
from ec2.replies import ApiCall, AwsError, HttpReply, HttpRequest, ModelError
from ec2.shapes import problems
from ec2.xml_answers import xml_answer, xml_error

CREDENTIAL = re.compile(
    r"^AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/\d{8}/(?P<region>[^/]+)/(?P<service>[^/]+)"
    r"/aws4_request, ?SignedHeaders=(?P<headers>[^,]+), ?Signature=[0-9a-f]{64}$"
)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Who signed a request, for which service in which region."""

    key_id: str
    region: str
    service: str

    @property
    def protocol(self) -> str:
        """The protocol that botocore speaks with the service."""
        return str(service_model(self.service).resolved_protocol)


def read_signature(request: HttpRequest) -> Signature | None:
    """The signature of a request; None if it has none, or is for a service that is not simulated.

    Raises `AwsError` if what was signed lacks the headers that AWS demands.
    """
    found = CREDENTIAL.match(request.header("authorization"))
    if found is None or found["service"] not in SERVICES:
        return None
    if not {"host", "x-amz-date"} <= set(found["headers"].split(";")):
        raise AwsError("IncompleteSignature", "host and x-amz-date must be signed", status=400)
    return Signature(key_id=found["key"], region=found["region"], service=found["service"])


def operation_of(request: HttpRequest, signature: Signature) -> tuple[str, dict[str, str]]:
    """The name of the operation that a request asks for, and the labels in its path."""
    if signature.protocol == "rest-json":
        return find_rest(service_model(signature.service), request)
    if signature.protocol == "json":
        return request.header("x-amz-target").rpartition(".")[2], {}
    fields = dict(urllib.parse.parse_qsl(request.body))
    version = service_model(signature.service).metadata["apiVersion"]
    if fields.get("Version") != version:
        raise AwsError("InvalidAction", f"The version {fields.get('Version')} is not {version}.")
    return fields.get("Action", ""), {}


def decode(request: HttpRequest, signature: Signature) -> ApiCall:
    """The call that a request makes. Raises `AwsError` for what the model does not have."""
    name, labels = operation_of(request, signature)
    model = _model(signature.service, name)
    if signature.protocol == "rest-json":
        parameters = parse_rest(request, model, labels)
    elif signature.protocol == "json":
        parameters = parse_json(request, model)
    else:
        parameters = parse_form(request.body, model.input_shape, ec2=signature.protocol == "ec2")
    check_input(signature.service, name, parameters)
    return ApiCall(
        service=signature.service,
        region=signature.region,
        operation=name,
        parameters=parameters,
        key_id=signature.key_id,
    )


def check_input(service: str, operation: str, parameters: Mapping[str, Any]) -> None:
    """Raise AWS's error for parameters that differ from the model of the operation."""
    model = _model(service, operation)
    found = problems(parameters, model.input_shape) if model.input_shape is not None else []
    if not found:
        return
    if service not in {"ec2", "sts", "iam"}:
        words = f"{len(found)} validation errors detected: {'; '.join(found)}"
        raise AwsError("ValidationException", words)
    if found[0].endswith("is missing"):
        name = found[0].partition(" ")[0]
        message = f"The request must contain the parameter {name}"
        raise AwsError("MissingParameter", message)
    code = "UnknownParameter" if "is not recognized" in found[0] else "InvalidParameterValue"
    raise AwsError(code if service == "ec2" else "ValidationError", "; ".join(found))


def encode(signature: Signature, operation: str, answer: Mapping[str, Any]) -> HttpReply:
    """The answer of an operation. Raises `ModelError` if the model has no such answer."""
    model = operation_model(signature.service, operation)
    check_output(signature.service, operation, answer)
    if signature.protocol in {"json", "rest-json"}:
        return json_answer(model, answer)
    return xml_answer(model, answer, ec2=signature.protocol == "ec2")


def check_output(service: str, operation: str, answer: Mapping[str, Any]) -> None:
    """Raise `ModelError` for an answer that differs from the model of the operation."""
    shape = operation_model(service, operation).output_shape
    if shape is None:
        found = [f"{name} is not recognized" for name in answer]
    else:
        found = problems(answer, shape)
    if found:
        raise ModelError(f"{service} {operation} answers: {'; '.join(found)}")


def encode_error(signature: Signature | None, error: AwsError) -> HttpReply:
    """An error in the protocol of the service; in EC2's if it is not known which."""
    protocol = signature.protocol if signature else "ec2"
    if protocol in {"json", "rest-json"}:
        return json_error(error)
    return xml_error(error, ec2=protocol == "ec2")


def _model(service: str, operation: str) -> OperationModel:
    try:
        return operation_model(service, operation)
    except (OperationNotFoundError, DataNotFoundError) as error:
        message = f"The action {operation} is not valid for this web service."
        raise AwsError("InvalidAction", message) from error
