"""Everything about Azure that a user or a test may choose, read once from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PUBLIC_ARM = "https://management.azure.com"
PUBLIC_PRICES = "https://prices.azure.com"
PUBLIC_ADDRESS = "https://api.ipify.org"


@dataclass(frozen=True, kw_only=True)
class AzureSettings:
    """Which account, which endpoints, and how patient to be. Holds no secret."""

    subscription_id: str = ""
    arm_endpoint: str = PUBLIC_ARM
    """Base URL of Azure Resource Manager; another one for sovereign clouds, proxies and tests."""
    arm_audience: str = ""
    """What tokens are asked for; empty means the public cloud's."""
    prices_endpoint: str = PUBLIC_PRICES
    """Base URL of the retail price API, which needs no account."""
    address_endpoint: str = PUBLIC_ADDRESS
    """A page that answers with the caller's public address as plain text."""
    caller_address: str = ""
    """The caller's public address or CIDR, if the user prefers to name it; never `*`."""
    metadata_url: str = "http://169.254.169.254"
    """Base of the instance-metadata service as seen from inside the machine."""
    ssh_port: int = 22
    """Where SSH answers, for machines behind a gateway that forwards it, and for tests."""
    polling_s: float = 5.0
    """How often a running operation is asked about when Azure gives no advice."""
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    accept_wait_s: float = 75.0
    """How long `create` and `start` look for an early refusal before they return."""
    operation_wait_s: float = 1800.0
    """How long `deallocate` and `delete` wait for Azure to say that it is done."""
    offers_wait_s: float = 2.5
    """How long `offers` waits for prices, quota and eviction bands before it does without."""
    disk_sku: str = "StandardSSD_LRS"
    self_release: bool = True
    """Whether the machine gets a managed identity with which it can deallocate itself."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> AzureSettings:
        """Read `QFT_ARM_ENDPOINT`, `QFT_AZURE_*`, `QFT_IMDS_ENDPOINT`, `AZURE_SUBSCRIPTION_ID`.

        Unset variables leave the defaults of the public cloud. A malformed number is a ValueError.
        """
        text = {
            "subscription_id": "AZURE_SUBSCRIPTION_ID",
            "arm_endpoint": "QFT_ARM_ENDPOINT",
            "arm_audience": "QFT_ARM_AUDIENCE",
            "prices_endpoint": "QFT_AZURE_PRICES_ENDPOINT",
            "address_endpoint": "QFT_ADDRESS_ENDPOINT",
            "caller_address": "QFT_CALLER_ADDRESS",
            "metadata_url": "QFT_IMDS_ENDPOINT",
        }
        numbers = {"polling_s": "QFT_AZURE_POLLING_S", "accept_wait_s": "QFT_AZURE_ACCEPT_WAIT_S"}
        chosen: dict[str, str | float] = {
            key: environment[name].rstrip("/")
            for key, name in text.items()
            if environment.get(name)
        }
        for key, name in numbers.items():
            if environment.get(name):
                chosen[key] = _positive(name, environment[name])
        if environment.get("QFT_AZURE_SSH_PORT"):
            chosen["ssh_port"] = int(environment["QFT_AZURE_SSH_PORT"])
        return cls(**chosen)  # type: ignore[arg-type]  # keys and types are matched above


def _positive(name: str, text: str) -> float:
    value = float(text)
    if not value > 0:
        message = f"{name} must be a number of seconds above 0, not {text!r}"
        raise ValueError(message)
    return value
