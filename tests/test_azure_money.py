"""What ends the bill, what the bill can come to, and what a doctor says before there is one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from arm import Disruption, DisruptionKind
from arm.harness import T4, AzureHarness, azure, spec
from arm.replies import ArmError, Reply

from infra.azure.auto_shutdown import ACTION, next_strike_s
from infra.azure.permissions import allowed
from infra.errors import NotAllowed
from infra.offer import Want
from infra.provider import PowerState, Safeguard, StopReason
from infra.renting.safeguards import HourlyRates, worst_case

HOUR_S = 3600.0
WANT = Want(gpu="T4", regions=["eastus"], max_price_usd_per_h=0.25)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AzureHarness]:
    """A cloud that keeps the bill."""
    with azure(tmp_path) as harness:
        yield harness


def holding(safeguards: list[Safeguard]) -> set[str]:
    """The names of the switches that hold."""
    return {one.name for one in safeguards if one.is_set}


def test_all_safeguards_are_set_for_an_owner(harness: AzureHarness) -> None:
    """Cap, auto-shutdown and self-release are set; the role has one right and one machine."""
    vm = harness.provider().create(spec())

    found = harness.provider().set_safeguards(vm, until_s=harness.cloud.clock.now() + 5 * HOUR_S)

    assert holding(found) == {"price cap", "auto-shutdown", "self-release"}
    roles = harness.cloud.world.roles
    (role,) = [v for k, v in roles.items() if k.startswith("roledefinitions")]
    assert role["properties"]["permissions"] == [{"actions": [ACTION], "notActions": []}]
    (assignment,) = [v for k, v in roles.items() if k.startswith("roleassignments")]
    assert assignment["properties"]["scope"].lower() == vm.id.lower()


def test_contributor_keeps_the_schedule(harness: AzureHarness) -> None:
    """Who may not assign roles is told so, and still has the switch that Azure pulls."""
    harness.cloud.world.may_assign = False
    vm = harness.provider().create(spec())

    found = harness.provider().set_safeguards(vm, until_s=harness.cloud.clock.now() + 5 * HOUR_S)

    assert holding(found) == {"price cap", "auto-shutdown"}
    (refused,) = [one for one in found if not one.is_set]
    assert "AuthorizationFailed" in refused.detail


def test_role_that_somebody_defined_is_assigned_by_who_may_only_assign(
    harness: AzureHarness,
) -> None:
    """The right to assign is not enough for the first machine, and is for every later one."""
    provider, until_s = harness.provider(), harness.cloud.clock.now() + 5 * HOUR_S
    harness.cloud.world.may_define = False
    vm = provider.create(spec())

    alone = [
        *provider.set_safeguards(vm, until_s=until_s),
        *provider.preview_safeguards(WANT, until_s=until_s),
    ]
    harness.cloud.world.may_define = True
    provider.set_safeguards(vm, until_s=until_s)
    harness.cloud.world.may_define = False
    later = [
        *provider.set_safeguards(vm, until_s=until_s),
        *provider.preview_safeguards(WANT, until_s=until_s),
    ]

    refused = [one for one in alone if not one.is_set]
    assert {one.name for one in refused} == {"self-release"}
    assert {one.hint for one in refused} == {"ask for `User Access Administrator`"}
    assert [one.name for one in later if not one.is_set] == []


def test_bill_ends_with_everything_of_ours_dead(harness: AzureHarness) -> None:
    """Nobody looks for a day: compute stops at the limit, and the ledger has the sum foretold."""
    vm = harness.provider().create(spec())
    now = harness.cloud.clock.now()
    found = harness.provider().set_safeguards(vm, until_s=now + 5 * HOUR_S)
    worst = worst_case(found, now_s=now, rates=HourlyRates(price_max=0.149174, idle=0.0181))

    harness.advance(24 * HOUR_S)

    assert harness.cloud.ledger.billing("compute") == []
    spent = harness.cloud.ledger.usd("compute")
    assert spent == pytest.approx(5 * 0.149174, rel=0.02)
    assert worst.compute_usd == pytest.approx(spent, rel=0.02)
    idle = harness.cloud.ledger.usd("disk") + harness.cloud.ledger.usd("address")
    assert worst.idle_usd_per_day == pytest.approx(idle, rel=0.01)
    seen = harness.provider().observe(vm)
    assert (seen.power, seen.stop_reason) == (PowerState.DEALLOCATED, StopReason.UNKNOWN)
    assert "Microsoft.DevTestLab" in seen.detail


@pytest.mark.parametrize("ahead_h", [-30.0, 3.0, 11.5])
def test_bill_ends_in_time_whatever_clock_the_laptop_has(
    harness: AzureHarness, ahead_h: float
) -> None:
    """The schedule is Azure's, and so is the time that it is set by."""
    harness.clock_ahead_s = ahead_h * HOUR_S
    provider = harness.provider()
    vm = provider.create(spec())

    found = provider.set_safeguards(vm, until_s=harness.now() + 5 * HOUR_S)
    end_s = harness.cloud.clock.now() + 5 * HOUR_S
    harness.advance(24 * HOUR_S)

    times = [one.stops_at_s for one in found if one.stops_at_s is not None]
    assert times == pytest.approx([end_s, end_s], abs=60)
    assert harness.cloud.ledger.usd("compute") == pytest.approx(5 * 0.149174, rel=0.02)


