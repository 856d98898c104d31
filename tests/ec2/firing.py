"""Lets the schedules of EventBridge Scheduler fire by the simulated clock, as their roles may."""

from __future__ import annotations

import json
import math

from ec2.replies import ApiCall, AwsError
from ec2.schedules import (
    TARGET,
    Invocation,
    Schedule,
    is_assumed,
    operation_of,
    scheduler,
    times_of,
)
from ec2.world import World

LATE_S = 30.0
"""How long after its time an invocation happens: AWS promises the minute, not the second."""
RETRY_S = 60.0
"""How long after an answer that may pass the target is invoked again."""
EVENT_AGE_S = 86400
ATTEMPTS = 185


def write(world: World, call: ApiCall, *, created_s: float) -> Schedule:
    """Keep a schedule as it was sent, in the place of any of its name, and wait for its times."""
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
    call = ApiCall(
        service=found["service"],
        region=schedule.region,
        operation=operation_of(found["verb"]),
        parameters=json.loads(target.get("Input", "{}")),
        caller=target["RoleArn"],
    )
    problem, passes = _carry_out(world, call)
    done = Invocation(
        at_s=world.now(),
        name=schedule.name,
        operation=call.operation,
        parameters=call.parameters,
        problem=problem,
    )
    scheduler(world).invocations.append(done)
    policy = target.get("RetryPolicy", {})
    attempts = policy.get("MaximumRetryAttempts", ATTEMPTS)
    age_s = policy.get("MaximumEventAgeInSeconds", EVENT_AGE_S)
    if passes and attempt < attempts and world.now() + RETRY_S - began_s < age_s:
        world.after(RETRY_S, lambda: _invoke(world, schedule, began_s=began_s, attempt=attempt + 1))


def _carry_out(world: World, call: ApiCall) -> tuple[str, bool]:
    """Make a call for a role; the code of its error, and whether that may pass."""
    if not is_assumed(world, call.region, call.caller):
        return "AssumeRole", False
    perform = scheduler(world).perform
    assert perform is not None, "nobody has attached the scheduler"
    try:
        perform(world, call)
    except AwsError as error:
        return error.code, error.status >= 500 or "Throttling" in error.code
    return "", False
