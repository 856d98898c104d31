"""Each refusal of Azure at the level of the user: the words, the exit code, and what comes next."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from arm import Disruption, DisruptionKind
from arm.disruptions import Disruptions
from arm.harness import T4, azure
from arm.market import ALLOCATION_TEXTS, QUOTA_URL, SIZES
from arm.replies import ArmError, Reply, Request
from arm.runner import CliRunner, cli_runner
from support.azure_texts import PRICE, RESERVED, quota_text
from support.runs import make_project

from infra.run.journal import Kind

DONE, BUG, USAGE, CLOUD = 0, 1, 2, 3
VM_PATH = r"/virtualMachines/[^/]+$"
GROUP_PATH = r"/resourcegroups/[^/]+$"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that may rent in two regions."""
    made = make_project(
        tmp_path_factory.mktemp("project"),
        vm={"provider": "azure", "regions": ["eastus", "westus2"]},
    )
    return made.folder


@pytest.fixture
def runner(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    """A command line in that project, with a home and a cloud of its own."""
    with (
        azure(tmp_path / "unused") as harness,
        cli_runner(folder, tmp_path / "home", harness, capsys) as runner,
    ):
        yield runner


@dataclass(frozen=True, kw_only=True)
class Case:
    """One refusal of a machine, and what the user must read."""

    code: str
    status: int
    message: str
    expected: tuple[str, ...]
    exit_code: int = DONE


def refuse(runner: CliRunner, case: Case, *, times: int = 1) -> None:
    """Let the next machines be refused so."""
    reply = Reply(status=case.status, body=ArmError(case.status, case.code, case.message).body)
    runner.harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.ANSWER, method="PUT", path=VM_PATH, reply=reply, times=times)
    )


NEXT_OFFER = [
    Case(
        code="OperationNotAllowed",
        status=409,
        message=quota_text("LowPriorityCores"),
        expected=("OverQuota", "LowPriorityCores", "none at all", "at least 4", QUOTA_URL),
    ),
    Case(
        code="OperationNotAllowed",
        status=409,
        message=quota_text("Standard NCASv3_T4 Family Cores", 3),
        expected=("OverQuota", "NCASv3_T4 Family", "a limit of 3", "at least 7", QUOTA_URL),
    ),
    Case(
        code="OperationNotAllowed",
        status=409,
        message=quota_text("Total Regional Cores", 2),
        expected=("OverQuota", "Total Regional Cores", "eastus", "a limit of 2", QUOTA_URL),
    ),
    Case(
        code="SkuNotAvailable",
        status=409,
        message="The requested VM size for resource 'x' is currently not available.",
        expected=("NoCapacity", "no spot capacity there now", "SkuNotAvailable"),
    ),
    Case(
        code="SpotPriceGreaterThanProvidedMaxPrice",
        status=409,
        message=PRICE,
        expected=("PriceAboveCap", "cap of 0.05 USD/h", "price of now, 0.149 USD/h"),
    ),
    Case(
        code="AzureSpotIsNotSupportedForThisVMSize",
        status=400,
        message="Azure Spot is not supported for this VM size.",
        expected=("NoCapacity", "not rented as spot"),
    ),
]


@pytest.mark.parametrize("case", NEXT_OFFER, ids=lambda case: case.message[:60] or case.code)
def test_refused_place_is_reported_and_the_next_offer_is_taken(
    runner: CliRunner, case: Case
) -> None:
    """`up` says why the first place refused, rents the next one, and ends well."""
    refuse(runner, case)

    result = runner.qft("up", "--plain")

    assert result.code == DONE, result.err
    (line,) = [one for one in result.err.splitlines() if "refused: " in one]
    assert [word for word in case.expected if word not in line] == []
    assert "Traceback" not in result.err
    (vm,) = runner.harness.cloud.machines()
    assert (vm.location, vm.properties["hardwareProfile"]["vmSize"]) != ("eastus", T4)


