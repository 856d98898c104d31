"""What the simulated AWS promises about alarms, service-linked roles and rehearsals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ec2 import alarms
from ec2.harness import AwsHarness, aws
from ec2.iam import ARN, add_role, trust_of
from ec2.service_steps import policy, run
from ec2.state import ACCOUNT
from ec2.steps import REGION, Ec2User

from infra.errors import BadRequest, NotAllowed, ProviderError


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account with a computer."""
    with aws(tmp_path) as made:
        yield made


@pytest.fixture
def user(harness: AwsHarness) -> Ec2User:
    """Somebody who rents machines in it."""
    return Ec2User(harness)


def put_alarm(user: Ec2User, id_: str, **changes: Any) -> None:
    """An alarm that stops a machine which has been idle for 45 minutes."""
    usual = {
        "AlarmName": "qft-run-a.1.idle",
        "Namespace": "AWS/EC2",
        "MetricName": "CPUUtilization",
        "Dimensions": [{"Name": "InstanceId", "Value": id_}],
        "Statistic": "Maximum",
        "Period": 300,
        "EvaluationPeriods": 9,
        "Threshold": 3.0,
        "ComparisonOperator": "LessThanThreshold",
        "AlarmActions": [f"arn:aws:automate:{REGION}:ec2:stop"],
    }
    user.call("put_metric_alarm", "cloudwatch", **{**usual, **changes})


def test_an_alarm_stops_a_machine_that_is_idle(harness: AwsHarness, user: Ec2User) -> None:
    """Nine idle data in a row stop it, not eight, and not the work of before."""
    made = run(harness, user)
    put_alarm(user, made)
    harness.advance(3600)
    busy = user.state(made)
    alarms.set_level(harness.cloud.world, made, "CPUUtilization", 0.5)

    harness.advance(40 * 60)
    early = user.state(made)
    harness.advance(13 * 60)

    assert (busy, early) == ("running", "running")
    assert user.state(made) in {"stopping", "stopped"}
    (row,) = user.call("describe_alarms", "cloudwatch")["MetricAlarms"]
    assert row["StateValue"] == "INSUFFICIENT_DATA"
    harness.advance(600)
    assert user.request(made) == ("disabled", "instance-stopped-by-user")


def test_an_alarm_that_always_holds_is_a_clock(harness: AwsHarness, user: Ec2User) -> None:
    """`CPUUtilization >= 0` over N data ends a machine N periods after its start, each start."""
    made = run(harness, user)
    always = {"ComparisonOperator": "GreaterThanOrEqualToThreshold", "Threshold": 0.0}
    put_alarm(user, made, **always, EvaluationPeriods=6)
    harness.advance(45 * 60)
    first = user.state(made)
    harness.advance(20 * 60)
    user.call("start_instances", InstanceIds=[made])
    harness.advance(60)

    again = user.state(made)
    harness.advance(50 * 60)

    assert (first, again) == ("stopped", "running")
    assert user.state(made) == "stopped"


def test_an_alarm_fires_once_while_it_stays_in_alarm(harness: AwsHarness, user: Ec2User) -> None:
    """The action follows the change of the state, not the state."""
    made = run(harness, user)
    put_alarm(user, made, AlarmActions=[], Threshold=100.0)
    put_alarm(
        user,
        made,
        AlarmName="reboot",
        Threshold=100.0,
        Period=60,
        EvaluationPeriods=2,
        AlarmActions=[f"arn:aws:automate:{REGION}:ec2:reboot"],
    )

    harness.advance(3600)

    assert [name for _, name, _ in alarms.alarms(harness.cloud.world).fired] == ["reboot"]
    assert user.state(made) == "running"
    user.call("delete_alarms", "cloudwatch", AlarmNames=["reboot", "qft-run-a.1.idle"])
    assert alarms.names(harness.cloud.world) == []


@pytest.mark.parametrize(
    "change",
    [
        {"EvaluationPeriods": 289},
        {"Period": 3600, "EvaluationPeriods": 169},
        {"AlarmActions": ["arn:aws:automate:eu-west-1:ec2:stop"]},
        {"Dimensions": [{"Name": "InstanceId", "Value": "i-0123456789abcdef0"}]},
    ],
)
def test_what_cloudwatch_would_not_take_is_refused(
    harness: AwsHarness, user: Ec2User, change: dict[str, Any]
) -> None:
    """More than a day of short periods, a week of long ones, another region, no such machine."""
    made = run(harness, user)

    with pytest.raises(ProviderError):
        put_alarm(user, made, **change)
    assert alarms.names(harness.cloud.world) == []


