"""Plays CloudWatch alarms with EC2 actions: metrics of machines that run, and stops that follow."""

from __future__ import annotations

import fnmatch
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ec2 import iam
from ec2.replies import ApiCall, AwsError
from ec2.resources import Instance
from ec2.state import ACCOUNT
from ec2.world import World

KEY = "alarms"
ROLE = "AWSServiceRoleForCloudWatchEvents"
BUSY_PERCENT = 60.0
"""The CPU utilization of a machine that trains."""
METRIC_S = 300.0
"""The pause between data of a machine without detailed monitoring."""
LATE_S = 60.0
"""How long after its period a datum is seen."""
DAY_S, WEEK_S, HOUR_S = 86400, 604800, 3600
ACTION = re.compile(r"arn:aws:automate:(?P<region>[a-z0-9-]+):ec2:(?P<verb>stop|terminate|reboot)")
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "GreaterThanOrEqualToThreshold": operator.ge,
    "GreaterThanThreshold": operator.gt,
    "LessThanOrEqualToThreshold": operator.le,
    "LessThanThreshold": operator.lt,
}
METRICS = ("CPUUtilization", "StatusCheckFailed", "StatusCheckFailed_Instance")


@dataclass(kw_only=True)
class Alarm:
    """One alarm as it was last written."""

    region: str
    body: dict[str, Any]
    state: str = "INSUFFICIENT_DATA"
    state_s: float = 0.0
    version: int = 0

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.body["AlarmName"])

    @property
    def arn(self) -> str:
        """Its ARN."""
        return f"arn:aws:cloudwatch:{self.region}:{ACCOUNT}:alarm:{self.name}"

    @property
    def instance_id(self) -> str:
        """The machine whose metric it watches."""
        return str(self.body["Dimensions"][0]["Value"])

    @property
    def period_s(self) -> float:
        """The length of one datum."""
        return float(self.body["Period"])

    @property
    def periods(self) -> int:
        """How many data in a row must breach the threshold."""
        return int(self.body["EvaluationPeriods"])


@dataclass(kw_only=True)
class Alarms:
    """The alarms of an account, and what its machines measure."""

    alarms: dict[tuple[str, str], Alarm] = field(default_factory=dict)
    """By region and name."""
    levels: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=dict)
    """Values of (machine, metric), each with the time since when it holds."""
    running: dict[str, float] = field(default_factory=dict)
    """Since when machines run that do."""
    fired: list[tuple[float, str, str]] = field(default_factory=list)
    """Time, alarm and verb of every action."""
    written: int = 0


def alarms(world: World) -> Alarms:
    """What the service holds; from the first call on it follows the machines."""
    if KEY not in world.data:
        here = Alarms()
        world.data[KEY] = here
        for one in world.instances.values():
            if one.state == "running":
                here.running[one.id] = one.launch_s
        world.state_listeners.append(lambda instance: _follow(world, instance))
    found: Alarms = world.data[KEY]
    return found


def set_level(world: World, instance_id: str, metric: str, value: float) -> None:
    """From now on, let a machine measure that; by default it is busy and passes its checks."""
    rows = alarms(world).levels.setdefault((instance_id, metric), [])
    rows.append((world.now(), value))


def names(world: World) -> list[str]:
    """The ARN of every alarm."""
    return [one.arn for one in alarms(world).alarms.values()]


# ---- the API ----


def put_metric_alarm(world: World, call: ApiCall) -> dict[str, Any]:
    """PutMetricAlarm: makes one, or replaces it; its state stays."""
    check_alarm(world, call)
    _need_role(world)
    here, key = alarms(world), (call.region, call.parameters["AlarmName"])
    here.written += 1
    made = Alarm(region=call.region, body=dict(call.parameters), version=here.written)
    made.state_s = world.now()
    if key in here.alarms:
        made.state, made.state_s = here.alarms[key].state, here.alarms[key].state_s
    here.alarms[key] = made
    _watch(world, made)
    return {}


