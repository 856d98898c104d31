"""The settings of the AWS provider, read once from the environment and the table `vm.aws`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infra.renting.settings import port_number, positive_seconds

PUBLIC_ADDRESS = "https://api.ipify.org"
PUBLIC_ADVISOR = "https://spot-bid-advisor.s3.amazonaws.com/spot-advisor-data.json"
METADATA_URL = "http://169.254.169.254"
SCHEDULE_ROLE = "qft-scheduler"


@dataclass(frozen=True, kw_only=True)
class AwsSettings:
    """Account, endpoints and timeouts. Holds no secret.

    Endpoints of AWS itself are not among them: the SDK reads `AWS_ENDPOINT_URL` by itself.
    """

    profile: str = ""
    """The profile of `~/.aws/config`; empty leaves the choice to the SDK (`AWS_PROFILE`)."""
    subnet: str = ""
    """The subnet to use, for accounts without a default VPC; empty takes the default ones."""
    image: str = ""
    """`ubuntu` for plain Ubuntu, an id `ami-…`, or empty for the deep-learning base image."""
    schedule_role: str = SCHEDULE_ROLE
    """The name of the role by which EventBridge Scheduler stops machines."""
    advisor_endpoint: str = PUBLIC_ADVISOR
    """The page of interruption rates, which needs no account."""
    address_endpoint: str = PUBLIC_ADDRESS
    """A page that answers with the caller's public address as plain text."""
    caller_address: str = ""
    """The caller's public address or CIDR, if the user prefers to name it; never `*`."""
    metadata_url: str = METADATA_URL
    """Base of the instance-metadata service as seen from inside the machine."""
    ssh_port: int = 22
    """Where SSH answers, for machines behind a gateway that forwards it, and for tests."""
    polling_s: float = 5.0
    """How often a change under way is looked at."""
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    accept_wait_s: float = 75.0
    """How long `create` and `start` look for an early refusal before they return."""
    stop_wait_s: float = 900.0
    """How long `deallocate` and `delete` wait for EC2: the deep-learning image has been seen to
    take eight minutes to stop."""
    offers_wait_s: float = 2.5
    """How long `offers` waits for prices, quota and interruption rates before it does without."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> AwsSettings:
        """Read `QFT_AWS_*`, `QFT_ADDRESS_ENDPOINT`, `QFT_CALLER_ADDRESS`, `QFT_AWS_IMDS_ENDPOINT`.

        Unset variables leave the defaults. Raises ValueError for a malformed number.
        """
        text = {
            "advisor_endpoint": "QFT_AWS_ADVISOR_ENDPOINT",
            "address_endpoint": "QFT_ADDRESS_ENDPOINT",
            "caller_address": "QFT_CALLER_ADDRESS",
            "metadata_url": "QFT_AWS_IMDS_ENDPOINT",
        }
        numbers = {
            "polling_s": "QFT_AWS_POLLING_S",
            "accept_wait_s": "QFT_AWS_ACCEPT_WAIT_S",
            "stop_wait_s": "QFT_AWS_STOP_WAIT_S",
            "offers_wait_s": "QFT_AWS_OFFERS_WAIT_S",
        }
        chosen: dict[str, str | float] = {
            key: environment[name].rstrip("/")
            for key, name in text.items()
            if environment.get(name)
        }
        for key, name in numbers.items():
            if environment.get(name):
                chosen[key] = positive_seconds(name, environment[name])
        if environment.get("QFT_AWS_SSH_PORT"):
            chosen["ssh_port"] = port_number("QFT_AWS_SSH_PORT", environment["QFT_AWS_SSH_PORT"])
        return cls(**chosen)  # type: ignore[arg-type]  # keys and types are matched above
