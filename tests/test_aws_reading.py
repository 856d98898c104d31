"""What a look at EC2 means: a table of instances and spot requests, and what the seam makes of it.

Codes are EC2's own, as botocore's model of `StateReason` and AWS's page on the status of spot
requests list them; times are seconds after the launch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from infra.aws.machine_view import MachineView, view_of
from infra.aws.reading import LAG_S, NEW_S, Orders, Remains, read
from infra.errors import NoCapacity, NotAllowed, OverQuota, PriceAboveCap, ProviderError
from infra.provider import Observation, PowerState, StopReason
from infra.timestamps import format_utc

LAUNCH_S = 1_790_000_000.0
HOUR_S = 3600.0
USER = "Client.UserInitiatedShutdown"
INSIDE = "Client.InstanceInitiatedShutdown"
STOPPED_BY_EC2 = "Server.SpotInstanceShutdown"
ENDED_BY_EC2 = "Server.SpotInstanceTermination"


def at(after_s: float) -> datetime:
    """A time as the SDK returns it, so many seconds after the launch."""
    return datetime.fromtimestamp(LAUNCH_S + after_s, tz=UTC)


def instance(
    state: str, code: str = "", *, launched: float = 0.0, ended: float | None = None, **more: Any
) -> dict[str, Any]:
    """An instance as `DescribeInstances` returns it."""
    row: dict[str, Any] = {
        "InstanceId": "i-1",
        "InstanceType": "g4dn.xlarge",
        "State": {"Name": state},
        "LaunchTime": at(launched),
        "SpotInstanceRequestId": "sir-1",
        "PublicIpAddress": "203.0.113.7",
        "Placement": {"AvailabilityZone": "us-east-1a"},
    }
    if code:
        row["StateReason"] = {"Code": code, "Message": f"{code}: what EC2 adds"}
    if ended is not None and code == USER:
        date = at(ended).strftime("%Y-%m-%d %H:%M:%S")
        row["StateTransitionReason"] = f"User initiated ({date} GMT)"
    return row | more


def request(status: str, *, state: str = "active", updated: float = 0.0, **more: Any) -> Any:
    """A spot request as `DescribeSpotInstanceRequests` returns it."""
    return {
        "SpotInstanceRequestId": "sir-1",
        "InstanceId": "i-1",
        "State": state,
        "SpotPrice": "0.250000",
        "Status": {"Code": status, "Message": "what EC2 adds", "UpdateTime": at(updated)},
        **more,
    }


def look(
    row: Any,
    asks: Any = None,
    orders: Orders = Orders(),  # noqa: B008  (frozen)
    remains: Remains = Remains(),  # noqa: B008  (frozen)
    *,
    now: float = HOUR_S,
) -> Observation:
    """Read what EC2 shows, `now` seconds after the launch."""
    return read(view_of(row, asks), orders, remains, now_s=LAUNCH_S + now)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A machine that is down, and what that means."""

    state: str = "stopped"
    code: str = ""
    status: str = ""
    orders: Orders = field(default_factory=Orders)
    power: PowerState = PowerState.DEALLOCATED
    reason: StopReason
    ended: float = 1800.0