def describe_alarms(world: World, call: ApiCall) -> dict[str, Any]:
    """DescribeAlarms: by names or the beginning of a name, all in one page."""
    wanted = call.parameters
    rows = [
        {**_view(one), "AlarmConfigurationUpdatedTimestamp": world.moment(one.state_s)}
        for (region, name), one in sorted(alarms(world).alarms.items())
        if region == call.region
        and name in wanted.get("AlarmNames", [name])
        and name.startswith(wanted.get("AlarmNamePrefix", ""))
    ]
    return {"MetricAlarms": rows, "CompositeAlarms": []}


def delete_alarms(world: World, call: ApiCall) -> dict[str, Any]:
    """DeleteAlarms: all that are named, or none if one of them does not exist."""
    names, here = call.parameters["AlarmNames"], alarms(world)
    missing = [name for name in names if (call.region, name) not in here.alarms]
    if missing:
        message = f"Alarm {missing[0]} does not exist"
        raise AwsError("ResourceNotFound", message, status=404)
    for name in names:
        del here.alarms[call.region, name]
    return {}


OPERATIONS = {
    "DeleteAlarms": delete_alarms,
    "DescribeAlarms": describe_alarms,
    "PutMetricAlarm": put_metric_alarm,
}


def check_alarm(world: World, call: ApiCall) -> None:
    """Raise the service's error for an alarm that CloudWatch would not take, or is not played."""
    body = call.parameters
    wanted = {"MetricName", "Namespace", "Statistic", "Period", "Threshold", "Dimensions"}
    if missing := wanted - set(body):
        raise _invalid(f"The parameters {sorted(missing)} are required")
    names = [one["Name"] for one in body["Dimensions"]]
    if body["Namespace"] != "AWS/EC2" or names != ["InstanceId"]:
        raise _invalid("only metrics of one machine are played")
    if body["MetricName"] not in METRICS or body["ComparisonOperator"] not in COMPARISONS:
        raise _invalid(f"{body['MetricName']} {body['ComparisonOperator']} is not played")
    if body["Period"] % 60 and body["Period"] not in {10, 20, 30}:
        raise _invalid("Period must be 10, 20, 30 or a multiple of 60")
    span_s, longest_s = body["Period"] * body["EvaluationPeriods"], DAY_S
    if body["Period"] >= HOUR_S:
        longest_s = WEEK_S
    if span_s > longest_s:
        raise _invalid(f"Metrics cannot be checked across more than {longest_s} seconds")
    for action in body.get("AlarmActions", []):
        found = ACTION.fullmatch(action)
        if found is None or found["region"] != call.region:
            raise _invalid(f"Invalid arn syntax: {action}")
    instance = world.instances.get(body["Dimensions"][0]["Value"])
    if body.get("AlarmActions") and (instance is None or instance.region != call.region):
        raise _invalid("The instance of an EC2 action must exist")


def _need_role(world: World) -> None:
    """The service-linked role for EC2 actions makes itself, if the caller may make it."""
    if ROLE in iam.roles(world):
        return
    if any(fnmatch.fnmatchcase("iam:CreateServiceLinkedRole", one) for one in world.denied):
        message = "User: qft is not authorized to perform: iam:CreateServiceLinkedRole"
        raise AwsError("AccessDenied", message, status=403)
    iam.add_role(world, ROLE, trust=iam.trust_of("events.amazonaws.com"))


def _view(alarm: Alarm) -> dict[str, Any]:
    usual = {
        "AlarmArn": alarm.arn,
        "ActionsEnabled": True,
        "StateValue": alarm.state,
        "OKActions": [],
        "InsufficientDataActions": [],
    }
    return usual | {key: value for key, value in alarm.body.items() if key != "Tags"}


def _invalid(message: str) -> AwsError:
    return AwsError("ValidationError", message)


# ---- what it does ----


