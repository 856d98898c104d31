"""Sets the schedules of EventBridge Scheduler that end a machine without us, renews, removes them.

They act with a role of the account, not with anybody's credentials. A schedule carries no tags, so
it is found again by its name; it deletes itself when it is over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from infra.aws.context import AwsContext
from infra.aws.errors import RoleNotTrustedError
from infra.aws.naming import node_of_name, schedule_prefix
from infra.aws.permissions import role_arn
from infra.aws.safeguard_times import STOP_EVERY_MIN, ScheduleTimes
from infra.errors import Gone, NotAllowed, SignedOut

GROUP = "default"
IAM_REGION = "us-east-1"
"""IAM is the same in every region."""
STOP = "stop"
CANCEL = "cancel"
TERMINATE = "terminate"
TARGET = "arn:aws:scheduler:::aws-sdk:ec2:"
STOP_RETRIES = {"MaximumEventAgeInSeconds": 600, "MaximumRetryAttempts": 5}
"""A stop that AWS could not carry out is not worth repeating when the next one is near."""
ATTEMPTS = 7
ATTEMPT_PAUSE_S = 10.0
"""A role that was made a moment ago is not trusted everywhere yet, for about a minute."""
ATTEMPTS_UNSURE = 2
"""The same where this caller may not see whether there is a role at all."""
KEPT = (
    "Name",
    "GroupName",
    "Description",
    "ScheduleExpression",
    "ScheduleExpressionTimezone",
    "StartDate",
    "EndDate",
    "FlexibleTimeWindow",
    "State",
    "ActionAfterCompletion",
    "Target",
)
"""What an update repeats of a schedule: all that it leaves out falls back to a default."""


@dataclass(frozen=True, kw_only=True)
class MachineToEnd:
    """What schedules need to name about a machine."""

    run_id: str
    generation: int
    region: str
    account: str
    instance: str
    request: str
    """The id of its spot request; empty if it is not known."""
    node: int = 0
    """Which of the machines of its run it is."""

    @property
    def prefix(self) -> str:
        """How the names of its schedules and of its alarm begin."""
        return schedule_prefix(self.run_id, self.generation, self.node)


def schedule_bodies(
    machine: MachineToEnd, times: ScheduleTimes, *, role: str
) -> list[dict[str, Any]]:
    """The schedules of a machine, as `CreateSchedule` and `UpdateSchedule` take them."""
    return list(_bodies(machine, times, role))


def _bodies(machine: MachineToEnd, times: ScheduleTimes, role: str) -> Iterator[dict[str, Any]]:
    arn, instances = role_arn(machine.account, role), {"InstanceIds": [machine.instance]}
    yield {
        **_body(machine, STOP),
        "ScheduleExpression": f"rate({STOP_EVERY_MIN} minutes)",
        "StartDate": datetime.fromtimestamp(times.stop_s, tz=UTC),
        "EndDate": datetime.fromtimestamp(times.stops_end_s, tz=UTC),
        "Target": {**_target(arn, "stopInstances", instances), "RetryPolicy": STOP_RETRIES},
    }
    if times.cancel_s is not None and machine.request:
        requests = {"SpotInstanceRequestIds": [machine.request]}
        yield {
            **_body(machine, CANCEL),
            "ScheduleExpression": _at(times.cancel_s),
            "Target": _target(arn, "cancelSpotInstanceRequests", requests),
        }
    if times.terminate_s is not None:
        yield {
            **_body(machine, TERMINATE),
            "ScheduleExpression": _at(times.terminate_s),
            "Target": _target(arn, "terminateInstances", instances),
        }


def _body(machine: MachineToEnd, kind: str) -> dict[str, Any]:
    return {
        "Name": f"{machine.prefix}{kind}",
        "GroupName": GROUP,
        "Description": f"qft: ends the machine {machine.instance} of the run {machine.run_id}",
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "State": "ENABLED",
        "ActionAfterCompletion": "DELETE",
    }


def _target(role: str, action: str, parameters: dict[str, list[str]]) -> dict[str, Any]:
    return {"Arn": f"{TARGET}{action}", "RoleArn": role, "Input": json.dumps(parameters)}


def _at(at_s: float) -> str:
    return f"at({datetime.fromtimestamp(at_s, tz=UTC):%Y-%m-%dT%H:%M:%S})"


def moved(schedule: Mapping[str, Any], *, by_s: float) -> dict[str, Any]:
    """A schedule as Scheduler describes it, as the body of an update that moves it."""
    body = {key: schedule[key] for key in KEPT if key in schedule}
    later = timedelta(seconds=by_s)
    for key in ("StartDate", "EndDate"):
        if isinstance(body.get(key), datetime):
            body[key] += later
    once = re.fullmatch(r"at\((\S+)\)", str(body.get("ScheduleExpression")))
    if once:
        at = datetime.fromisoformat(once[1]).replace(tzinfo=UTC)
        body["ScheduleExpression"] = _at((at + later).timestamp())
    return body


@dataclass(frozen=True, kw_only=True)
class Schedules:
    """The schedules of an account; every method is safe to repeat."""

    context: AwsContext

    def set(self, machine: MachineToEnd, times: ScheduleTimes, *, attempts: int = ATTEMPTS) -> None:
        """Make the schedules of a machine, or move those that exist; remove what is not wanted.

        Raises `NotAllowed` without the right to, `RoleNotTrustedError` if Scheduler does not trust
        the role after `attempts`, ten seconds apart.
        """
        role = self.context.settings.schedule_role
        wanted = schedule_bodies(machine, times, role=role)
        for body in wanted:
            self._with_attempts(machine.region, body, attempts)
        names = {str(body["Name"]) for body in wanted}
        for kind in (CANCEL, TERMINATE):
            if f"{machine.prefix}{kind}" not in names:
                self._delete(machine.region, f"{machine.prefix}{kind}")

    def names(self, run_id: str, region: str, node: int | None = None) -> list[str]:
        """The names of the schedules of a run in a region, or of one of its nodes."""
        found = self.context.clients.pages(
            "scheduler",
            region,
            "list_schedules",
            "Schedules",
            doing="list the schedules",
            GroupName=GROUP,
            NamePrefix=schedule_prefix(run_id),
        )
        names = [str(one["Name"]) for one in found]
        return [one for one in names if node in {None, node_of_name(run_id, one)}]

    def put_off(self, prefix: str, region: str, *, not_before_s: float) -> bool:
        """Move the schedules of a machine so that its stops begin at `not_before_s` or later.

        Their names begin with `prefix`. All move by the same time, those that remove the disk
        first. Whether any had to.
        """
        stop = self._get(region, f"{prefix}{STOP}")
        if stop is None:
            return False
        begins = stop.get("StartDate")
        begins_s = begins.timestamp() if isinstance(begins, datetime) else self.context.clock()
        if begins_s >= not_before_s:
            return False
        for kind in (TERMINATE, CANCEL, STOP):
            found = stop if kind == STOP else self._get(region, f"{prefix}{kind}")
            if found is not None:
                self._put(region, moved(found, by_s=not_before_s - begins_s))
        return True

    def _get(self, region: str, name: str) -> dict[str, Any] | None:
        """Look at one schedule; None if there is none of that name."""
        try:
            return self.context.clients.call(
                "scheduler",
                region,
                "get_schedule",
                doing=f"look at the schedule `{name}`",
                GroupName=GROUP,
                Name=name,
            )
        except Gone:
            return None

    def remove(self, names: list[str], region: str) -> list[str]:
        """Remove schedules, silent about those that are gone; return their names."""
        for name in names:
            self._delete(region, name)
        return names

    def _with_attempts(self, region: str, body: dict[str, Any], attempts: int) -> None:
        for left in reversed(range(attempts)):
            try:
                self._put(region, body)
            except RoleNotTrustedError:
                if not left:
                    raise
                self.context.sleep(ATTEMPT_PAUSE_S)
            else:
                return

    def _put(self, region: str, body: dict[str, Any]) -> None:
        """Move the schedule, or make it where there is none."""
        doing = f"set the schedule `{body['Name']}`"
        try:
            self.context.clients.call("scheduler", region, "update_schedule", doing=doing, **body)
        except Gone:
            self.context.clients.call("scheduler", region, "create_schedule", doing=doing, **body)

    def _delete(self, region: str, name: str) -> None:
        try:
            self.context.clients.call(
                "scheduler",
                region,
                "delete_schedule",
                doing=f"remove the schedule `{name}`",
                GroupName=GROUP,
                Name=name,
            )
        except Gone:
            return


def role_exists(context: AwsContext) -> bool | None:
    """Whether the account has the role that Scheduler takes; None if this caller may not look.

    Raises `SignedOut` and `Transient`.
    """
    role = context.settings.schedule_role
    try:
        context.clients.call(
            "iam", IAM_REGION, "get_role", doing=f"look at the role `{role}`", RoleName=role
        )
    except SignedOut:
        raise
    except Gone:
        return False
    except NotAllowed:
        return None
    return True
