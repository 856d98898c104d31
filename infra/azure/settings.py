"""The settings of the Azure provider, read once from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from infra.renting.settings import port_number, positive_seconds

PUBLIC_ARM = "https://management.azure.com"
SOVEREIGN_ARM = ("https://management.usgovcloudapi.net", "https://management.chinacloudapi.cn")
"""Other clouds of Microsoft's; tokens for the public one are worth nothing there."""
PUBLIC_PRICES = "https://prices.azure.com"
PUBLIC_ADDRESS = "https://api.ipify.org"


@dataclass(frozen=True, kw_only=True)
class AzureSettings:
    """Account, endpoints and timeouts. Holds no secret."""

    subscription_id: str = ""
    arm_endpoint: str = PUBLIC_ARM
    """Base URL of Azure Resource Manager; another one for sovereign clouds, proxies and tests."""
    arm_audience: str = ""
    """What tokens are asked for; empty means the endpoint's own in a cloud of Microsoft's, else the
    public cloud's.
    """
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
    image: str = ""
    """URN of the image that the user chose; empty for the one that suits the size."""
    self_release: bool = True
    """Whether the machine gets a managed identity with which it can deallocate itself."""

    @property
    def audience(self) -> str:
        """The audience of the tokens."""
        sovereign = self.arm_endpoint.lower() in SOVEREIGN_ARM
        own = self.arm_endpoint if sovereign else PUBLIC_ARM
        return self.arm_audience or own

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> AzureSettings:
        """Read `QFT_ARM_ENDPOINT`, `QFT_AZURE_*`, `QFT_IMDS_ENDPOINT`, `AZURE_SUBSCRIPTION_ID`.

        Unset variables leave the defaults of the public cloud. Raises ValueError for a malformed
        number, and for a Resource Manager to which no token may be shown.
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
        numbers = {
            "polling_s": "QFT_AZURE_POLLING_S",
            "accept_wait_s": "QFT_AZURE_ACCEPT_WAIT_S",
            "operation_wait_s": "QFT_AZURE_OPERATION_WAIT_S",
            "offers_wait_s": "QFT_AZURE_OFFERS_WAIT_S",
        }
        chosen: dict[str, str | float] = {
            key: environment[name].rstrip("/")
            for key, name in text.items()
            if environment.get(name)
        }
        if "arm_endpoint" in chosen:
            _check_https("QFT_ARM_ENDPOINT", str(chosen["arm_endpoint"]))
        for key, name in numbers.items():
            if environment.get(name):
                chosen[key] = positive_seconds(name, environment[name])
        if environment.get("QFT_AZURE_SSH_PORT"):
            chosen["ssh_port"] = port_number(
                "QFT_AZURE_SSH_PORT", environment["QFT_AZURE_SSH_PORT"]
            )
        return cls(**chosen)  # type: ignore[arg-type]  # keys and types are matched above


def _check_https(name: str, text: str) -> None:
    parts = urlsplit(text)
    if parts.scheme != "https" or not parts.hostname:
        message = f"{name} must be an https address, such as {PUBLIC_ARM}, not {text!r}"
        raise ValueError(message)
