"""Plays EventBridge Scheduler: schedules that fire by the simulated clock, with a role's rights."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ec2 import iam
from ec2.replies import ApiCall, AwsError
from ec2.state import ACCOUNT
from ec2.wire import check_input
from ec2.world import World

KEY = "scheduler"
SERVICE = "scheduler.amazonaws.com"
LATE_S = 30.0
"""How long after its time an invocation happens: AWS promises the minute, not the second."""
PAST_S = 300.0
"""How far before now a `StartDate` may lie."""
RETRY_S = 60.0
"""How long after an answer that may pass the target is invoked again."""
EVENT_AGE_S = 86400
ATTEMPTS = 185
PAGE = 2
"""Rows of a list in one answer where no number is given: few, so that clients must page."""
TARGET = re.compile(r"arn:aws:scheduler:::aws-sdk:(?P<service>[a-z0-9]+):(?P<verb>[a-zA-Z]+)")
AT = re.compile(r"at\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\)")
RATE = re.compile(r"rate\(([1-9]\d*) (minute|hour|day)s?\)")
UNIT_S = {"minute": 60.0, "hour": 3600.0, "day": 86400.0}
READING = ("get", "describe", "list")
"""How the names of operations begin that no schedule may call."""


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


# ---- the API ----


def create_schedule(world: World, call: ApiCall) -> dict[str, Any]:
    """CreateSchedule."""
    here, key = scheduler(world), (call.region, call.parameters["Name"])
    token = str(call.parameters.get("ClientToken", ""))
    found = here.schedules.get(key)
    if found is not None and token and here.tokens.get(key) == token:
        return {"ScheduleArn": found.arn}
    if found is not None:
        message = f"Schedule {found.name} already exists."
        raise AwsError("ConflictException", message, status=409, Message=message)
    check_schedule(world, call)
    here.tokens[key] = token
    return {"ScheduleArn": _write(world, call, created_s=world.now()).arn}


def update_schedule(world: World, call: ApiCall) -> dict[str, Any]:
    """UpdateSchedule: replaces all of it; what is not given becomes the default."""
    found = need(world, call)
    check_schedule(world, call)
    return {"ScheduleArn": _write(world, call, created_s=found.created_s).arn}


def get_schedule(world: World, call: ApiCall) -> dict[str, Any]:
    """GetSchedule."""
    found = need(world, call)
    usual = {
        "ScheduleExpressionTimezone": "UTC",
        "State": "ENABLED",
        "ActionAfterCompletion": "NONE",
        "GroupName": found.group,
    }
    body = {key: value for key, value in found.body.items() if key != "ClientToken"}
    dates = {
        "Arn": found.arn,
        "CreationDate": world.moment(found.created_s),
        "LastModificationDate": world.moment(found.changed_s),
    }
    policy = {"MaximumEventAgeInSeconds": EVENT_AGE_S, "MaximumRetryAttempts": ATTEMPTS}
    return usual | body | dates | {"Target": {"RetryPolicy": policy} | body["Target"]}


def delete_schedule(world: World, call: ApiCall) -> dict[str, Any]:
    """DeleteSchedule."""
    found = need(world, call)
    del scheduler(world).schedules[call.region, found.name]
    return {}


def list_schedules(world: World, call: ApiCall) -> dict[str, Any]:
    """ListSchedules: of one region, by the beginning of their names, page by page."""
    wanted = call.parameters
    rows = [
        one
        for (region, _), one in sorted(scheduler(world).schedules.items())
        if region == call.region
        and one.name.startswith(wanted.get("NamePrefix", ""))
        and one.group == wanted.get("GroupName", one.group)
        and one.state == wanted.get("State", one.state)
    ]
    start, count = int(wanted.get("NextToken") or 0), int(wanted.get("MaxResults", PAGE))
    answer: dict[str, Any] = {
        "Schedules": [one.summary(world) for one in rows[start : start + count]]
    }
    if start + count < len(rows):
        answer["NextToken"] = str(start + count)
    return answer


OPERATIONS = {
    "CreateSchedule": create_schedule,
    "DeleteSchedule": delete_schedule,
    "GetSchedule": get_schedule,
    "ListSchedules": list_schedules,
    "UpdateSchedule": update_schedule,
}


def need(world: World, call: ApiCall) -> Schedule:
    """The schedule that a call names, or the service's error."""
    name, group = call.parameters["Name"], call.parameters.get("GroupName", "default")
    found = scheduler(world).schedules.get((call.region, name))
    if found is None or found.group != group:
        message = f"Schedule {name} does not exist."
        raise AwsError("ResourceNotFoundException", message, status=404, Message=message)
    return found


# ---- what it takes ----


def check_schedule(world: World, call: ApiCall) -> None:
    """Raise the service's error for a schedule that AWS would not take."""
    body = call.parameters
    if body.get("GroupName", "default") != "default":
        message = f"Schedule group {body['GroupName']} does not exist."
        raise AwsError("ResourceNotFoundException", message, status=404, Message=message)
    if body["FlexibleTimeWindow"]["Mode"] != "OFF":
        raise _invalid("only FlexibleTimeWindow OFF is played")
    if body.get("ScheduleExpressionTimezone", "UTC") != "UTC":
        raise _invalid("only the time zone UTC is played")
    _check_times(world, body)
    _check_target(call)
    role = body["Target"]["RoleArn"]
    iam.check_pass_role(world, call, role)
    if not _assumes(world, call.region, role):
        raise _invalid(
            "The execution role you provide must allow AWS EventBridge Scheduler to assume the "
            "role."
        )


