"""What EventBridge Scheduler holds: schedules, when they are due, and what they have done."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ec2 import iam
from ec2.replies import ApiCall
from ec2.state import ACCOUNT
from ec2.world import World

KEY = "scheduler"
SERVICE = "scheduler.amazonaws.com"
TARGET = re.compile(r"arn:aws:scheduler:::aws-sdk:(?P<service>[a-z0-9]+):(?P<verb>[a-zA-Z]+)")
AT = re.compile(r"at\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\)")
RATE = re.compile(r"rate\(([1-9]\d*) (minute|hour|day)s?\)")
UNIT_S = {"minute": 60.0, "hour": 3600.0, "day": 86400.0}


@dataclass(kw_only=True)
class Schedule:
    """One schedule as it was last written."""

    region: str
    body: dict[str, Any]
    created_s: float
    changed_s: float
    version: int

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.body["Name"])

    @property
    def group(self) -> str:
        """The name of its group."""
        return str(self.body.get("GroupName", "default"))

    @property
    def state(self) -> str:
        """`ENABLED` or `DISABLED`."""
        return str(self.body.get("State", "ENABLED"))

    @property
    def arn(self) -> str:
        """Its ARN."""
        return f"arn:aws:scheduler:{self.region}:{ACCOUNT}:schedule/{self.group}/{self.name}"

    def summary(self, world: World) -> dict[str, Any]:
        """Its row in a list."""
        return {
            "Arn": self.arn,
            "Name": self.name,
            "GroupName": self.group,
            "State": self.state,
            "CreationDate": world.moment(self.created_s),
            "LastModificationDate": world.moment(self.changed_s),
            "Target": {"Arn": self.body["Target"]["Arn"]},
        }


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One call of a target, well or badly answered; for tests to read."""

    at_s: float
    name: str
    operation: str
    parameters: Mapping[str, Any]
    problem: str = ""
    """The code of the error, or `AssumeRole` if the role could not be taken on; empty if none."""


@dataclass(kw_only=True)
class Scheduler:
    """The schedules of an account, and everything that they have done."""

    schedules: dict[tuple[str, str], Schedule] = field(default_factory=dict)
    """By region and name."""
    tokens: dict[tuple[str, str], str] = field(default_factory=dict)
    """The client token that created each."""
    invocations: list[Invocation] = field(default_factory=list)
    versions: Any = field(default_factory=lambda: itertools.count(1))
    works: bool = True
    """False plays a Scheduler that takes orders and never acts on them."""
    perform: Callable[[World, ApiCall], Any] | None = None
    """Carries out the calls that targets name; see `attach`."""


def scheduler(world: World) -> Scheduler:
    """What the service holds."""
    found: Scheduler = world.data.setdefault(KEY, Scheduler())
    return found


def attach(world: World, perform: Callable[[World, ApiCall], Any]) -> None:
    """Give the service what carries out calls: `ec2.dispatch.perform`."""
    scheduler(world).perform = perform


def names(world: World) -> list[str]:
    """The ARN of every schedule."""
    return [one.arn for one in scheduler(world).schedules.values()]


def times_of(expression: str) -> tuple[float | None, float | None]:
    """The time of a one-time expression, or the pause of a rate; two Nones for neither."""
    if found := AT.fullmatch(expression):
        moment = datetime.fromisoformat(found[1]).replace(tzinfo=UTC)
        return moment.timestamp(), None
    if found := RATE.fullmatch(expression):
        return None, int(found[1]) * UNIT_S[found[2]]
    return None, None


def operation_of(verb: str) -> str:
    """`StopInstances` of the `stopInstances` in a universal target."""
    return verb[:1].upper() + verb[1:]


def is_assumed(world: World, region: str, role: str) -> bool:
    """Whether the service may take on a role: for it, a source is a group, never a schedule."""
    group = f"arn:aws:scheduler:{region}:{ACCOUNT}:schedule-group/default"
    return iam.can_assume(world, role, SERVICE, source_arn=group)
