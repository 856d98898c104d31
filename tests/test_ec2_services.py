"""What the simulated AWS promises about schedules, alarms, roles and rehearsed interruptions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ec2 import alarms, iam, schedules
from ec2.harness import AwsHarness, aws
from ec2.iam import ARN, add_role, trust_of
from ec2.state import ACCOUNT
from ec2.steps import REGION, Ec2User

from infra.errors import BadRequest, NotAllowed, ProviderError

ROLE = f"{ARN}qft-scheduler"
TAGGED = {"Null": {"aws:ResourceTag/qft-run": "false"}}
GROUP_ARN = f"arn:aws:scheduler:{REGION}:{ACCOUNT}:schedule-group/default"
VERBS = ["ec2:StopInstances", "ec2:TerminateInstances", "ec2:CancelSpotInstanceRequests"]


def policy(**changes: Any) -> dict[str, Any]:
    """A policy for the three verbs on what carries our tag."""
    statement = {"Effect": "Allow", "Action": VERBS, "Resource": "*", "Condition": TAGGED}
    return {"Version": "2012-10-17", "Statement": [{**statement, **changes}]}


def add_scheduler_role(harness: AwsHarness, **changes: Any) -> None:
    """The role by which schedules act, as an administrator made it long ago."""
    trust = trust_of(
        changes.pop("service", "scheduler.amazonaws.com"),
        StringEquals={"aws:SourceAccount": ACCOUNT, **changes.pop("trust", {})},
    )
    add_role(harness.cloud.world, "qft-scheduler", trust=trust, policy=policy(**changes))


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account with a computer, and a role for schedules."""
    with aws(tmp_path) as made:
        add_scheduler_role(made)
        yield made


@pytest.fixture
def user(harness: AwsHarness) -> Ec2User:
    """Somebody who rents machines in it."""
    return Ec2User(harness)


def run(harness: AwsHarness, user: Ec2User, **changes: Any) -> str:
    """A machine that runs."""
    made = user.run(**changes)
    harness.advance(20)
    return made


def at(harness: AwsHarness, seconds: float) -> datetime:
    """A time from now."""
    return datetime.fromtimestamp(int(harness.now() + seconds), tz=UTC)


def schedule(user: Ec2User, expression: str, verb: str, body: Any, **changes: Any) -> None:
    """Create a schedule that calls EC2."""
    target = {
        "Arn": f"arn:aws:scheduler:::aws-sdk:ec2:{verb}",
        "RoleArn": ROLE,
        "Input": json.dumps(body),
    }
    user.call(
        changes.pop("operation", "create_schedule"),
        "scheduler",
        Name=changes.pop("name", "qft-run-a.1.stop"),
        ScheduleExpression=expression,
        FlexibleTimeWindow={"Mode": "OFF"},
        Target={**target, **changes.pop("target", {})},
        **changes,
    )


def stop_once(harness: AwsHarness, user: Ec2User, id_: str, in_s: float, **changes: Any) -> None:
    """Create a schedule that stops a machine once."""
    expression = f"at({at(harness, in_s):%Y-%m-%dT%H:%M:%S})"
    schedule(user, expression, "stopInstances", {"InstanceIds": [id_]}, **changes)


def problems(harness: AwsHarness) -> list[str]:
    """How every invocation so far was answered."""
    return [one.problem for one in schedules.scheduler(harness.cloud.world).invocations]


def test_a_schedule_stops_its_machine_in_the_minute_and_deletes_itself(
    harness: AwsHarness, user: Ec2User
) -> None:
    """With everything of ours dead, the machine ceases to bill within a minute of its time."""
    made = run(harness, user)
    stop_once(harness, user, made, 600, ActionAfterCompletion="DELETE")

    harness.advance(595)
    before = user.state(made)
    harness.advance(65)

    assert (before, user.state(made)) == ("running", "stopping")
    assert user.call("list_schedules", "scheduler")["Schedules"] == []
    harness.advance(600)
    assert user.request(made) == ("disabled", "instance-stopped-by-user")
    assert not any(line.startswith("compute") for line in harness.cloud.ledger.billing())