@pytest.mark.parametrize("pool", ["Standard NCASv3_T4 Family Cores", "Total Regional Cores"])
def test_region_without_quota_is_tried_once(runner: CliRunner, pool: str) -> None:
    """Sizes and zones of a region draw on one pool: two regions cost two refusals, ever."""
    refuse(
        runner, Case(code="OperationNotAllowed", status=409, message=quota_text(pool), expected=())
    )
    refuse(
        runner, Case(code="OperationNotAllowed", status=409, message=quota_text(pool), expected=())
    )

    result = runner.qft("up", "--plain")
    again = runner.qft("up", "--plain")

    assert (result.code, again.code) == (CLOUD, CLOUD), result.err
    assert "not tried yet" not in result.err
    assert f"{pool} quota" in again.err
    puts = [r.body["location"] for r in runner.harness.cloud.requests if _makes_a_machine(r)]
    assert puts == ["eastus", "westus2"]
    assert runner.harness.cloud.leftovers() == []


def test_granted_quota_is_used_by_the_next_command(runner: CliRunner) -> None:
    """Who was refused, asked for more and was given it, need not wait until the refusal is old."""
    runner.harness.cloud.market.spot_cores = 3
    hidden = Disruption(
        kind=DisruptionKind.ANSWER, path="/usages$", times=9, reply=Reply(status=404)
    )
    runner.harness.cloud.disruptions.add(hidden)  # so that only asking for a machine tells
    refused = runner.qft("up", "--plain")
    runner.harness.cloud.disruptions.queue.clear()
    runner.harness.cloud.market.spot_cores = 100

    result = runner.qft("up", "--plain")

    assert refused.code == CLOUD
    assert "LowPriorityCores quota in eastus is too small" in refused.err
    assert result.code == DONE, result.err


def _makes_a_machine(request: Request) -> bool:
    return request.method == "PUT" and bool(re.search(VM_PATH, request.path))


@pytest.mark.parametrize("code", sorted(ALLOCATION_TEXTS))
def test_late_refusal_moves_on_after_the_card_is_free(runner: CliRunner, code: str) -> None:
    """An accepted machine that fails is cleared away, reserved card and all, before the next."""
    runner.harness.cloud.market.sold_out[T4.lower(), "eastus"] = code

    result = runner.qft("up", "--plain")

    assert result.code == DONE, result.err
    assert f"refused: {T4} in eastus: NoCapacity" in result.err
    assert code in result.err
    assert {one.location for one in runner.harness.cloud.machines()} == {"westus2"}
    assert {id_ for id_ in runner.harness.cloud.leftovers() if "eastus" in id_} == set()
    assert "Traceback" not in result.err


STOP = [
    Case(
        code="AzureSpotFeatureNotEnabledForSubscription",
        status=409,
        message="No.",
        expected=("may not use spot machines", "free trials"),
        exit_code=CLOUD,
    ),
    Case(
        code="AuthorizationFailed",
        status=403,
        message="The client 'x' does not have authorization.",
        expected=("lacks the right", "Contributor", "qft doctor"),
        exit_code=CLOUD,
    ),
    *(
        Case(code=code, status=409, message="No.", expected=(code, word), exit_code=BUG)
        for code, word in {
            "MaxPriceValueInvalid": "`vm.max_price` is USD per hour",
            "MaxPriceChangeNotAllowedForAllocatedVMs": "qft down",
            "MaxPriceChangeNotAllowed": "qft down",
            "MaxPriceIsSupportedOnlyForAzureSpotVirtualMachines": "vm.max_price",
            "EvictionPolicyCanBeSetOnlyOnAzureSpotVirtualMachines": "bug of qft",
            "VMPriorityCannotBeApplied": "bug of qft",
            "AzureSpotVMNotSupportedInAvailabilitySet": "bug of qft",
        }.items()
    ),
]