def test_renewed_schedule_strikes_once_and_later(harness: AzureHarness) -> None:
    """Setting the switches again moves the end; the old time passes without harm."""
    vm = harness.provider().create(spec())
    now = harness.cloud.clock.now()
    harness.provider().set_safeguards(vm, until_s=now + 2 * HOUR_S)
    harness.advance(HOUR_S)
    harness.provider().set_safeguards(vm, until_s=now + 6 * HOUR_S)

    harness.advance(2 * HOUR_S)
    between = harness.cloud.ledger.billing("compute")
    harness.advance(4 * HOUR_S)

    assert between != []
    assert harness.cloud.ledger.billing("compute") == []


@pytest.mark.parametrize(
    ("until_h", "strike_h"), [(5, 5), (0, 0.5), (-3, 0.5), (100, 23), (22.99, 22.99)]
)
def test_schedule_is_set_where_azure_can_keep_it(until_h: float, strike_h: float) -> None:
    """Half an hour ahead at least, less than a day at most, on a full minute."""
    now = datetime(2026, 9, 21, 12, 0, 30, tzinfo=UTC).timestamp()

    strike = next_strike_s(now, now + until_h * HOUR_S)

    assert strike % 60 == 0
    assert 0 <= strike - (now + strike_h * HOUR_S) < 60


def test_nothing_in_force_is_reported_as_unbounded() -> None:
    """Without a switch that names a time the worst case is not a number, and says why."""
    found = [Safeguard(name="price cap", is_set=True, detail="")]

    worst = worst_case(found, now_s=0, rates=HourlyRates(price_max=0.25, idle=0.02))

    assert math.isinf(worst.compute_usd)
    assert "nothing stops it" in worst.why


@pytest.mark.parametrize("left_h", [-1, 0.1, 5, 40])
def test_worst_case_trusts_azures_own_schedule(harness: AzureHarness, left_h: float) -> None:
    """With the watchdog dead as well, compute costs what was foretold, whatever the limit."""
    vm = harness.provider().create(spec())
    now = harness.cloud.clock.now()
    found = harness.provider().set_safeguards(vm, until_s=now + left_h * HOUR_S)
    worst = worst_case(found, now_s=now, rates=HourlyRates(price_max=0.149174, idle=0.0181))
    before = harness.cloud.ledger.usd("compute")

    harness.advance(48 * HOUR_S)

    assert harness.cloud.ledger.billing("compute") == []
    spent = harness.cloud.ledger.usd("compute") - before
    assert worst.compute_usd == pytest.approx(spent, rel=0.05)


def test_role_goes_with_the_machine(harness: AzureHarness) -> None:
    """Delete takes the assignment back; the schedule goes with the group."""
    vm = harness.provider().create(spec())
    harness.provider().set_safeguards(vm, until_s=harness.cloud.clock.now() + HOUR_S)

    removed = harness.provider().delete(vm.run_id)

    assert "virtual machine" in {one.kind for one in removed}
    assert [k for k in harness.cloud.world.roles if k.startswith("roleassignments")] == []
    assert harness.cloud.leftovers() == []