def test_a_rate_stops_again_what_ec2_has_restarted(harness: AwsHarness, user: Ec2User) -> None:
    """A machine interrupted just before its limit and restarted after it ends all the same."""
    made = run(harness, user)
    schedule(
        user,
        "rate(15 minutes)",
        "stopInstances",
        {"InstanceIds": [made]},
        StartDate=at(harness, 600),
        EndDate=at(harness, 600 + 86400),
        ActionAfterCompletion="DELETE",
    )
    (machine,) = harness.cloud.machines()
    harness.advance(540)
    harness.cloud.interrupt(machine, notice_s=0)

    harness.advance(400)
    restarted = user.state(made)
    harness.advance(900)

    assert restarted == "running"
    assert user.state(made) in {"stopping", "stopped"}
    harness.advance(2 * 86400)
    assert schedules.names(harness.cloud.world) == []


def test_schedules_cancel_a_request_and_terminate(harness: AwsHarness, user: Ec2User) -> None:
    """The other two verbs work by a schedule, too, so that nothing at all goes on billing."""
    made = run(harness, user)
    (request,) = harness.cloud.spot_requests()
    for name, verb, body in (
        ("cancel", "cancelSpotInstanceRequests", {"SpotInstanceRequestIds": [request.id]}),
        ("terminate", "terminateInstances", {"InstanceIds": [made]}),
    ):
        schedule(
            user,
            f"at({at(harness, 300):%Y-%m-%dT%H:%M:%S})",
            verb,
            body,
            name=f"qft-run-a.1.{name}",
            ActionAfterCompletion="DELETE",
        )

    harness.advance(900)

    assert problems(harness) == ["", ""]
    assert harness.cloud.ledger.billing() == []
    assert harness.cloud.spot_requests() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"service": "ec2.amazonaws.com"},
        {"trust": {"aws:SourceAccount": "999999999999"}},
        {"trust": {"aws:SourceArn": GROUP_ARN.replace("schedule-group/", "schedule/")}},
    ],
)
def test_a_role_that_scheduler_cannot_assume_is_refused(
    harness: AwsHarness, user: Ec2User, changes: dict[str, Any]
) -> None:
    """Wrong service, other account, a schedule as the source: nothing is created."""
    made = run(harness, user)
    add_scheduler_role(harness, **changes)

    with pytest.raises(ProviderError, match="must allow AWS EventBridge Scheduler to assume"):
        stop_once(harness, user, made, 600)
    assert schedules.names(harness.cloud.world) == []


def test_a_role_tied_to_the_schedule_group_is_accepted(harness: AwsHarness, user: Ec2User) -> None:
    """A source ARN of the group, not of one schedule, is what Scheduler presents."""
    add_scheduler_role(harness, trust={"aws:SourceArn": GROUP_ARN})
    made = run(harness, user)

    stop_once(harness, user, made, 600)

    assert len(schedules.names(harness.cloud.world)) == 1


def test_a_new_role_is_accepted_after_a_while(harness: AwsHarness, user: Ec2User) -> None:
    """Made by IAM's API a moment ago, a role is refused; a little later it is taken."""
    trust = json.dumps(trust_of("scheduler.amazonaws.com"))
    user.call("create_role", "iam", RoleName="fresh", AssumeRolePolicyDocument=trust)
    document = json.dumps(policy())
    named = {"RoleName": "fresh", "PolicyName": "stop"}
    user.call("put_role_policy", "iam", **named, PolicyDocument=document)
    made = run(harness, user)
    iam.roles(harness.cloud.world)["fresh"].born_s = harness.now()
    target = {"RoleArn": f"{ARN}fresh"}

    with pytest.raises(ProviderError, match="to assume"):
        stop_once(harness, user, made, 600, target=target)
    harness.advance(iam.SPREADS_S)
    stop_once(harness, user, made, 600, target=target)
    harness.advance(700)

    assert user.state(made) in {"stopping", "stopped"}
    answer = user.call("get_role_policy", "iam", **named)
    assert json.loads(json.dumps(answer["PolicyDocument"])) == policy()


@pytest.mark.parametrize(
    "change",
    [
        {"Action": ["ec2:StartInstances"]},
        {"Condition": {"StringEquals": {"aws:ResourceTag/qft-run": "another"}}},
        {"Resource": "arn:aws:ec2:*:*:volume/*"},
        {"Effect": "Deny"},
    ],
)
def test_a_role_without_the_right_does_nothing(
    harness: AwsHarness, user: Ec2User, change: dict[str, Any]
) -> None:
    """A schedule of a role that may not stop this machine fires, and the machine goes on."""
    add_scheduler_role(harness, **change)
    made = run(harness, user)
    stop_once(harness, user, made, 600)

    harness.advance(700)

    assert user.state(made) == "running"
    assert problems(harness) == ["UnauthorizedOperation"]