@pytest.mark.parametrize("case", STOP, ids=lambda case: case.code)
def test_what_only_a_human_can_mend_stops_at_once(runner: CliRunner, case: Case) -> None:
    """`up` ends with the words and the hint, tries no other place, and leaves nothing."""
    refuse(runner, case)

    result = runner.qft("up", "--plain")

    assert result.code == case.exit_code, result.err
    assert [word for word in case.expected if word not in result.err] == []
    assert "hint: " in result.err
    assert "Traceback" not in result.err
    assert runner.harness.cloud.leftovers() == []
    puts = [
        r
        for r in runner.harness.cloud.requests
        if r.method == "PUT" and "/virtualMachines/" in r.path
    ]
    assert len(puts) == 1


def test_sign_in_that_ran_out_says_what_goes_on_and_what_takes_it_up(runner: CliRunner) -> None:
    """Nobody is signed in any more while a machine works: exit 3, and nothing about it is lost."""
    runner.qft("up", "--plain")
    old = ArmError(401, "ExpiredAuthenticationToken", "The access token has expired.").reply()
    kind = Disruption(kind=DisruptionKind.ANSWER, path="^/subscriptions/", times=99, reply=old)
    runner.harness.cloud.disruptions.add(kind)

    result = runner.qft("up", "--plain")
    runner.harness.cloud.disruptions.queue.clear()

    assert result.code == CLOUD
    for words in ("`az login`", "goes on without this terminal", "`qft up ", "still billing $"):
        assert words in result.err.split("hint: ")[1]
    assert runner.qft("up", "--plain").code == DONE
    assert len(runner.harness.cloud.machines()) == 1


def test_what_could_not_be_removed_is_not_reported_as_gone(runner: CliRunner) -> None:
    """Who may make things and not remove them reads that they bill, and how to go on."""
    refuse(runner, Case(code="AuthorizationFailed", status=403, message="No right.", expected=()))
    locked = ArmError(403, "AuthorizationFailed", "No right to delete.").reply()
    runner.harness.cloud.disruptions.add(
        Disruption(
            kind=DisruptionKind.ANSWER, method="DELETE", path=GROUP_PATH, times=9, reply=locked
        )
    )

    result = runner.qft("up", "--plain")
    runner.harness.cloud.disruptions.queue.clear()
    again = runner.qft("up", "--plain")

    assert result.code == CLOUD
    assert "nothing of this run bills" not in result.err
    assert "`qft down --delete` removes what is left" in result.err
    assert again.code == DONE, again.err


@dataclass
class SignedOutLate(Disruptions):
    """Accepts a machine, and no sign-in from then on."""

    accepted: bool = False

    def take(self, request: Request) -> Disruption | None:
        """401 for everything that comes after the order."""
        refused, self.accepted = self.accepted, self.accepted or _makes_a_machine(request)
        reply = ArmError(401, "ExpiredAuthenticationToken", "The access token has expired.").reply()
        arm = request.path.startswith("/subscriptions/")
        return Disruption(kind=DisruptionKind.ANSWER, reply=reply) if refused and arm else None