def _follow(world: World, instance: Instance) -> None:
    """A machine that runs again begins to be measured again; one that does not, is not."""
    here = alarms(world)
    if instance.state == "running" and instance.id not in here.running:
        here.running[instance.id] = world.now()
        for one in list(here.alarms.values()):
            if one.instance_id == instance.id:
                _watch(world, one)
    elif instance.state not in {"running", "pending"}:
        here.running.pop(instance.id, None)
        for one in here.alarms.values():
            if one.instance_id == instance.id:
                _set_state(world, one, _without_data(one))


def _without_data(alarm: Alarm) -> str:
    """The state of an alarm whose machine gives no data."""
    treatment = alarm.body.get("TreatMissingData", "missing")
    return {"notBreaching": "OK", "ignore": alarm.state}.get(treatment, "INSUFFICIENT_DATA")


def _watch(world: World, alarm: Alarm) -> None:
    """Look at the metric at the end of every period, as long as the alarm and its machine are."""
    since_s = alarms(world).running.get(alarm.instance_id)
    if since_s is None:
        return
    step_s = max(alarm.period_s, 60.0)

    def look() -> None:
        here = alarms(world)
        current = here.alarms.get((alarm.region, alarm.name))
        if current is None or current.version != alarm.version:
            return
        if here.running.get(alarm.instance_id) != since_s:
            return
        _evaluate(world, alarm, since_s)
        world.after(step_s, look)

    now_s = world.now()
    first_s = (math.floor(now_s / step_s) + 1) * step_s + LATE_S
    world.after(first_s - now_s, look)


def _evaluate(world: World, alarm: Alarm, since_s: float) -> None:
    end_s = math.floor((world.now() - LATE_S) / alarm.period_s) * alarm.period_s
    starts = [end_s - (index + 1) * alarm.period_s for index in range(alarm.periods)]
    # The first data of a life come with the first whole interval of its metric.
    seen = [start_s for start_s in starts if start_s + alarm.period_s >= since_s + METRIC_S]
    if not seen:
        return
    compare = COMPARISONS[alarm.body["ComparisonOperator"]]
    breaching = [
        compare(_value(world, alarm, start_s), float(alarm.body["Threshold"])) for start_s in seen
    ]
    wanted = int(alarm.body.get("DatapointsToAlarm", alarm.periods))
    _set_state(world, alarm, "ALARM" if sum(breaching) >= wanted else "OK")


def _value(world: World, alarm: Alarm, start_s: float) -> float:
    """The statistic of one period, of values that hold from one time to the next."""
    metric = str(alarm.body["MetricName"])
    usual = BUSY_PERCENT if metric == "CPUUtilization" else 0.0
    rows = alarms(world).levels.get((alarm.instance_id, metric), [])
    before = [value for at_s, value in rows if at_s <= start_s][-1:] or [usual]
    within = [value for at_s, value in rows if start_s < at_s < start_s + alarm.period_s]
    values = [*before, *within]
    statistics: Mapping[str, Callable[[list[float]], float]] = {
        "Maximum": max,
        "Minimum": min,
        "Sum": sum,
        "SampleCount": len,
    }
    average: Callable[[list[float]], float] = lambda given: sum(given) / len(given)  # noqa: E731
    return float(statistics.get(alarm.body["Statistic"], average)(values))


def _set_state(world: World, alarm: Alarm, state: str) -> None:
    if state == alarm.state:
        return
    alarm.state, alarm.state_s = state, world.now()
    if state != "ALARM" or not alarm.body.get("ActionsEnabled", True):
        return
    for action in alarm.body.get("AlarmActions", []):
        found = ACTION.fullmatch(action)
        assert found is not None
        alarms(world).fired.append((world.now(), alarm.name, found["verb"]))
        reason = "Client.UserInitiatedShutdown"
        if found["verb"] == "stop":
            world.stop_instance(alarm.instance_id, reason, "instance-stopped-by-user")
        elif found["verb"] == "terminate":
            world.terminate_instance(alarm.instance_id, reason_code=reason)