def test_a_machine_without_the_tag_is_not_touched(harness: AwsHarness, user: Ec2User) -> None:
    """The condition on the tag keeps the role from everything that is not ours."""
    made = run(harness, user)
    harness.cloud.world.instances[made].tags.clear()
    stop_once(harness, user, made, 600)

    harness.advance(700)

    assert (user.state(made), problems(harness)) == ("running", ["UnauthorizedOperation"])


def test_a_role_deleted_meanwhile_stops_nothing(harness: AwsHarness, user: Ec2User) -> None:
    """The role is taken on when the schedule fires, not when it is made."""
    made = run(harness, user)
    stop_once(harness, user, made, 600)
    named = {"RoleName": "qft-scheduler"}
    user.call("delete_role_policy", "iam", **named, PolicyName="inline")
    user.call("delete_role", "iam", **named)

    harness.advance(700)

    assert (user.state(made), problems(harness)) == ("running", ["AssumeRole"])
    with pytest.raises(ProviderError, match="cannot be found"):
        user.call("get_role", "iam", **named)


@pytest.mark.parametrize(
    ("expression", "changes", "message"),
    [
        ("at(2020-01-01T00:00:00)", {}, "Invalid Schedule Expression"),
        ("every(5)", {}, "Invalid Schedule Expression"),
        ("rate(0 minutes)", {}, "Invalid Schedule Expression"),
        ("rate(5 minutes)", {"StartDate": -400}, "earlier than 5 minutes ago"),
        ("rate(5 minutes)", {"EndDate": -10}, "EndDate"),
        ("rate(5 minutes)", {"verb": "describeInstances"}, "not supported"),
        ("rate(5 minutes)", {"body": {"Instances": ["i-1"]}}, "Invalid RequestJson"),
    ],
)
def test_what_scheduler_would_not_take_is_refused(
    harness: AwsHarness, user: Ec2User, expression: str, changes: dict[str, Any], message: str
) -> None:
    """Times in the past, nonsense, calls that only read, parameters that EC2 does not have."""
    dates = {key: at(harness, changes[key]) for key in ("StartDate", "EndDate") if key in changes}
    verb, body = changes.get("verb", "stopInstances"), changes.get("body", {"InstanceIds": []})

    with pytest.raises(ProviderError, match=message):
        schedule(user, expression, verb, body, **dates)


def test_schedules_are_listed_changed_and_deleted(harness: AwsHarness, user: Ec2User) -> None:
    """By the beginning of their names, page by page; a second one of a name is a conflict."""
    made = run(harness, user)
    names = [f"qft-run-{letter}.1.stop" for letter in "abc"]
    for name in names:
        stop_once(harness, user, made, 3600, name=name)
    with pytest.raises(ProviderError, match="already exists"):
        stop_once(harness, user, made, 3600, name=names[0])

    rows = user.clients.pages(
        "scheduler", REGION, "list_schedules", "Schedules", doing="list", NamePrefix="qft-run-"
    )
    stop_once(harness, user, made, 7200, name=names[0], operation="update_schedule")
    changed = user.call("get_schedule", "scheduler", Name=names[0])
    for name in names[1:]:
        user.call("delete_schedule", "scheduler", Name=name)
    harness.advance(3700)

    assert [one["Name"] for one in rows] == names
    assert changed["ScheduleExpression"].startswith("at(")
    assert user.state(made) == "running"
    assert [name.rpartition("/")[2] for name in schedules.names(harness.cloud.world)] == names[:1]
    with pytest.raises(ProviderError, match="does not exist"):
        user.call("get_schedule", "scheduler", Name=names[1])


def test_whoever_may_not_pass_the_role_gets_no_schedule(harness: AwsHarness, user: Ec2User) -> None:
    """CreateSchedule needs two rights: its own, and to pass the role."""
    made = run(harness, user)
    harness.cloud.deny("iam:PassRole")

    with pytest.raises(NotAllowed, match="iam:PassRole"):
        stop_once(harness, user, made, 600)


# ---- alarms ----


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
