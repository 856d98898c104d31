"""What the simulated EventBridge Scheduler promises: it fires in time, as its role may."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ec2 import iam, schedules
from ec2.harness import AwsHarness, aws
from ec2.iam import ARN, trust_of
from ec2.service_steps import add_scheduler_role, policy, run
from ec2.state import ACCOUNT
from ec2.steps import REGION, Ec2User

from infra.errors import NotAllowed, ProviderError

ROLE = f"{ARN}qft-scheduler"
GROUP_ARN = f"arn:aws:scheduler:{REGION}:{ACCOUNT}:schedule-group/default"


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
