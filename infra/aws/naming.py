"""Names what a run has on AWS: ids of machines, of schedules, of the security group."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from infra.errors import NotAllowed

TAG_NAME_CHARS_MAX = 127
ACCOUNT = re.compile(r"\d{12}")
REGION = re.compile(r"[a-z]{2,3}(-[a-z]+)+-\d{1,2}")
INSTANCE = re.compile(r"(i-[0-9a-f]+)?")


@dataclass(frozen=True, kw_only=True)
class MachineId:
    """The id of a machine as `Vm.id` holds it: `account/region/instance`.

    The account is part of it, so that another profile is refused, and finds nothing "gone". The
    instance is empty where only remnants are left.
    """

    account: str
    region: str
    instance: str = ""

    def __str__(self) -> str:
        """The id as one text."""
        return f"{self.account}/{self.region}/{self.instance}"

    @classmethod
    def parse(cls, text: str) -> MachineId | None:
        """Read an id; None if it is not one of AWS."""
        account, _, rest = text.partition("/")
        region, _, instance = rest.partition("/")
        shapes = ((ACCOUNT, account), (REGION, region), (INSTANCE, instance))
        if not all(shape.fullmatch(part) for shape, part in shapes):
            return None
        return cls(account=account, region=region, instance=instance)


def check_account(recorded: str, account: str) -> None:
    """Raise `NotAllowed` if a run belongs to another account than the one signed in."""
    if recorded and recorded != account:
        raise NotAllowed(
            f"this run is in the AWS account {recorded}, and the credentials are of {account}",
            hint="choose the profile of that account: AWS_PROFILE, or `vm.aws.profile`",
        )


def group_name(run_id: str, generation: int) -> str:
    """The name of the security group of one machine."""
    return f"qft-{run_id}-{generation}"


def schedule_prefix(run_id: str, generation: int | None = None) -> str:
    """How the names of a run's schedules and alarms begin; of one machine's with a generation."""
    return f"qft-{run_id}." if generation is None else f"qft-{run_id}.{generation}."


def client_token(run_id: str, generation: int, zone: str, attempt: int) -> str:
    """The idempotency token of one attempt to create a machine, 64 characters of ASCII.

    EC2 keeps tokens per zone once a subnet is named, so the zone is part of it.
    """
    text = f"qft/{run_id}/{generation}/{zone}/{attempt}"
    return hashlib.sha256(text.encode()).hexdigest()
