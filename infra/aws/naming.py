"""Names what a run has on AWS: ids of machines, of schedules, of the security group."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from infra.errors import NotAllowed

TAG_NAME_CHARS_MAX = 127
NODE = "qft-node"
"""The tag of what belongs to one of several machines of a run; that of node 0 has none."""
NODE_MARK = "n"
SEVERAL = "nodes"
"""Under this name a record says how many machines its run is to have, if several."""
LEFT = "left"
"""Under this name a record lists regions in which a group of the run stayed."""
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


def node_tags(node: int) -> dict[str, str]:
    """The tag that says which of a run's machines something belongs to; none for node 0."""
    return {NODE: str(node)} if node else {}


def node_of_tags(tags: Mapping[str, str]) -> int:
    """Which of a run's machines something belongs to, by its tags."""
    number = tags.get(NODE, "")
    return int(number) if number.isdigit() else 0


def record_name_of_replaced(run_id: str, node: int, generation: int) -> str:
    """The name of a record of one machine that its node has replaced."""
    return f"{run_id}.{node}.{generation}"


def record_name(run_id: str, node: int = 0) -> str:
    """The name of this computer's record of a machine; a run's own id has no dot."""
    return f"{run_id}.{node}" if node else run_id


def run_of_record(name: str) -> tuple[str, int]:
    """The run and the node that a record of this name is about."""
    run_id, _, node = name.partition(".")
    return run_id, int(node) if node.isdigit() else 0


def schedule_prefix(run_id: str, generation: int | None = None, node: int = 0) -> str:
    """How the names of a run's schedules and alarms begin; of one machine's with a generation."""
    run = f"qft-{run_id}."
    if generation is None:
        return run
    return f"{run}{NODE_MARK}{node}.{generation}." if node else f"{run}{generation}."


def node_of_name(run_id: str, name: str) -> int:
    """Which of a run's machines a schedule or alarm is for, by its name."""
    part = name.removeprefix(schedule_prefix(run_id)).partition(".")[0]
    number = part.removeprefix(NODE_MARK)
    return int(number) if part != number and number.isdigit() else 0


def client_token(run_id: str, generation: int, zone: str, attempt: int, node: int = 0) -> str:
    """The idempotency token of one attempt to create a machine, 64 characters of ASCII.

    EC2 keeps tokens per zone once a subnet is named, so the zone is part of it.
    """
    which = f"{NODE_MARK}{node}/" if node else ""
    text = f"qft/{run_id}/{which}{generation}/{zone}/{attempt}"
    return hashlib.sha256(text.encode()).hexdigest()