def _check_times(world: World, body: Mapping[str, Any]) -> None:
    at_s, every_s = times_of(body["ScheduleExpression"])
    now_s = world.now()
    if at_s is None and every_s is None:
        raise _invalid(f"Invalid Schedule Expression {body['ScheduleExpression']}.")
    if at_s is not None and at_s <= now_s:
        raise _invalid(f"Invalid Schedule Expression {body['ScheduleExpression']}.")
    start, end = body.get("StartDate"), body.get("EndDate")
    if every_s is None:
        return  # dates of one-time schedules are ignored
    if start is not None and start.timestamp() < now_s - PAST_S:
        raise _invalid("The StartDate you specify cannot be earlier than 5 minutes ago.")
    if end is not None and end.timestamp() <= max(now_s, start.timestamp() if start else 0.0):
        raise _invalid("The EndDate you specify must be after the StartDate and after now.")


def _check_target(call: ApiCall) -> None:
    target = call.parameters["Target"]
    found = TARGET.fullmatch(target["Arn"])
    if found is None or found["verb"].lower().startswith(READING):
        raise _invalid(
            f"Provided Arn is not in correct format or is not supported: {target['Arn']}"
        )
    try:
        parameters = json.loads(target.get("Input", "{}"))
        check_input(found["service"], operation_of(found["verb"]), parameters)
    except (ValueError, AwsError) as error:
        raise _invalid(f"Invalid RequestJson provided. Reason {error}") from error


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


def _assumes(world: World, region: str, role: str) -> bool:
    """Whether the service may take on a role: for it, a source is a group, never a schedule."""
    group = f"arn:aws:scheduler:{region}:{ACCOUNT}:schedule-group/default"
    return iam.can_assume(world, role, SERVICE, source_arn=group)


def _invalid(message: str) -> AwsError:
    return AwsError("ValidationException", message, Message=message)


# ---- what it does ----


def _write(world: World, call: ApiCall, *, created_s: float) -> Schedule:
    here = scheduler(world)
    made = Schedule(
        region=call.region,
        body=dict(call.parameters),
        created_s=created_s,
        changed_s=world.now(),
        version=next(here.versions),
    )
    here.schedules[call.region, made.name] = made
    at_s, every_s = times_of(made.body["ScheduleExpression"])
    if at_s is None and every_s is not None:
        at_s = _next_s(made, every_s, world.now())
    if at_s is not None:
        _invoke_at(world, made, at_s, every_s)
    return made


def _next_s(schedule: Schedule, every_s: float, now_s: float) -> float | None:
    """When a rate is next due, counted from its start; None once it has ended."""
    start, end = schedule.body.get("StartDate"), schedule.body.get("EndDate")
    start_s = start.timestamp() if start else schedule.changed_s
    at_s = start_s + max(0, math.ceil((now_s - start_s) / every_s)) * every_s
    return None if end is not None and at_s > end.timestamp() else at_s


def _invoke_at(world: World, schedule: Schedule, at_s: float, every_s: float | None) -> None:
    def happen() -> None:
        if not _is_current(world, schedule):
            return
        if schedule.state == "ENABLED" and scheduler(world).works:
            _invoke(world, schedule, began_s=at_s, attempt=0)
        following = None if every_s is None else _next_s(schedule, every_s, at_s + 1.0)
        if following is not None:
            _invoke_at(world, schedule, following, every_s)
        elif schedule.body.get("ActionAfterCompletion") == "DELETE":
            scheduler(world).schedules.pop((schedule.region, schedule.name), None)

    world.after(at_s + LATE_S - world.now(), happen)


def _is_current(world: World, schedule: Schedule) -> bool:
    found = scheduler(world).schedules.get((schedule.region, schedule.name))
    return found is not None and found.version == schedule.version


def _invoke(world: World, schedule: Schedule, *, began_s: float, attempt: int) -> None:
    """Call the target as the role; an answer that may pass is tried again, as the policy has it."""
    target = schedule.body["Target"]
    found = TARGET.fullmatch(target["Arn"])
    assert found is not None
    operation, parameters = operation_of(found["verb"]), json.loads(target.get("Input", "{}"))
    perform = scheduler(world).perform
    assert perform is not None, "nobody has attached the scheduler"
    problem, passes = "", False
    if _assumes(world, schedule.region, target["RoleArn"]):
        try:
            perform(
                world,
                ApiCall(
                    service=found["service"],
                    region=schedule.region,
                    operation=operation,
                    parameters=parameters,
                    caller=target["RoleArn"],
                ),
            )
        except AwsError as error:
            problem = error.code
            passes = error.status >= 500 or "Throttling" in error.code
    else:
        problem = "AssumeRole"
    scheduler(world).invocations.append(
        Invocation(
            at_s=world.now(),
            name=schedule.name,
            operation=operation,
            parameters=parameters,
            problem=problem,
        )
    )
    policy = target.get("RetryPolicy", {})
    attempts = policy.get("MaximumRetryAttempts", ATTEMPTS)
    age_s = policy.get("MaximumEventAgeInSeconds", EVENT_AGE_S)
    if passes and attempt < attempts and world.now() + RETRY_S - began_s < age_s:
        again: Callable[[], None] = lambda: _invoke(  # noqa: E731  (named for the next line)
            world, schedule, began_s=began_s, attempt=attempt + 1
        )
        world.after(RETRY_S, again)
