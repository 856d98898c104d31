"""Sets a CloudWatch alarm that stops a machine at about its limit, where Scheduler may not be used.

An alarm has no clock. But a running machine reports its processor use every five minutes, so that
"at or above zero, N times in a row" is true when it has run for N such periods. The count begins
anew when EC2 restarts the machine. No real account has shown this yet.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

from infra.aws.context import AwsContext
from infra.aws.naming import node_of_name, schedule_prefix
from infra.aws.schedules import MachineToEnd
from infra.errors import Gone

LIMIT = "limit"
SHORT_PERIOD_S = 300
LONG_PERIOD_S = 3600
SHORT_TOTAL_S = 86_400
"""CloudWatch looks back one day at most with periods below an hour, and seven days with others."""
LONG_TOTAL_S = 604_800
LATE_PERIODS = 2
"""How late the alarm can be: its first period is not whole, its last is reported late."""


@dataclass(frozen=True, kw_only=True)
class AlarmTimes:
    """How an alarm counts."""

    period_s: int
    periods: int
    stops_at_s: float
    """When it stops a machine that has run since it was made, at the latest."""


def alarm_times(*, made_at_s: float, until_s: float) -> AlarmTimes | None:
    """Choose how an alarm counts up to the limit; None if that is too far ahead for any.

    It counts from the making of the machine, not from its last start: a stop that is shorter than
    a period leaves no gap to be seen, so that the alarm would come too early.
    """
    total_s = until_s - made_at_s
    for period_s, total_s_max in ((SHORT_PERIOD_S, SHORT_TOTAL_S), (LONG_PERIOD_S, LONG_TOTAL_S)):
        periods = max(math.ceil(total_s / period_s), 1)
        if periods * period_s <= total_s_max:
            late_s = LATE_PERIODS * period_s
            return AlarmTimes(
                period_s=period_s,
                periods=periods,
                stops_at_s=made_at_s + periods * period_s + late_s,
            )
    return None


def alarm_name(machine: MachineToEnd) -> str:
    """The name of the alarm of one machine."""
    return f"{machine.prefix}{LIMIT}"


def alarm_body(machine: MachineToEnd, times: AlarmTimes) -> dict[str, Any]:
    """The alarm as `PutMetricAlarm` takes it."""
    return {
        "AlarmName": alarm_name(machine),
        "AlarmDescription": f"qft: stops the machine of the run {machine.run_id} at its limit",
        "ActionsEnabled": True,
        "AlarmActions": [f"arn:aws:automate:{machine.region}:ec2:stop"],
        "Namespace": "AWS/EC2",
        "MetricName": "CPUUtilization",
        "Dimensions": [{"Name": "InstanceId", "Value": machine.instance}],
        "Statistic": "Maximum",
        "Period": times.period_s,
        "EvaluationPeriods": times.periods,
        "DatapointsToAlarm": times.periods,
        "Threshold": 0.0,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "notBreaching",  # a machine that does not run reports nothing
    }


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """The alarms of an account; every method is safe to repeat."""

    context: AwsContext

    def set(self, machine: MachineToEnd, times: AlarmTimes) -> None:
        """Set the alarm of a machine, or change the one that it has."""
        self.context.clients.call(
            "cloudwatch",
            machine.region,
            "put_metric_alarm",
            doing="set the alarm that stops the machine",
            **alarm_body(machine, times),
        )

    def names(self, run_id: str, region: str, node: int | None = None) -> list[str]:
        """The names of the alarms of a run in a region, or of one of its nodes."""
        found = self.context.clients.pages(
            "cloudwatch",
            region,
            "describe_alarms",
            "MetricAlarms",
            doing="list the alarms",
            AlarmNamePrefix=schedule_prefix(run_id),
        )
        names = [str(one["AlarmName"]) for one in found]
        return [one for one in names if node in {None, node_of_name(run_id, one)}]

    def remove(self, names: list[str], region: str) -> list[str]:
        """Remove alarms, silent about those that are gone; return their names."""
        for name in names:
            with contextlib.suppress(Gone):  # which is what was wanted
                self.context.clients.call(
                    "cloudwatch",
                    region,
                    "delete_alarms",
                    doing=f"remove the alarm `{name}`",
                    AlarmNames=[name],
                )
        return names