def test_stopped_is_not_deallocated(harness: AzureHarness) -> None:
    """A machine switched off from inside goes on billing, and is shown as doing so."""
    vm = harness.provider().create(spec())
    arm = harness.provider().context.arm
    arm.call("stop", arm.compute.virtual_machines.begin_power_off, "qft-run-a", "qft-run-a-1")

    seen = harness.provider().observe(vm)

    assert (seen.power, seen.power.bills_compute) == (PowerState.STOPPED, True)
    assert "still billed" in seen.detail
    assert not seen.certain
    assert harness.cloud.ledger.billing("compute") != []


# ---- the doctor ----


def names_of_bad(harness: AzureHarness) -> dict[str, str]:
    """What the doctor finds wrong, with the fix."""
    found = harness.provider().checks(Want(gpu="T4", regions=["eastus"]))
    return {one.name: one.fix for one in found if not one.ok}


def test_doctor_finds_a_good_account_good(harness: AzureHarness) -> None:
    """On an account that can rent, every check is ok, and nothing is changed by looking."""
    assert names_of_bad(harness) == {}
    assert {r.method for r in harness.cloud.requests if "oauth2" not in r.path} == {"GET"}


def test_doctor_names_what_is_missing_and_how_to_mend_it(harness: AzureHarness) -> None:
    """Free trial, quota, providers and rights each come with a command or a link."""
    world = harness.cloud.world
    world.subscription["subscriptionPolicies"]["quotaId"] = "FreeTrial_2014-09-01"
    harness.cloud.market.spot_cores = 3
    world.providers["microsoft.network"] = "NotRegistered"
    world.may_assign = False

    bad = names_of_bad(harness)

    assert "pay-as-you-go" in bad["offer type"]
    assert "portal.azure.com" in bad["spot quota in eastus"]
    assert bad["Microsoft.Network"] == "az provider register --wait --namespace Microsoft.Network"
    assert "User Access Administrator" in bad["self-release"]


def test_doctor_fails_only_when_no_region_has_quota(harness: AzureHarness) -> None:
    """One region with room is enough to rent; with none, or with all unread, the words differ."""
    harness.cloud.market.cores["eastus"] = 3

    def required(*regions: str) -> list[bool]:
        found = harness.provider().checks(Want(gpu="T4", regions=regions))
        return [one.required for one in found if one.name.startswith("spot quota") and not one.ok]

    assert required("eastus", "westus2") == [False]
    assert required("eastus") == [True]
    harness.cloud.disruptions.add(
        Disruption(
            kind=DisruptionKind.ANSWER, path="/usages$", reply=ArmError(403, "X", "No.").reply()
        )
    )
    assert required("eastus") == [False]


def test_doctor_tells_a_login_from_a_subscription(harness: AzureHarness) -> None:
    """A refused token, with Azure's code or with no word at all, is a matter of signing in."""
    for reply in (ArmError(401, "ExpiredAuthenticationToken", "Old.").reply(), Reply(status=401)):
        harness.cloud.disruptions.add(
            Disruption(kind=DisruptionKind.ANSWER, path="^/subscriptions/", times=2, reply=reply)
        )
        assert names_of_bad(harness)["credentials"].startswith("`az login`")
        harness.cloud.disruptions.queue.clear()


def test_doctor_stops_at_credentials(harness: AzureHarness) -> None:
    """Without a way in, one finding with one command, not ten tracebacks."""
    harness.cloud.login.forbidden = True

    bad = names_of_bad(harness)

    assert list(bad) == ["subscription"]
    assert "qft doctor" in bad["subscription"]


def test_permissions_understand_wildcards() -> None:
    """A role grants what its patterns cover, less what it takes away."""
    contributor = {"actions": ["*"], "notActions": ["Microsoft.Authorization/*/Write"]}
    reader = {"actions": ["*/read"], "notActions": []}

    assert allowed([contributor], "Microsoft.Compute/virtualMachines/write")
    assert not allowed([contributor], "Microsoft.Authorization/roleAssignments/write")
    assert not allowed([reader], "Microsoft.Compute/virtualMachines/write")
    assert allowed([reader], "Microsoft.Compute/virtualMachines/read")


def test_free_trial_is_refused_by_azure_too(harness: AzureHarness) -> None:
    """An account that cannot use spot leaves nothing behind when it tries."""
    harness.cloud.market.spot_allowed = False

    with pytest.raises(NotAllowed, match="may not use spot"):
        harness.provider().create(spec(size=T4))

    assert harness.cloud.leftovers() == []
