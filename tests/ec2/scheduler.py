"""Plays the API of EventBridge Scheduler, and refuses what AWS refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ec2 import iam
from ec2.firing import ATTEMPTS, EVENT_AGE_S, write
from ec2.protocols import check_input
from ec2.replies import ApiCall, AwsError
from ec2.schedules import TARGET, Schedule, is_assumed, operation_of, scheduler, times_of
from ec2.world import World

PAST_S = 300.0
"""How far before now a `StartDate` may lie."""
PAGE = 2
"""Rows of a list in one answer where no number is given: few, so that clients must page."""
READING = ("get", "describe", "list")
"""How the names of operations begin that no schedule may call."""


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
    return {"ScheduleArn": write(world, call, created_s=world.now()).arn}


def update_schedule(world: World, call: ApiCall) -> dict[str, Any]:
    """UpdateSchedule: replaces all of it; what is not given becomes the default."""
    found = need(world, call)
    check_schedule(world, call)
    return {"ScheduleArn": write(world, call, created_s=found.created_s).arn}


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
    iam.check_pass_role(world, call, role, "scheduler.amazonaws.com")
    if not is_assumed(world, call.region, role):
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


def _invalid(message: str) -> AwsError:
    return AwsError("ValidationException", message, Message=message)