def test_machine_that_was_accepted_before_the_sign_in_ran_out_is_not_forgotten(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What could neither be finished nor removed is said to bill, and is taken up afterwards."""
    kind = SignedOutLate()
    with (
        azure(tmp_path / "unused", disruptions=kind) as harness,
        cli_runner(folder, tmp_path / "home", harness, capsys) as runner,
    ):
        result = runner.qft("up", "--plain")
        alive = len(harness.cloud.machines())
        harness.cloud.server.disruptions = Disruptions()
        again = runner.qft("up", "--plain")

        assert (result.code, alive) == (CLOUD, 1)
        assert "nothing of this run bills" not in result.err
        assert "still billing $" in result.err
        assert again.code == DONE, again.err
        assert len(harness.cloud.world.machines_made) == 1


def test_safeguards_of_a_machine_that_is_down_are_not_in_the_json(runner: CliRunner) -> None:
    """What would have ended a bill that has ended is no news, in JSON as in words."""
    runner.qft("up", "--plain")
    up = json.loads(runner.qft("status", "--json").out)
    runner.qft("down")

    down = json.loads(runner.qft("status", "--json").out)

    assert len(up["switches"]) == 3
    assert (down["switches"], down["switches_missing"]) == ([], [])


def test_machine_that_is_down_is_not_evicted(runner: CliRunner) -> None:
    """Nothing can be taken that nobody has: `evict` says so, and asks Azure for nothing."""
    runner.qft("up", "--plain")
    runner.qft("down")

    result = runner.qft("evict")

    assert result.code == USAGE
    assert "is deallocated: there is nothing to evict" in result.err
    assert not [r for r in runner.harness.cloud.requests if r.path.endswith("/simulateEviction")]


def test_quota_that_is_listed_as_too_small_ends_before_anything_is_made(
    runner: CliRunner,
) -> None:
    """Three vCPUs everywhere: exit 3, each region with its figures and the link, no group made."""
    runner.harness.cloud.market.spot_cores = 3

    result = runner.qft("up", "--plain")

    assert result.code == CLOUD
    for region in ("eastus", "westus2"):
        assert f"of {region}: 0 of 3 vCPUs used, 4 needed; ask for more at https://" in result.err
    assert "qft plan" in result.err
    assert {r.method for r in runner.harness.cloud.requests if "graph" not in r.path.lower()} <= {
        "GET",
        "POST",
    }
    assert runner.harness.cloud.leftovers() == []


def test_full_cloud_is_waited_for(runner: CliRunner) -> None:
    """Nowhere any capacity: `up` says so and waits, and rents when some comes free."""
    cloud = runner.harness.cloud
    for size in SIZES:
        for region in ("eastus", "westus2"):
            cloud.market.sold_out[size, region] = "SkuNotAvailable"
    cloud.world.after(2.5 * 3600, cloud.market.sold_out.clear)

    result = runner.qft("up", "--plain")

    assert result.code == DONE, result.err
    assert "no offer can be taken now" in result.err
    waited_h = (cloud.clock.now() - runner.events()[0].at_s) / 3600
    assert 2.5 < waited_h < 4
    refusals = [one for one in runner.events() if one.kind is Kind.CREATE_FAILED]
    assert len(refusals) <= 36  # six places and six zones, each asked once an hour


def test_unregistered_subscription_is_registered_on_the_way(runner: CliRunner) -> None:
    """The first `up` of a subscription registers what it needs, and goes on."""
    for namespace in runner.harness.cloud.world.providers:
        runner.harness.cloud.world.providers[namespace] = "NotRegistered"

    result = runner.qft("up", "--plain")

    assert result.code == DONE, result.err
    assert runner.harness.cloud.world.providers["microsoft.compute"] == "Registered"


def test_registering_that_is_forbidden_names_the_command(runner: CliRunner) -> None:
    """Without the right to register, the reader gets the command for whoever has it."""
    case = Case(
        code="MissingSubscriptionRegistration",
        status=409,
        message="The subscription is not registered to use namespace 'Microsoft.Compute'.",
        expected=(),
    )
    refuse(runner, case, times=9)

    result = runner.qft("up", "--plain")

    assert result.code == CLOUD
    assert "az provider register --wait --namespace Microsoft.Compute" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("NicReservedForAnotherVm", RESERVED),
        ("PublicIPAddressCannotBeDeleted", "Public IP address x can not be deleted: in use."),
        ("InUseSubnetCannotBeDeleted", "Subnet x is in use."),
        ("InUseNetworkSecurityGroupCannotBeDeleted", "Network security group x is in use."),
    ],
)
def test_part_that_is_in_use_still_is_waited_for(
    runner: CliRunner, code: str, message: str
) -> None:
    """`down --delete` meets parts that cannot go yet, comes back, and leaves nothing."""
    assert runner.qft("up", "--plain").code == DONE
    reply = Reply(status=400, body=ArmError(400, code, message).body)
    runner.harness.cloud.disruptions.add(
        Disruption(
            kind=DisruptionKind.ANSWER, method="DELETE", path=GROUP_PATH, reply=reply, times=2
        )
    )

    result = runner.qft("down", "--delete")

    assert result.code == DONE, result.err
    assert "Traceback" not in result.err
    assert runner.harness.cloud.leftovers() == []
    assert runner.harness.cloud.ledger.billing() == []