def test_an_alarm_needs_its_service_linked_role(harness: AwsHarness, user: Ec2User) -> None:
    """Whoever may not make that role gets no alarm with an EC2 action, the first time."""
    made = run(harness, user)
    harness.cloud.deny("iam:CreateServiceLinkedRole")

    with pytest.raises(NotAllowed, match="CreateServiceLinkedRole"):
        put_alarm(user, made)
    harness.cloud.allow("iam:CreateServiceLinkedRole")
    put_alarm(user, made)
    harness.cloud.deny("iam:CreateServiceLinkedRole")
    put_alarm(user, made, AlarmName="another")

    assert len(alarms.names(harness.cloud.world)) == 2


# ---- roles of services, rehearsals ----


def test_the_role_of_spot_machines_can_be_made_once(harness: AwsHarness, user: Ec2User) -> None:
    """`CreateServiceLinkedRole` ends what refuses every spot machine of a new account."""
    harness.cloud.world.has_spot_role = False

    user.call("create_service_linked_role", "iam", AWSServiceName="spot.amazonaws.com")

    assert harness.cloud.world.has_spot_role
    with pytest.raises(BadRequest, match="has been taken"):
        user.call("create_service_linked_role", "iam", AWSServiceName="spot.amazonaws.com")


def rehearse(user: Ec2User, id_: str, duration: str = "PT2M") -> dict[str, Any]:
    """Have FIS interrupt a machine; returns the experiment when it has had time to act."""
    made = user.call(
        "create_experiment_template",
        "fis",
        description="interrupt",
        stopConditions=[{"source": "none"}],
        roleArn=f"{ARN}qft-fis",
        targets={
            "machine": {
                "resourceType": "aws:ec2:spot-instance",
                "resourceArns": [f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/{id_}"],
                "selectionMode": "ALL",
            }
        },
        actions={
            "interrupt": {
                "actionId": "aws:ec2:send-spot-instance-interruptions",
                "parameters": {"durationBeforeInterruption": duration},
                "targets": {"SpotInstances": "machine"},
            }
        },
    )["experimentTemplate"]["id"]
    started = user.call("start_experiment", "fis", experimentTemplateId=made)["experiment"]
    user.harness.advance(30)
    user.call("delete_experiment_template", "fis", id=made)
    found: dict[str, Any] = user.call("get_experiment", "fis", id=started["id"])["experiment"]
    return found


def add_fis_role(harness: AwsHarness, action: str) -> None:
    """The role with which FIS acts."""
    document = policy(Action=[action], Condition={})
    trust = trust_of("fis.amazonaws.com")
    add_role(harness.cloud.world, "qft-fis", trust=trust, policy=document)


def test_fis_interrupts_a_machine_with_its_notice(harness: AwsHarness, user: Ec2User) -> None:
    """A rehearsal recommends, announces, stops, and leaves the start to the user."""
    add_fis_role(harness, "ec2:SendSpotInstanceInterruptions")
    made = run(harness, user)

    experiment = rehearse(user, made)
    (machine,) = harness.cloud.machines()
    announced, recommended = machine.notice, machine.rebalance_s
    harness.advance(200)

    assert experiment["state"]["status"] == "completed"
    assert announced is not None
    assert announced.action == "stop"
    assert recommended is not None
    assert user.request(made) == ("disabled", "instance-stopped-by-experiment")
    harness.advance(3600)
    assert user.state(made) == "stopped"


def test_fis_needs_a_role_with_the_right(harness: AwsHarness, user: Ec2User) -> None:
    """Without `ec2:SendSpotInstanceInterruptions` the experiment fails, and the machine runs."""
    add_fis_role(harness, "ec2:StopInstances")
    made = run(harness, user)

    experiment = rehearse(user, made)
    harness.advance(600)

    assert experiment["state"]["status"] == "failed"
    assert user.state(made) == "running"
