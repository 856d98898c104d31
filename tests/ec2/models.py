"""Reads botocore's own service models: the shapes that every request and answer must have."""

from __future__ import annotations

from functools import lru_cache

from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel

LOADER = Loader()
"""Shared, so that the large model of EC2 is read once in a process."""
SERVICES = {
    "ec2": "ec2",
    "sts": "sts",
    "ssm": "ssm",
    "servicequotas": "service-quotas",
    "scheduler": "scheduler",
    "monitoring": "cloudwatch",
    "iam": "iam",
    "fis": "fis",
    "pricing": "pricing",
}
"""The name of a service's model by the name under which its requests are signed."""


@lru_cache
def service_model(signing_name: str) -> ServiceModel:
    """The model of a service by the name in the signature of its requests."""
    return named_model(SERVICES[signing_name])


@lru_cache
def named_model(name: str) -> ServiceModel:
    """The model of a service by its own name; it keeps what it has worked out of its shapes."""
    return ServiceModel(LOADER.load_service_model(name, "service-2"), service_name=name)


@lru_cache
def operation_model(signing_name: str, operation: str) -> OperationModel:
    """The model of one operation. Raises `OperationNotFoundError` if the service has none such."""
    return service_model(signing_name).operation_model(operation)
