"""What ends a machine on AWS without us: when, by which requests, and what is said of the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.recorded_aws import ACCOUNT, NOW_S, RecordedAws, context_of

from infra.aws.context import AwsContext
from infra.aws.errors import AwsErrorInfo, RoleNotTrustedError, translate
from infra.aws.safeguard_times import latest_limit_s, request_expiry_s
from infra.aws.safeguards import AwsSafeguards
from infra.aws.schedules import ATTEMPT_PAUSE_S, ATTEMPTS
from infra.errors import Gone, NotAllowed, ProviderError, SignedOut, Transient
from infra.offer import Want
from infra.provider import Safeguard, Vm
from infra.timestamps import format_utc, parse_utc_s

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
UNTIL_S = NOW_S + 5 * HOUR_S
REGION = "us-east-1"
PREFIX = "qft-run-a.1."
VM = Vm(
    provider="aws",
    run_id="run-a",
    id=f"{ACCOUNT}/{REGION}/i-0123456789abcdef0",
    region=REGION,
    size="g4dn.xlarge",
    created_at=format_utc(NOW_S),
    price_usd_per_h=0.19,
    idle_usd_per_h=0.014027,
)
WANT = Want(gpu="T4", regions=[REGION], max_price_usd_per_h=0.25)
NO_TRUST = translate(
    AwsErrorInfo(
        code="ValidationException",
        message="The execution role you provide must allow AWS EventBridge Scheduler to assume the"
        " role.",
        status=400,
    ),
    doing="set the schedule",
)


class Account(RecordedAws):
    """An account with a role, a spot request of the run, and stores of schedules and alarms."""

    def __init__(self) -> None:
        super().__init__()
        self.schedules: dict[str, dict[str, Any]] = {}
        self.alarms: dict[str, dict[str, Any]] = {}
        self.request: dict[str, Any] = {
            "SpotInstanceRequestId": "sir-abcd1234",
            "InstanceId": "i-0123456789abcdef0",
            "SpotPrice": "0.250000",
            "State": "active",
            "ValidUntil": datetime.fromtimestamp(request_expiry_s(UNTIL_S), tz=UTC),
        }
        self.answers = {
            "describe_spot_instance_requests": lambda _: {"SpotInstanceRequests": [self.request]},
            "create_schedule": self._create,
            "update_schedule": self._update,
            "get_schedule": lambda body: dict(self._existing(body)),
            "delete_schedule": self._delete,
            "list_schedules": lambda body: {
                "Schedules": [
                    {"Name": name} for name in self.schedules if name.startswith(body["NamePrefix"])
                ]
            },
            "put_metric_alarm": self._put_alarm,
            "describe_alarms": lambda body: {
                "MetricAlarms": [
                    {"AlarmName": name}
                    for name in self.alarms
                    if name.startswith(body["AlarmNamePrefix"])
                ]
            },
            "delete_alarms": self._delete_alarms,
        }

    def without_role(self) -> None:
        """Take the role of EventBridge Scheduler away."""
        self.answers["get_role"] = Gone("cannot look at the role: NoSuchEntity")

    def targets(self) -> dict[str, str]:
        """What the schedules do, by the last part of their names."""
        return {
            name.rpartition(".")[2]: body["Target"]["Arn"].rpartition(":")[2]
            for name, body in self.schedules.items()
        }

    def _existing(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if body["Name"] not in self.schedules:
            raise Gone("ResourceNotFoundException")
        return self.schedules[body["Name"]]

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["Name"] not in self.schedules
        self.schedules[body["Name"]] = body
        return {}

    def _update(self, body: dict[str, Any]) -> dict[str, Any]:
        self._existing(body)
        self.schedules[body["Name"]] = body
        return {}

    def _delete(self, body: dict[str, Any]) -> dict[str, Any]:
        self._existing(body)
        del self.schedules[body["Name"]]
        return {}

    def _put_alarm(self, body: dict[str, Any]) -> dict[str, Any]:
        self.alarms[body["AlarmName"]] = body
        return {}

    def _delete_alarms(self, body: dict[str, Any]) -> dict[str, Any]:
        for name in body["AlarmNames"]:
            if self.alarms.pop(name, None) is None:
                raise Gone("ResourceNotFound")
        return {}


@dataclass(frozen=True)
class Scenario:
    """An account, and the safeguards of a computer that uses it."""

    account: Account
    context: AwsContext

    @property
    def safeguards(self) -> AwsSafeguards:
        """As a new process has them."""
        return AwsSafeguards(context=self.context)


@pytest.fixture
def scene(tmp_path: Path) -> Scenario:
    """An account in which everything may be set."""
    account = Account()
    return Scenario(account, context_of(account, tmp_path))


def by_name(found: list[Safeguard]) -> dict[str, Safeguard]:
    """Safeguards by their names, of which there is one each."""
    assert len({one.name for one in found}) == len(found)
    return {one.name: one for one in found}


def at_s(body: Mapping[str, Any]) -> float:
    """The time of a schedule that acts once."""
    found = re.fullmatch(r"at\((.+)\)", body["ScheduleExpression"])
    assert found is not None
    return parse_utc_s(f"{found[1]}+00:00") or 0.0


# ---- setting ----


def test_schedules_stop_the_machine_and_keep_its_disk(scene: Scenario) -> None:
    """Without `disk_days` one schedule stops the machine; nothing cancels, nothing terminates."""
    found = by_name(scene.safeguards.set_safeguards(VM, until_s=UNTIL_S))

    assert scene.account.targets() == {"stop": "stopInstances"}
    body = scene.account.schedules[f"{PREFIX}stop"]
    assert body["ScheduleExpression"] == "rate(15 minutes)"
    assert json.loads(body["Target"]["Input"]) == {"InstanceIds": ["i-0123456789abcdef0"]}
    assert body["Target"]["RoleArn"] == f"arn:aws:iam::{ACCOUNT}:role/qft-scheduler"
    assert body["ActionAfterCompletion"] == "DELETE"
    assert [name for name, one in found.items() if not one.is_set] == ["disk"]
    assert "$0.34 a day until `qft down --delete`" in found["disk"].detail
    assert "disk_days" in found["disk"].hint
    assert scene.account.alarms == {}


def test_disk_days_cancel_the_request_and_then_terminate(scene: Scenario) -> None:
    """Three schedules end the machine and its disk, in an order in which nothing comes back."""
    found = by_name(scene.safeguards.set_safeguards(VM, until_s=UNTIL_S, disk_days=2))

    assert scene.account.targets() == {
        "stop": "stopInstances",
        "cancel": "cancelSpotInstanceRequests",
        "terminate": "terminateInstances",
    }
    bodies = scene.account.schedules
    cancel, terminate = bodies[f"{PREFIX}cancel"], bodies[f"{PREFIX}terminate"]
    assert json.loads(cancel["Target"]["Input"]) == {"SpotInstanceRequestIds": ["sir-abcd1234"]}
    assert json.loads(terminate["Target"]["Input"]) == {"InstanceIds": ["i-0123456789abcdef0"]}
    assert at_s(cancel) < at_s(terminate)
    assert abs(at_s(cancel) - UNTIL_S - 2 * DAY_S) < 60
    assert format_utc(at_s(terminate)) in found["disk"].detail


def test_worst_case_ends_at_the_first_stop(scene: Scenario) -> None:
    """The bill that is possible is told with the schedules: the cap until the first stop."""
    found = by_name(scene.safeguards.set_safeguards(VM, until_s=UNTIL_S))

    assert "at most $1.28 of compute" in found["schedules"].detail
    assert found["self-release"].stops_at_s == UNTIL_S


def test_later_limit_moves_the_schedules_that_exist(scene: Scenario) -> None:
    """A renewal updates each schedule with its whole body, and makes no second one."""
    scene.safeguards.set_safeguards(VM, until_s=UNTIL_S - HOUR_S, disk_days=1)
    before = dict(scene.account.schedules)

    scene.safeguards.set_safeguards(VM, until_s=UNTIL_S, disk_days=1)

    after = scene.account.schedules
    assert after.keys() == before.keys()
    moved = after[f"{PREFIX}stop"]["StartDate"] - before[f"{PREFIX}stop"]["StartDate"]
    assert moved.total_seconds() == HOUR_S
    assert at_s(after[f"{PREFIX}terminate"]) - at_s(before[f"{PREFIX}terminate"]) == HOUR_S


def test_disk_that_is_to_stay_after_all_is_not_removed(scene: Scenario) -> None:
    """Taking `disk_days` out of the budget takes the schedules away that would remove the disk."""
    scene.safeguards.set_safeguards(VM, until_s=UNTIL_S, disk_days=1)

    scene.safeguards.set_safeguards(VM, until_s=UNTIL_S)

    assert scene.account.targets() == {"stop": "stopInstances"}


def test_role_that_is_not_trusted_yet_is_tried_again(scene: Scenario) -> None:
    """A role takes seconds to be trusted everywhere: the schedule is set when it is."""
    refusals = iter([NO_TRUST, NO_TRUST])
    create = scene.account._create

    def late(body: dict[str, Any]) -> dict[str, Any]:
        refusal = next(refusals, None)
        if refusal is not None:
            raise refusal
        return create(body)

    scene.account.answers["create_schedule"] = late

    found = by_name(scene.safeguards.set_safeguards(VM, until_s=UNTIL_S))

    assert found["schedules"].is_set
    assert scene.context.clock() == NOW_S + 2 * ATTEMPT_PAUSE_S


def test_other_hiccups_of_scheduler_are_not_waited_for(scene: Scenario) -> None:
    """An answer that does not come is a finding at once: the next renewal tries again."""
    scene.account.answers["update_schedule"] = Transient("cannot set it just now: no answer")

    found = by_name(scene.safeguards.set_safeguards(VM, until_s=UNTIL_S))

    assert isinstance(NO_TRUST, RoleNotTrustedError)
    assert "no answer" in found["schedules"].detail
    assert scene.context.clock() == NOW_S


def test_role_that_is_never_trusted_is_given_up(scene: Scenario) -> None:
    """After about a minute the alarm takes the place of the schedules, and both are told."""
    scene.account.answers["create_schedule"] = NO_TRUST

    found = by_name(scene.safeguards.set_safeguards(VM, until_s=UNTIL_S))

    assert not found["schedules"].is_set
    assert found["alarm"].is_set
    assert scene.context.clock() == NOW_S + (ATTEMPTS - 1) * ATTEMPT_PAUSE_S


def test_without_a_role_an_alarm_stops_the_machine(scene: Scenario) -> None:
    """No schedule is tried, the lack is told with its price and its remedy, an alarm is set."""
    scene.account.without_role()

    found = by_name(scene.safeguards.set_safeguards(VM, until_s=UNTIL_S))

    assert scene.account.schedules == {}
    assert not found["schedules"].is_set
    assert "qft-scheduler" in found["schedules"].detail
    assert "up to $6.00 a day" in found["schedules"].detail
    assert "qft doctor --provider aws" in found["schedules"].hint
    (alarm,) = scene.account.alarms.values()
    assert alarm["AlarmName"] == f"{PREFIX}limit"
    assert alarm["AlarmActions"] == ["arn:aws:automate:us-east-1:ec2:stop"]
    assert alarm["TreatMissingData"] == "notBreaching"
    assert alarm["Period"] * alarm["EvaluationPeriods"] == 5 * HOUR_S
    assert "at most $1.32 of compute" in found["alarm"].detail


def test_alarm_goes_when_schedules_can_be_set(scene: Scenario) -> None:
    """A role that was made meanwhile takes over, and nothing counts beside it."""
    answers = dict(scene.account.answers)
    scene.account.without_role()
    scene.safeguards.set_safeguards(VM, until_s=UNTIL_S)
    scene.account.answers = answers

    scene.safeguards.set_safeguards(VM, until_s=UNTIL_S)

    assert scene.account.targets() == {"stop": "stopInstances"}
    assert scene.account.alarms == {}


def test_account_that_may_set_nothing_still_has_the_machine_itself(scene: Scenario) -> None:
    """Cap, end of the request and self-release need no right; what is missing is told."""
    refused = NotAllowed("cannot: the credentials lack the right", hint="docs/aws.md")
    for operation in ("get_role", "update_schedule", "put_metric_alarm", "delete_alarms"):
        scene.account.answers[operation] = refused

    found = by_name(scene.safeguards.set_safeguards(VM, until_s=UNTIL_S))

    held = [name for name, one in found.items() if one.is_set]
    assert held == ["price cap", "spot request", "self-release"]
    assert all("a day" in one.detail for one in found.values() if not one.is_set)
    assert "at most $1.27 of compute" in found["self-release"].detail


def test_limit_beyond_the_end_of_the_request_is_given_as_data(scene: Scenario) -> None:
    """A raised budget takes another machine: the latest limit of this one stands as a number."""
    found = by_name(scene.safeguards.set_safeguards(VM, until_s=UNTIL_S + DAY_S))

    assert "another machine" in found["spot request"].detail
    latest_s = found["spot request"].latest_limit_s
    assert latest_s == latest_limit_s(request_expiry_s(UNTIL_S))
    assert scene.account.schedules[f"{PREFIX}stop"]["StartDate"].timestamp() <= latest_s + 60


def test_machine_without_cap_counts_at_the_on_demand_price(scene: Scenario) -> None:
    """No cap is told as missing, and the worst case takes what EC2 takes in its place."""
    del scene.account.request["SpotPrice"]

    found = by_name(scene.safeguards.set_safeguards(VM, until_s=UNTIL_S))

    assert not found["price cap"].is_set
    assert "at most $2.66 of compute" in found["schedules"].detail


def test_request_that_is_not_shown_yet_keeps_nothing_from_being_set(scene: Scenario) -> None:
    """EC2 may not list the request seconds after its launch: schedules are set all the same."""
    scene.account.answers["describe_spot_instance_requests"] = {"SpotInstanceRequests": []}

    found = by_name(scene.safeguards.set_safeguards(VM, until_s=UNTIL_S, disk_days=1))

    assert found["schedules"].is_set
    assert scene.account.targets() == {"stop": "stopInstances", "terminate": "terminateInstances"}


def test_limit_is_recorded_before_a_schedule_can_act(scene: Scenario) -> None:
    """A stop at that time is then read as ours, not as a person's, wherever qft was killed."""

    def killed(_body: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    scene.account.answers["create_schedule"] = killed

    with pytest.raises(KeyboardInterrupt):
        scene.safeguards.set_safeguards(VM, until_s=UNTIL_S)

    recorded = scene.context.record("run-a").ids["limit"]
    assert 0 <= (parse_utc_s(recorded) or 0) - UNTIL_S < 60


def test_every_name_fits_for_the_longest_run(scene: Scenario) -> None:
    """A run id of 40 characters and a generation of three digits leave room for each schedule."""
    vm = replace(VM, run_id="r" * 40, generation=999)

    scene.safeguards.set_safeguards(vm, until_s=UNTIL_S, disk_days=1)

    assert len(scene.account.schedules) == 3


# ---- starting and removing ----


def test_start_puts_off_stops_that_are_due(scene: Scenario) -> None:
    """A machine that is started on purpose after its limit is not stopped while it boots."""
    scene.safeguards.set_safeguards(VM, until_s=UNTIL_S, disk_days=1)
    gap_s = at_s(scene.account.schedules[f"{PREFIX}terminate"]) - UNTIL_S
    scene.context.sleep(6 * HOUR_S)

    scene.safeguards.before_start(VM)

    stop = scene.account.schedules[f"{PREFIX}stop"]
    begins_s = stop["StartDate"].timestamp()
    assert 1800 <= begins_s - scene.context.clock() < 1860
    assert stop["Target"]["RoleArn"]
    assert abs(at_s(scene.account.schedules[f"{PREFIX}terminate"]) - begins_s - gap_s) < 60


def test_start_leaves_stops_alone_that_are_far_ahead(scene: Scenario) -> None:
    """A start after an interruption moves nothing: the limit is as it was."""
    scene.safeguards.set_safeguards(VM, until_s=UNTIL_S)
    before = dict(scene.account.schedules)

    scene.safeguards.before_start(VM)

    assert scene.account.schedules == before


@pytest.mark.parametrize("error", [NotAllowed("no right"), Transient("throttled")])
def test_start_goes_on_where_stops_cannot_be_put_off(scene: Scenario, error: ProviderError) -> None:
    """The machine may be stopped once more, which is no reason not to start it."""
    scene.safeguards.set_safeguards(VM, until_s=UNTIL_S)
    before = dict(scene.account.schedules)
    scene.account.answers["get_schedule"] = error
    scene.context.sleep(6 * HOUR_S)

    scene.safeguards.before_start(VM)

    assert scene.account.schedules == before


def test_leftovers_are_found_by_name_and_removed(scene: Scenario) -> None:
    """Schedules and alarms of all machines of the run go; those of another run stay."""
    scene.safeguards.set_safeguards(VM, until_s=UNTIL_S, disk_days=1)
    scene.safeguards.set_safeguards(replace(VM, generation=2), until_s=UNTIL_S)
    scene.safeguards.set_safeguards(replace(VM, run_id="run-ab"), until_s=UNTIL_S)
    scene.account.alarms[f"{PREFIX}limit"] = {}

    names = scene.safeguards.leftovers("run-a", REGION)
    removed = scene.safeguards.remove("run-a", REGION)

    assert sorted(names) == sorted(removed)
    assert len(removed) == 5
    assert list(scene.account.schedules) == ["qft-run-ab.1.stop"]
    assert scene.safeguards.leftovers("run-a", REGION) == []


def test_account_that_may_not_list_has_left_nothing(scene: Scenario) -> None:
    """A run without the right to schedules is removed without it; who is signed out is told so."""
    for operation in ("list_schedules", "describe_alarms"):
        scene.account.answers[operation] = NotAllowed("no right")

    assert scene.safeguards.remove("run-a", REGION) == []

    scene.account.answers["list_schedules"] = SignedOut("nobody is signed in")
    with pytest.raises(SignedOut):
        scene.safeguards.remove("run-a", REGION)


# ---- preview ----


def test_preview_predicts_what_is_then_set(scene: Scenario) -> None:
    """Before there is a machine the same safeguards are named, and nothing is created."""
    predicted = by_name(scene.safeguards.preview_safeguards(WANT, until_s=UNTIL_S, disk_days=1))
    created = scene.account.made("create_schedule", "update_schedule", "put_metric_alarm")
    found = by_name(scene.safeguards.set_safeguards(VM, until_s=UNTIL_S, disk_days=1))

    assert created == []
    assert {n: one.is_set for n, one in predicted.items()} == {
        n: one.is_set for n, one in found.items()
    }
    assert predicted["schedules"].stops_at_s == found["schedules"].stops_at_s


def test_preview_names_the_alarm_where_there_is_no_role(scene: Scenario) -> None:
    """The lack of the role is told with its price before anything is rented."""
    scene.account.without_role()

    found = by_name(scene.safeguards.preview_safeguards(WANT, until_s=UNTIL_S))

    assert not found["schedules"].is_set
    assert "up to $6.00 a day" in found["schedules"].detail
    assert found["alarm"].is_set


@pytest.mark.parametrize(
    "error", [NotAllowed("no right"), SignedOut("nobody"), Transient("no answer")]
)
def test_preview_never_raises(scene: Scenario, error: ProviderError) -> None:
    """What cannot be learnt counts as missing, with the reason."""
    for operation in ("get_role", "list_schedules", "describe_alarms"):
        scene.account.answers[operation] = error

    found = by_name(scene.safeguards.preview_safeguards(WANT, until_s=UNTIL_S))

    assert not found["schedules"].is_set
    assert not found["alarm"].is_set
    assert str(error) in found["alarm"].detail
