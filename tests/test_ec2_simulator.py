"""What the simulated EC2 promises about machines and their spot requests, asked by botocore."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ec2.harness import AwsHarness, aws
from ec2.resources import Instance
from ec2.steps import Ec2User

from infra.aws.errors import NotYetVisibleError, TokenReusedError, TokenSpentError
from infra.errors import BadRequest, NoCapacity, PriceAboveCap, ProviderError, Transient


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account with a computer."""
    with aws(tmp_path) as made:
        yield made


@pytest.fixture
def user(harness: AwsHarness) -> Ec2User:
    """Somebody who rents machines in it."""
    return Ec2User(harness)


def only(harness: AwsHarness) -> Instance:
    """The only machine that exists."""
    (machine,) = harness.cloud.machines()
    return machine


def stopped(harness: AwsHarness, user: Ec2User, **changes: Any) -> str:
    """A machine that its user stopped, long enough ago to start it again."""
    made = user.running(**changes)
    user.call("stop_instances", InstanceIds=[made])
    harness.advance(101)
    return made


def test_a_machine_runs_and_bills_until_it_is_terminated(
    harness: AwsHarness, user: Ec2User
) -> None:
    """A launched machine is pending, then runs with an address, and bills nothing when gone."""
    made = user.run()
    with pytest.raises(NotYetVisibleError):
        user.look(made)
    assert user.call("describe_instances")["Reservations"] == []
    harness.advance(5)
    assert user.state(made) == "pending"
    harness.advance(5)
    shown = user.look(made)

    assert shown["State"]["Name"] == "running"
    assert shown["PublicIpAddress"].startswith("127.0.")
    assert shown["InstanceLifecycle"] == "spot"
    assert user.request(made) == ("active", "fulfilled")
    kinds = sorted(line.split()[0] for line in harness.cloud.ledger.billing())
    assert kinds == ["address", "compute", "disk"]

    user.cancel(made)
    assert user.state(made) == "running"
    user.call("terminate_instances", InstanceIds=[made])
    harness.advance(60)
    assert user.state(made) == "terminated"
    assert user.look(made)["Tags"] == [{"Key": "qft-run", "Value": "run-a"}]
    assert harness.cloud.ledger.billing() == []
    assert harness.cloud.leftovers() == []
    harness.advance(3600)
    with pytest.raises(NotYetVisibleError):
        user.look(made)


def test_the_request_of_a_stopped_machine_follows_later(harness: AwsHarness, user: Ec2User) -> None:
    """A machine cannot start before its request says that the user stopped it: 40 seconds."""
    made = user.running()
    address = user.look(made)["PublicIpAddress"]
    user.call("stop_instances", InstanceIds=[made])
    seen = [(user.state(made), user.request(made))]
    with pytest.raises(Transient, match="IncorrectInstanceState"):
        user.call("start_instances", InstanceIds=[made])
    harness.advance(60)
    seen.append((user.state(made), user.request(made)))
    with pytest.raises(Transient, match="IncorrectSpotRequestState"):
        user.call("start_instances", InstanceIds=[made])
    harness.advance(40)
    seen.append((user.state(made), user.request(made)))
    user.call("start_instances", InstanceIds=[made])
    harness.advance(10)
    seen.append((user.state(made), user.request(made)))

    assert seen == [
        ("stopping", ("active", "marked-for-stop")),
        ("stopped", ("active", "marked-for-stop")),
        ("stopped", ("disabled", "instance-stopped-by-user")),
        ("running", ("active", "fulfilled")),
    ]
    assert user.look(made)["PublicIpAddress"] != address
    assert "StateReason" not in user.look(made)


