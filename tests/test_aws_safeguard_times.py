"""When the safeguards of a machine on AWS take effect: never too early, and late by minutes."""

from __future__ import annotations

import pytest
from support.recorded_aws import ACCOUNT, NOW_S

from infra.aws.alarm import SHORT_PERIOD_S, alarm_body, alarm_times
from infra.aws.safeguard_times import latest_limit_s, request_expiry_s, schedule_times
from infra.aws.schedules import MachineToEnd

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
UNTIL_S = NOW_S + 5 * HOUR_S
REGION = "us-east-1"
MACHINE = MachineToEnd(
    run_id="run-a",
    generation=1,
    region=REGION,
    account=ACCOUNT,
    instance="i-0123456789abcdef0",
    request="sir-abcd1234",
)


def test_stops_repeat_for_a_day_from_the_first_full_minute_after_the_limit() -> None:
    """The first stop is at the limit, rounded up to a minute; the last one a day later."""
    expires_s = request_expiry_s(UNTIL_S)

    times = schedule_times(now_s=NOW_S, until_s=UNTIL_S, expires_s=expires_s, disk_days=None)

    assert times.stop_s % 60 == 0
    assert 0 <= times.stop_s - UNTIL_S < 60
    assert times.stops_end_s == times.stop_s + DAY_S
    assert (times.cancel_s, times.terminate_s) == (None, None)


def test_stops_go_on_for_as_long_as_ec2_may_restart_the_machine() -> None:
    """A limit that was lowered by days is kept until the request of the machine is over."""
    expires_s = NOW_S + 4 * DAY_S

    times = schedule_times(now_s=NOW_S, until_s=UNTIL_S, expires_s=expires_s, disk_days=None)

    assert times.stops_end_s > expires_s


@pytest.mark.parametrize("disk_days", [0, 0.5, 1, 30])
def test_disk_goes_after_its_days_and_the_request_before_it(disk_days: float) -> None:
    """The request is cancelled first, so that nothing replaces the machine, and stops go on."""
    times = schedule_times(now_s=NOW_S, until_s=UNTIL_S, expires_s=None, disk_days=disk_days)

    assert times.cancel_s is not None
    assert times.terminate_s is not None
    assert times.stops_end_s == times.cancel_s < times.terminate_s
    assert times.cancel_s >= times.stop_s + HOUR_S
    if disk_days:
        assert abs(times.cancel_s - UNTIL_S - disk_days * DAY_S) < 60


def test_no_limit_lies_beyond_the_end_of_the_request() -> None:
    """A machine whose request is over cannot be stopped, so it is stopped before."""
    expires_s = request_expiry_s(UNTIL_S)

    times = schedule_times(
        now_s=NOW_S, until_s=UNTIL_S + DAY_S, expires_s=expires_s, disk_days=None
    )

    assert UNTIL_S < times.stop_s <= latest_limit_s(expires_s) + 60 < expires_s


@pytest.mark.parametrize("until_s", [0.0, NOW_S, NOW_S + 30])
def test_a_limit_that_has_passed_stops_within_minutes(until_s: float) -> None:
    """Scheduler refuses times that have passed, so that the stop is set a little ahead."""
    times = schedule_times(now_s=NOW_S, until_s=until_s, expires_s=None, disk_days=None)

    assert 60 < times.stop_s - NOW_S <= 180


@pytest.mark.parametrize("hours", [0.01, 1, 5, 23.9, 24.5, 100, 167])
def test_alarm_counts_up_to_the_limit_and_never_ends_a_machine_before_it(hours: float) -> None:
    """So many periods without a gap take until the limit at least, within CloudWatch's bounds."""
    until_s = NOW_S + hours * HOUR_S

    times = alarm_times(made_at_s=NOW_S, until_s=until_s)

    assert times is not None
    counted_s = times.periods * times.period_s
    assert counted_s >= hours * HOUR_S
    assert counted_s <= (DAY_S if times.period_s < HOUR_S else 7 * DAY_S)
    assert until_s < times.stops_at_s <= until_s + 3 * times.period_s


def test_no_alarm_looks_further_ahead_than_seven_days() -> None:
    """CloudWatch does not look back further, so that none is set."""
    assert alarm_times(made_at_s=NOW_S, until_s=NOW_S + 7.1 * DAY_S) is None


def test_alarm_names_the_machine_and_the_metric_of_running() -> None:
    """The metric is one that every running machine reports, compared with what is always true."""
    times = alarm_times(made_at_s=NOW_S, until_s=UNTIL_S)
    assert times is not None

    body = alarm_body(MACHINE, times)

    assert (body["Namespace"], body["MetricName"]) == ("AWS/EC2", "CPUUtilization")
    assert body["Dimensions"] == [{"Name": "InstanceId", "Value": MACHINE.instance}]
    assert body["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"
    assert body["Threshold"] == 0.0
    assert body["Period"] == SHORT_PERIOD_S
    assert body["DatapointsToAlarm"] == body["EvaluationPeriods"] == times.periods