RELEASED = Orders(requested="deallocate", released_at_s=LAUNCH_S + 1700)
LIMIT = Orders(requested="create", requested_at_s=LAUNCH_S, ran=True, limit_s=LAUNCH_S + 1700)
CASES = {
    "capacity": Case(
        code=STOPPED_BY_EC2, status="instance-stopped-no-capacity", reason=StopReason.EVICTED
    ),
    "price": Case(code=STOPPED_BY_EC2, status="instance-stopped-by-price", reason=StopReason.PRICE),
    "old word for capacity": Case(
        code=STOPPED_BY_EC2,
        status="instance-stopped-capacity-oversubscribed",
        reason=StopReason.EVICTED,
    ),
    "the request is not updated yet": Case(
        code=STOPPED_BY_EC2, status="marked-for-stop", reason=StopReason.EVICTED
    ),
    "rehearsal": Case(
        code=STOPPED_BY_EC2, status="instance-stopped-by-experiment", reason=StopReason.EVICTED
    ),
    "rehearsal that looks like a user's stop": Case(
        code=USER, status="instance-stopped-by-experiment", reason=StopReason.EVICTED
    ),
    "a person by the API": Case(
        code=USER, status="instance-stopped-by-user", reason=StopReason.USER
    ),
    "we": Case(
        code=USER, status="instance-stopped-by-user", orders=RELEASED, reason=StopReason.USER
    ),
    "our schedule": Case(
        code=USER, status="instance-stopped-by-user", orders=LIMIT, reason=StopReason.RETURNED
    ),
    "from inside": Case(code=INSIDE, status="instance-stopped-by-user", reason=StopReason.RETURNED),
    "hardware": Case(
        code="Server.ScheduledStop", status="instance-stopped-by-user", reason=StopReason.FAILED
    ),
    "a fault of EC2": Case(
        code="Server.InternalError", status="instance-stopped-by-user", reason=StopReason.FAILED
    ),
    "no code, and the request speaks": Case(
        status="instance-stopped-no-capacity", reason=StopReason.EVICTED
    ),
    "no code, and nobody speaks": Case(status="fulfilled", reason=StopReason.UNKNOWN),
    "ended by a person": Case(
        state="terminated",
        code=USER,
        status="spot-instance-terminated-by-user",
        power=PowerState.GONE,
        reason=StopReason.USER,
    ),
    "ended by EC2": Case(
        state="terminated",
        code=ENDED_BY_EC2,
        status="instance-terminated-no-capacity",
        power=PowerState.GONE,
        reason=StopReason.EVICTED,
    ),
    "ended by EC2 for its price": Case(
        state="terminated",
        code=ENDED_BY_EC2,
        status="instance-terminated-by-price",
        power=PowerState.GONE,
        reason=StopReason.PRICE,
    ),
    "removed by us": Case(
        state="terminated",
        code=USER,
        status="request-canceled-and-instance-running",
        orders=Orders(requested="delete", requested_at_s=LAUNCH_S + 1700),
        power=PowerState.GONE,
        reason=StopReason.USER,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_stop_is_read_from_both_codes(case: Case) -> None:
    """The instance's code and its request's status together give the reason of a stop."""
    row = instance(case.state, case.code, ended=case.ended)

    seen = look(row, request(case.status, updated=case.ended), case.orders)

    assert (seen.power, seen.stop_reason) == (case.power, case.reason)
    assert not seen.power.bills_compute
    assert seen.refusal is None


def test_the_bill_ends_when_the_stop_was_ordered() -> None:
    """A stop that took seven minutes is dated when it was ordered: `stopping` is not billed."""
    row = instance("stopped", USER, ended=1000)

    seen = look(row, request("instance-stopped-by-user", updated=1450), RELEASED)

    assert seen.since == format_utc(LAUNCH_S + 1000)


def test_an_interruption_is_dated_by_its_request() -> None:
    """An interruption has no date on the instance: that of the request counts."""
    row = instance("stopped", STOPPED_BY_EC2)

    seen = look(row, request("instance-stopped-no-capacity", updated=1234))

    assert seen.since == format_utc(LAUNCH_S + 1234)


def test_a_status_from_before_the_launch_dates_nothing() -> None:
    """A request that still speaks of the stop before this launch does not date the new one."""
    row = instance("stopped", STOPPED_BY_EC2, launched=600)

    seen = look(row, request("instance-stopped-no-capacity", updated=100))

    assert seen.since == ""


@pytest.mark.parametrize(
    ("state", "orders", "power"),
    [
        ("pending", Orders(requested="create", requested_at_s=LAUNCH_S), PowerState.CREATING),
        ("pending", Orders(), PowerState.CREATING),
        ("pending", Orders(requested="start", requested_at_s=LAUNCH_S), PowerState.STARTING),
        ("pending", Orders(created_at_s=LAUNCH_S - 2 * HOUR_S), PowerState.STARTING),
        ("running", Orders(), PowerState.RUNNING),
        ("stopping", Orders(), PowerState.STOPPING),
        ("shutting-down", Orders(), PowerState.STOPPING),
    ],
)
def test_states_on_the_way(state: str, orders: Orders, power: PowerState) -> None:
    """A machine that boots is new or starts again; one on its way down is stopping."""
    seen = look(instance(state), orders=orders, now=30)

    assert (seen.power, seen.stop_reason) == (power, None)


def test_a_restart_by_ec2_is_a_running_machine_that_bills_since_its_launch() -> None:
    """EC2 started it again after an interruption: it runs, and bills from that launch on."""
    interrupted = Orders(requested="create", requested_at_s=LAUNCH_S, ran=True)

    seen = look(instance("running", launched=900), orders=interrupted)

    assert seen.power is PowerState.RUNNING
    assert seen.bills_since == format_utc(LAUNCH_S + 900)


def test_a_relaunched_machine_is_not_taken_over() -> None:
    """Another instance from the same request has an empty disk: the machine failed, and bills."""
    other = view_of(instance("running", launched=2000) | {"InstanceId": "i-2"})

    seen = look(
        instance("terminated", USER, ended=1900),
        request("fulfilled", updated=2000, InstanceId="i-2"),
        remains=Remains(anything=True, replacement=other),
    )

    assert (seen.power, seen.stop_reason) == (PowerState.FAILED, StopReason.FAILED)
    assert seen.power.bills_compute
    assert "`i-2`" in seen.detail
    assert seen.since == format_utc(LAUNCH_S + 1900)
    assert seen.bills_since == format_utc(LAUNCH_S + 2000)


def test_something_left_is_remnants() -> None:
    """A terminated machine of which a group or an open request is left is not quite gone."""
    seen = look(
        instance("terminated", USER, ended=1900),
        request("instance-terminated-by-user", state="open", updated=1900),
        remains=Remains(anything=True),
    )

    assert (seen.power, seen.stop_reason) == (PowerState.REMNANTS, StopReason.USER)


@pytest.mark.parametrize(
    ("code", "status", "refusal"),
    [
        ("Server.InsufficientInstanceCapacity", "capacity-not-available", NoCapacity),
        ("Server.InternalError", "instance-terminated-by-service", NoCapacity),
        (ENDED_BY_EC2, "instance-terminated-no-capacity", NoCapacity),
        (ENDED_BY_EC2, "instance-terminated-by-price", PriceAboveCap),
        ("Client.VolumeLimitExceeded", "bad-parameters", OverQuota),
        ("Client.InternalError", "bad-parameters", NotAllowed),
    ],
)
def test_terminated_before_running_is_a_late_refusal(
    code: str, status: str, refusal: type[ProviderError]
) -> None:
    """A machine that EC2 ends instead of booting it was refused, whatever the first answer was."""
    seen = look(
        instance("terminated", code),
        request(status, updated=5),
        Orders(requested="create", requested_at_s=LAUNCH_S),
        now=60,
    )

    assert (seen.power, seen.ran) == (PowerState.FAILED, False)
    assert type(seen.refusal) is refusal


def test_an_error_on_launch_is_a_refusal_without_any_date() -> None:
    """EC2's words "on launch" say that the machine never ran, also where nothing is dated."""
    reason = {"Code": "Server.InternalError", "Message": "Internal error on launch"}

    seen = look(instance("terminated") | {"StateReason": reason}, request("system-error"))

    assert (seen.power, seen.ran) == (PowerState.FAILED, False)
    assert isinstance(seen.refusal, NoCapacity)


def test_a_start_that_came_to_nothing_is_a_late_refusal() -> None:
    """A stopped machine whose start EC2 accepted and did not carry out stays down, refused."""
    seen = look(
        instance("stopped", "Server.InsufficientInstanceCapacity", launched=500),
        request("instance-stopped-no-capacity", state="disabled", updated=505),
        Orders(requested="start", requested_at_s=LAUNCH_S + 499),
        now=520,
    )

    assert (seen.power, seen.ran) == (PowerState.DEALLOCATED, False)
    assert isinstance(seen.refusal, NoCapacity)


def test_a_stop_after_running_refuses_nothing() -> None:
    """A machine that ran for an hour while nobody looked was evicted, not refused."""
    seen = look(
        instance("stopped", STOPPED_BY_EC2),
        request("instance-stopped-no-capacity", updated=HOUR_S),
        Orders(requested="create", requested_at_s=LAUNCH_S),
        now=2 * HOUR_S,
    )

    assert (seen.stop_reason, seen.ran, seen.refusal) == (StopReason.EVICTED, True, None)


@pytest.mark.parametrize(
    ("orders", "after", "power"),
    [
        (Orders(requested="create", requested_at_s=LAUNCH_S), NEW_S - 1, PowerState.CREATING),
        (Orders(created_at_s=LAUNCH_S), NEW_S - 1, PowerState.CREATING),
        (Orders(requested="create", requested_at_s=LAUNCH_S), NEW_S, PowerState.GONE),
        (Orders(created_at_s=LAUNCH_S), NEW_S, PowerState.GONE),
        (Orders(requested="delete", requested_at_s=LAUNCH_S), 10, PowerState.GONE),
        (Orders(requested="start", requested_at_s=LAUNCH_S), 10, PowerState.GONE),
    ],
)
def test_not_found_after_our_create_is_not_gone(
    orders: Orders, after: float, power: PowerState
) -> None:
    """What EC2 does not know within five minutes of our create is not visible yet."""
    assert look(None, orders=orders, now=after).power is power


@pytest.mark.parametrize(
    ("status", "reason", "certain"),
    [
        ("instance-terminated-no-capacity", StopReason.EVICTED, True),
        ("instance-terminated-by-price", StopReason.PRICE, True),
        ("spot-instance-terminated-by-user", StopReason.USER, True),
        ("canceled-before-fulfillment", StopReason.UNKNOWN, False),
    ],
)
def test_a_machine_that_is_listed_no_more_is_read_from_its_request(
    status: str,
    reason: StopReason,
    certain: bool,  # noqa: FBT001  (a column)
) -> None:
    """An hour after its end an instance is not listed: its request still says why it went."""
    seen = look(None, request(status, state="closed", updated=100))

    assert (seen.power, seen.stop_reason, seen.certain) == (PowerState.GONE, reason, certain)


@pytest.mark.parametrize(
    ("after", "power"), [(1, PowerState.STARTING), (LAG_S, PowerState.DEALLOCATED)]
)
def test_an_accepted_start_is_not_read_as_the_stop_before_it(
    after: float, power: PowerState
) -> None:
    """Right after a start EC2 may still show the old stop: the machine is starting, for a while."""
    started = Orders(
        requested="start", requested_at_s=LAUNCH_S + 2000, released_at_s=LAUNCH_S + 900
    )

    seen = look(
        instance("stopped", USER, ended=900),
        request("instance-stopped-by-user", state="disabled", updated=1300),
        started,
        now=2000 + after,
    )

    assert seen.power is power


def test_a_release_of_an_earlier_launch_does_not_claim_a_later_stop() -> None:
    """Who stops the machine after we started it again is not us, although we stopped it before."""
    restarted = Orders(requested="start", ran=True, released_at_s=LAUNCH_S - HOUR_S)

    seen = look(
        instance("stopped", USER, ended=1800),
        request("instance-stopped-by-user", state="disabled", updated=1800),
        restarted,
    )

    assert seen.stop_reason is StopReason.USER
    assert "qft asked" not in seen.detail


@pytest.mark.parametrize(
    ("ended", "reason"), [(7100, StopReason.USER), (7200, StopReason.RETURNED)]
)
def test_without_a_record_the_end_of_the_request_tells_the_limit(
    ended: float, reason: StopReason
) -> None:
    """Another computer knows our limit by the request, which ends an hour after it."""
    seen = look(
        instance("stopped", USER, ended=ended),
        request("instance-stopped-by-user", updated=ended, ValidUntil=at(7200 + HOUR_S)),
        now=3 * HOUR_S,
    )

    assert seen.stop_reason is reason


@pytest.mark.parametrize(("state", "comes"), [("disabled", True), ("cancelled", False)])
def test_an_interrupted_machine_comes_back_by_itself(state: str, *, comes: bool) -> None:
    """Who reads of an interruption reads, too, that EC2 starts the machine again, and bills."""
    seen = look(
        instance("stopped", STOPPED_BY_EC2),
        request("instance-stopped-no-capacity", state=state, updated=1800),
    )

    assert ("starts it again by itself" in seen.detail) is comes


WAIVED = {
    "capacity": (STOPPED_BY_EC2, "instance-stopped-no-capacity", 3599, Orders(), True),
    "price": (STOPPED_BY_EC2, "instance-stopped-by-price", 60, Orders(), True),
    "terminated": (ENDED_BY_EC2, "instance-terminated-no-capacity", 1800, Orders(), True),
    "an hour": (STOPPED_BY_EC2, "instance-stopped-no-capacity", 3600, Orders(), False),
    "rehearsal": (STOPPED_BY_EC2, "instance-stopped-by-experiment", 1800, Orders(), False),
    "rehearsal that the request does not show yet": (
        STOPPED_BY_EC2,
        "instance-stopped-no-capacity",
        1800,
        Orders(requested="evict"),
        False,
    ),
    "stopped by us after the notice": (USER, "instance-stopped-by-user", 1800, RELEASED, False),
    "a shutdown inside": (INSIDE, "instance-stopped-by-user", 1800, Orders(), False),
    "nobody says when": (STOPPED_BY_EC2, "marked-for-stop", 1800, Orders(), False),
}


@pytest.mark.parametrize(
    ("code", "status", "ended", "orders", "is_free"), WAIVED.values(), ids=WAIVED
)
def test_ec2_waives_only_a_first_hour_that_it_ends_itself(
    code: str, status: str, ended: float, orders: Orders, *, is_free: bool
) -> None:
    """Its compute is free since its launch; whoever else stopped it, and a rehearsal, costs."""
    state = "terminated" if code == ENDED_BY_EC2 else "stopped"

    seen = look(
        instance(state, code, ended=ended),
        request(status, state="disabled", updated=ended),
        orders,
        now=2 * HOUR_S,
    )

    assert seen.waived_since == (format_utc(LAUNCH_S) if is_free else "")
    assert ("bills none" in seen.detail) is is_free


def test_a_notice_is_in_the_words() -> None:
    """A machine whose request is marked for a stop still runs, and says that EC2 will take it."""
    seen = look(instance("running"), request("marked-for-stop"))

    assert seen.power is PowerState.RUNNING
    assert "notice" in seen.detail


def test_foreign_answers_are_read_as_little() -> None:
    """What is no text, no time or no list in an answer is left out, never guessed."""
    row = {
        "InstanceId": ["i-1"],
        "State": "running",
        "LaunchTime": "yesterday",
        "StateReason": [],
        "SecurityGroups": "none",
        "Tags": [{"Key": "qft-run", "Value": "a"}, "x"],
        "StateTransitionReason": "User initiated (2026-13-40 99:00:00 GMT)",
    }

    view = view_of(row, {"SpotPrice": "nan", "Status": None})

    assert view == MachineView(tags={"qft-run": "a"})