def test_a_shutdown_inside_differs_by_the_reason_of_the_machine_alone(
    harness: AwsHarness, user: Ec2User
) -> None:
    """A machine that shuts itself down keeps its disk, and its request names the user."""
    made = user.running()
    harness.cloud.shut_down_inside(only(harness))
    harness.advance(101)

    assert user.look(made)["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    assert user.request(made) == ("disabled", "instance-stopped-by-user")
    assert [line.split()[0] for line in harness.cloud.ledger.billing()] == ["disk"]
    harness.advance(7200)
    assert user.state(made) == "stopped"


@pytest.mark.parametrize("kind", ["no-capacity", "by-price", "by-experiment"])
def test_an_interruption_is_announced_and_names_its_reason(
    harness: AwsHarness, user: Ec2User, kind: str
) -> None:
    """An interrupted machine runs through its notice of two minutes, then stops for a reason."""
    made = user.running()
    harness.cloud.interrupt(only(harness), kind=kind)
    notice = only(harness).notice
    harness.advance(119)
    during = user.state(made)
    harness.advance(62)

    assert notice is not None
    assert (notice.action, during) == ("stop", "running")
    assert user.look(made)["StateReason"]["Code"] == "Server.SpotInstanceShutdown"
    assert user.request(made) == ("disabled", f"instance-stopped-{kind}")


def test_ec2_restarts_what_it_interrupted_when_there_is_room(
    harness: AwsHarness, user: Ec2User
) -> None:
    """Only EC2 starts an interrupted machine again: the same one, when capacity returns."""
    made = user.running()
    launched = user.look(made)["LaunchTime"]
    harness.set_capacity("us-east-1", free=False)
    harness.cloud.interrupt(only(harness), notice_s=0)
    harness.advance(3600)
    with pytest.raises(NoCapacity, match="no available Spot capacity"):
        user.call("start_instances", InstanceIds=[made])
    harness.set_capacity("us-east-1", free=True)
    harness.advance(60)

    assert user.state(made) == "running"
    assert user.request(made) == ("active", "fulfilled")
    assert user.look(made)["LaunchTime"] > launched
    assert harness.cloud.world.machines_made == [made]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("InsufficientInstanceCapacity", NoCapacity),
        ("Unsupported", NoCapacity),
        ("IncorrectSpotRequestState", Transient),
    ],
)
def test_an_interrupted_machine_cannot_be_started(
    harness: AwsHarness, user: Ec2User, code: str, error: type[ProviderError]
) -> None:
    """Whoever starts what EC2 interrupted is refused, under each code that was seen for it."""
    made = user.running()
    harness.cloud.world.start_refusal = code
    harness.cloud.interrupt(only(harness), notice_s=0)
    harness.advance(60)

    with pytest.raises(error, match=code):
        user.call("start_instances", InstanceIds=[made])


def test_a_rehearsed_interruption_waits_for_the_user(harness: AwsHarness, user: Ec2User) -> None:
    """EC2 does not restart after an experiment, and the user may."""
    made = user.running()
    harness.cloud.interrupt(only(harness), kind="by-experiment")
    harness.advance(3600)
    assert user.state(made) == "stopped"
    user.call("start_instances", InstanceIds=[made])
    harness.advance(10)

    assert user.state(made) == "running"


@pytest.mark.parametrize("tagged", [False, True])
def test_a_live_request_launches_again_after_a_termination(
    harness: AwsHarness, user: Ec2User, *, tagged: bool
) -> None:
    """Terminated without cancelling, a machine comes back as another one, its tags or not."""
    harness.cloud.world.relaunch_tagged = tagged
    made = user.running()
    user.call("terminate_instances", InstanceIds=[made])
    assert user.request(made) == ("open", "instance-terminated-by-user")
    harness.advance(120)
    second = only(harness)
    shown = user.look(second.id)

    assert second.id != made
    assert shown["SpotInstanceRequestId"] == user.look(made)["SpotInstanceRequestId"]
    assert (shown["State"]["Name"], "Tags" in shown) == ("running", tagged)
    assert user.request(second.id) == ("active", "fulfilled")
    user.cancel(second.id)
    user.call("terminate_instances", InstanceIds=[second.id])
    harness.advance(3600)
    assert harness.cloud.machines() == []


def test_a_cancelled_request_takes_a_stopped_machine_with_it(
    harness: AwsHarness, user: Ec2User
) -> None:
    """Cancelling leaves a running machine alone, and terminates a stopped one after a while."""
    made = stopped(harness, user)
    user.cancel(made)
    before = user.state(made)
    harness.advance(40)

    assert (before, user.state(made)) == ("stopped", "terminated")
    assert user.request(made)[0] == "cancelled"
    assert harness.cloud.leftovers() == []


def test_a_machine_that_stops_after_the_cancelling_goes_as_well(
    harness: AwsHarness, user: Ec2User
) -> None:
    """A machine whose request is cancelled ends when it stops, however it comes to that."""
    made = user.running()
    user.cancel(made)
    assert user.request(made) == ("cancelled", "request-canceled-and-instance-running")
    harness.cloud.shut_down_inside(only(harness))
    harness.advance(120)

    assert user.state(made) == "terminated"


def until(harness: AwsHarness, seconds: float) -> dict[str, object]:
    """Spot options that expire in so many seconds."""
    return {"ValidUntil": datetime.fromtimestamp(harness.now() + seconds, tz=UTC)}


def test_after_its_expiry_a_request_starts_nothing(harness: AwsHarness, user: Ec2User) -> None:
    """What runs at `ValidUntil` goes on; once interrupted it is not started again by anybody."""
    made = user.running(options=until(harness, 600))
    harness.advance(900)
    assert (user.state(made), user.request(made)) == ("running", ("active", "fulfilled"))
    harness.cloud.interrupt(only(harness), notice_s=0)
    harness.advance(7200)

    assert user.state(made) == "stopped"
    assert user.request(made) == ("cancelled", "schedule-expired")
    with pytest.raises(Transient, match="IncorrectSpotRequestState"):
        user.call("start_instances", InstanceIds=[made])


@pytest.mark.parametrize("goes", [False, True])
def test_a_stopped_machine_may_go_with_its_expired_request(
    harness: AwsHarness, user: Ec2User, *, goes: bool
) -> None:
    """A request that expires is cancelled; whether its stopped machine goes is for tests to say."""
    harness.cloud.world.expiry_terminates = goes
    made = stopped(harness, user, options=until(harness, 600))
    harness.advance(600)

    assert user.request(made)[0] == "cancelled"
    assert user.state(made) == ("terminated" if goes else "stopped")


def test_an_expired_request_does_not_launch_again(harness: AwsHarness, user: Ec2User) -> None:
    """A machine terminated after `ValidUntil` stays the only one."""
    made = user.running(options=until(harness, 60))
    harness.advance(120)
    user.call("terminate_instances", InstanceIds=[made])
    harness.advance(3600)

    assert harness.cloud.machines() == []
    assert harness.cloud.spot_requests() == []


def test_tokens_are_kept_by_zone(user: Ec2User) -> None:
    """The same token and body is the same machine; in another zone it is a second one."""
    first = user.run()

    assert user.run() == first
    assert user.run(zone="us-east-1b") != first


def test_a_token_refuses_another_body(user: Ec2User) -> None:
    """A token that comes with another parameter is refused, whichever it is."""
    user.run()
    for changes in ({"UserData": "#cloud-config\n\n"}, {"options": {"MaxPrice": "0.61"}}):
        with pytest.raises(TokenReusedError):
            user.run(**changes)


def test_the_token_of_a_dead_machine_is_spent(harness: AwsHarness, user: Ec2User) -> None:
    """A token whose machine is terminated launches nothing for a day."""
    made = user.running()
    user.cancel(made)
    user.call("terminate_instances", InstanceIds=[made])
    harness.advance(7200)
    with pytest.raises(TokenSpentError):
        user.run()
    harness.advance(90_000)

    assert user.run() != made


def test_a_one_time_machine_cannot_stop(harness: AwsHarness, user: Ec2User) -> None:
    """A machine of a one-time request is refused to stop; interrupted, it is gone."""
    body = user.body()
    body["InstanceMarketOptions"]["SpotOptions"] = {"MaxPrice": "0.6"}
    made = user.call("run_instances", **body)["Instances"][0]["InstanceId"]
    harness.advance(10)
    with pytest.raises(BadRequest, match="one-time"):
        user.call("stop_instances", InstanceIds=[made])
    harness.cloud.interrupt(only(harness))
    assert user.request(made) == ("active", "marked-for-termination")
    harness.advance(180)

    assert user.look(made)["StateReason"]["Code"] == "Server.SpotInstanceTermination"
    assert user.request(made) == ("closed", "instance-terminated-no-capacity")


def test_a_machine_may_die_before_it_runs(harness: AwsHarness, user: Ec2User) -> None:
    """A machine that fails to start is terminated, says why, and has cost nothing to compute."""
    harness.cloud.world.pending_death = ("Client.InternalError", "Client error on launch")
    harness.cloud.world.relaunches = False
    made = user.running()
    harness.advance(30)

    assert user.look(made)["StateReason"]["Code"] == "Client.InternalError"
    assert harness.cloud.ledger.usd("compute") == 0


def test_a_machine_may_take_its_time_to_stop(harness: AwsHarness, user: Ec2User) -> None:
    """A slow guest is in `stopping` for minutes, in which its compute does not bill."""
    harness.cloud.world.timing.stop_s = 450
    made = user.running()
    harness.advance(600)
    user.call("stop_instances", InstanceIds=[made])
    usd = harness.cloud.ledger.usd("compute")
    harness.advance(449)
    assert user.state(made) == "stopping"
    harness.advance(1)

    assert user.state(made) == "stopped"
    assert harness.cloud.ledger.usd("compute") == usd > 0


def test_a_start_is_refused_as_a_launch_is(harness: AwsHarness, user: Ec2User) -> None:
    """A machine that its user stopped cannot start above its cap, nor in a full zone."""
    made = stopped(harness, user)
    harness.set_price("us-east-1", 0.8)
    with pytest.raises(PriceAboveCap, match=r"0\.8"):
        user.call("start_instances", InstanceIds=[made])
    harness.set_price("us-east-1", 0.4)
    harness.set_capacity("us-east-1", free=False)
    with pytest.raises(NoCapacity, match="no available Spot capacity"):
        user.call("start_instances", InstanceIds=[made])
    harness.set_capacity("us-east-1", free=True)
    user.call("start_instances", InstanceIds=[made])

    assert user.state(made) == "pending"
    assert harness.cloud.ledger.billing("compute") == []


def test_new_groups_may_be_invisible_for_a_while(harness: AwsHarness, user: Ec2User) -> None:
    """A security group just made can be unknown by its id and missing in lists."""
    harness.cloud.world.timing.group_lag_s = 10
    group = user.group()
    with pytest.raises(NotYetVisibleError):
        user.run(SecurityGroupIds=[group])
    harness.advance(10)

    assert user.run(SecurityGroupIds=[group]).startswith("i-")


def test_a_group_is_busy_while_an_interface_is_in_it(harness: AwsHarness, user: Ec2User) -> None:
    """A security group cannot go before the network interface of its machine has gone."""
    harness.cloud.world.timing.interface_s = 600
    group = user.group()
    made = user.running(SecurityGroupIds=[group])
    user.cancel(made)
    user.call("terminate_instances", InstanceIds=[made])
    harness.advance(300)
    with pytest.raises(Transient, match="DependencyViolation"):
        user.call("delete_security_group", GroupId=group)
    harness.advance(400)
    user.call("delete_security_group", GroupId=group)

    assert harness.cloud.leftovers() == []
