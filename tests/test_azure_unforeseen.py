"""A refusal that nobody foresaw takes the class of its words or its status; nothing bills on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arm import Disruption, DisruptionKind
from arm.harness import T4, azure
from arm.market import QUOTA_URL
from arm.replies import ArmError, Reply
from arm.runner import CliRunner, cli_runner
from support.runs import make_project

from infra.azure.errors import AzureErrorInfo, ConflictError, translate
from infra.errors import (
    Gone,
    NoCapacity,
    NotAllowed,
    OverQuota,
    PriceAboveCap,
    ProviderError,
    Rejected,
    SignedOut,
    Transient,
)

DONE, CLOUD = 0, 3
ADDRESSES = (
    "Cannot create more than 20 public IP addresses with static allocation method for this "
    "subscription in this region."
)
CORES = (
    "Operation could not be completed as it results in exceeding approved Total Regional Cores "
    f"quota. Location: eastus, Current Limit: 3, New Limit Required: 7. Ask at {QUOTA_URL}."
)
DEAR = (
    "Unable to perform operation 'start' since the provided max price '0.05 USD' is lower than the "
    "current spot price '0.149 USD' for Azure Spot Virtual Machine size 'x'."
)
IMAGE = "The platform image 'microsoft-dsvm:ubuntu-hpc:2404:latest' is not available."
BY_WORDS: list[tuple[int, str, str, type[ProviderError], str]] = [
    # status, code, message, class, what the user must read
    (400, "StaticPublicIPCountLimitReached", ADDRESSES, OverQuota, "public addresses"),
    (400, "IPv4StandardSkuPublicIpCountLimitReached", "No.", OverQuota, "public-ip list"),
    (400, "PublicIpV6CountLimitReachedForRegion", "No.", OverQuota, "public addresses"),
    (400, "BadRequest", ADDRESSES, OverQuota, "public addresses"),
    (409, "OperationNotAllowed", ADDRESSES, OverQuota, "public addresses"),
    (400, "NetworkSecurityGroupCountLimitReached", "100 there.", OverQuota, "100 there"),
    (400, "Whatever", "Limit of 1000 has been reached for the subscription.", OverQuota, "1000"),
    (400, "InvalidTemplateDeployment", CORES, OverQuota, "at least 7"),
    (403, "OperationNotAllowed", CORES, OverQuota, "Total Regional Cores"),
    (200, "InternalExecutionError", CORES, OverQuota, "a limit of 3"),
    (409, "OperationNotAllowed", DEAR, PriceAboveCap, "0.149"),
    (400, "InvalidParameter", DEAR, PriceAboveCap, "0.149"),
    (
        409,
        "Conflict",
        "The maximum price of $0.2 is below the spot price of $0.31 now.",
        PriceAboveCap,
        "0.31",
    ),
    (404, "ImageNotFound", IMAGE, NotAllowed, "vm: {image: URN}"),
    (400, "PlatformImageNotFound", IMAGE, NotAllowed, "microsoft-dsvm"),
    (400, "ImageVersionDeprecated", "VM Image is deprecated.", NotAllowed, "image"),
    (400, "MarketplacePurchaseEligibilityFailed", "No.", NotAllowed, "terms"),
    (400, "VMMarketplaceInvalidInput", "Plan information is missing.", NotAllowed, "image"),
    (400, "SomethingNew", "You have not accepted the legal terms on it.", NotAllowed, "terms"),
    (404, "NotFound2", "The image could not be found: image 'a' was not found.", NotAllowed, "'a'"),
    (403, "RequestDisallowedByPolicy", "By policy 'no-gpu'.", NotAllowed, "no-gpu"),
    (409, "ScopeLocked", "Scope '/x' is locked by 'do-not-touch'.", NotAllowed, "do-not-touch"),
    (409, "ReadOnlyDisabledSubscription", "It is disabled.", NotAllowed, "az account list"),
    (409, "SubscriptionDisabledForWrites", "No.", NotAllowed, "az account list"),
    (403, "DenyAssignmentAuthorizationFailed", "Denied.", NotAllowed, "policy or lock"),
    (409, "SkusNotAvailableHere", "No.", NoCapacity, "vm.regions"),
    (409, "Conflict", "There is not sufficient capacity for it.", NoCapacity, "vm.regions"),
    (200, "VMAllocationFailedNew", "No.", NoCapacity, "vm.regions"),
    (200, "NeverHeardOf", "No.", NoCapacity, "NeverHeardOf"),
    (400, "RequestRateLimitExceeded", "Too many requests.", Transient, "repeat"),
    (400, "DeploymentFailed", "Inner error: (Code: SkuNotAvailable).", NoCapacity, "vm.regions"),
]
BY_STATUS: list[tuple[int, type[ProviderError]]] = [
    (400, Rejected),
    (401, SignedOut),
    (402, NotAllowed),
    (403, NotAllowed),
    (404, Gone),
    (405, Rejected),
    (408, Transient),
    (409, ConflictError),
    (410, Gone),
    (422, Rejected),
    (429, Transient),
    (451, NotAllowed),
    (500, Transient),
    (501, Transient),
    (503, Transient),
]


@pytest.mark.parametrize(("status", "code", "message", "kind", "expected"), BY_WORDS)
def test_message_decides_what_an_unlisted_code_means(
    status: int, code: str, message: str, kind: type[ProviderError], expected: str
) -> None:
    """Parts of the code and the words of the message decide where the table knows nothing."""
    error = translate(AzureErrorInfo(code=code, message=message, status=status), doing="rent it")

    assert isinstance(error, kind)
    assert expected in f"{error} {error.hint}"
    assert "bug of qft" not in f"{error} {error.hint}"


@pytest.mark.parametrize(("status", "kind"), BY_STATUS)
def test_status_decides_where_code_and_message_do_not(
    status: int, kind: type[ProviderError]
) -> None:
    """A code and a sentence that nobody knows have the class of their HTTP status."""
    info = AzureErrorInfo(code="Xyzzy", message="Plugh.", status=status)

    error = translate(info, doing="rent it")

    assert type(error) is kind
    assert "Xyzzy: Plugh." in str(error)
    assert "bug of qft" not in f"{error} {error.hint}"


@pytest.mark.parametrize(
    ("message", "price"),
    [
        (DEAR, 0.149),
        ("The maximum price 0.1 USD is lower than the current price 0.25 USD.", 0.25),
        ("Current spot price of 1.5 USD/h exceeds the max price.", 1.5),
    ],
)
def test_price_in_any_sentence_is_a_number(message: str, price: float) -> None:
    """The price of now is read from whichever sentence tells it."""
    error = translate(
        AzureErrorInfo(code="OperationNotAllowed", message=message, status=409), doing="x"
    )

    assert isinstance(error, PriceAboveCap)
    assert error.current_usd_per_h == price


def test_a_sentence_about_length_is_no_quota() -> None:
    """A text that is too long is refused as it is: nobody can raise a quota for it."""
    error = translate(
        AzureErrorInfo(
            code="CustomDataSizeLimitExceeded", message="Custom data is too long.", status=400
        ),
        doing="x",
    )

    assert type(error) is Rejected


# ---- through the command line ----


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


def refuse(runner: CliRunner, path: str, case: tuple[int, str, str], **more: Any) -> None:
    """Let some requests be refused so."""
    status, code, message = case
    reply = Reply(status=status, body=ArmError(status, code, message).body)
    info: dict[str, Any] = {"kind": DisruptionKind.ANSWER, "method": "PUT", "path": path}
    runner.harness.cloud.disruptions.add(Disruption(**(info | {"reply": reply} | more)))


def assert_nothing_is_left(runner: CliRunner) -> None:
    """`down --delete` ends well, and the cloud holds and bills nothing."""
    assert runner.qft("down", "--delete").code == DONE
    assert runner.harness.cloud.leftovers() == []
    assert runner.harness.cloud.ledger.billing() == []


def test_sku_refusal_leaves_nothing_and_the_next_region_is_rented(runner: CliRunner) -> None:
    """After a plain SkuNotAvailable the other region is rented, and everything can be removed."""
    runner.harness.cloud.market.sold_out[T4.lower(), "eastus"] = "SkuNotAvailable"

    result = runner.qft("up", "--plain")
    there = {one.location for one in runner.harness.cloud.machines()}
    in_east = [one for one in runner.harness.cloud.ledger.billing() if "eastus" in one]

    assert result.code == DONE, result.err
    assert there == {"westus2"}
    assert in_east == []
    assert_nothing_is_left(runner)


PARTS = {
    "publicIPAddresses": (400, "StaticPublicIPCountLimitReached", ADDRESSES),
    "virtualNetworks": (400, "VirtualNetworkCountLimitReached", "No more than 50."),
    "networkSecurityGroups": (400, "Xyzzy", "Plugh."),
    "networkInterfaces": (409, "OperationNotAllowed", CORES),
    "virtualMachines": (400, "Xyzzy", "Plugh."),
}


@pytest.mark.parametrize("part", PARTS)
def test_refused_part_moves_on_to_the_next_offer(runner: CliRunner, part: str) -> None:
    """Whichever part is refused, the next place is tried, and nothing of the first one stays."""
    refuse(runner, rf"/{part}/[^/]+$", PARTS[part])

    result = runner.qft("up", "--plain")

    assert result.code == DONE, result.err
    assert PARTS[part][1] in result.err or "quota" in result.err
    assert len(runner.harness.cloud.machines()) == 1
    assert_nothing_is_left(runner)


def test_refused_everywhere_ends_with_the_words_and_nothing_left(runner: CliRunner) -> None:
    """Three places that refuse in unknown words are enough: exit 3, the words, an empty ledger."""
    refuse(runner, r"/virtualMachines/[^/]+$", (400, "Xyzzy", "Plugh."), times=99)

    result = runner.qft("up", "--plain")

    requests = [
        r for r in runner.harness.cloud.requests if r.method == "PUT" and "/virtualM" in r.path
    ]
    assert result.code == CLOUD
    assert "Xyzzy: Plugh." in result.err
    assert "bug of qft" not in result.err
    assert len(requests) == 3
    assert runner.harness.cloud.leftovers() == []
    assert runner.harness.cloud.ledger.billing() == []


def test_group_that_is_refused_ends_with_the_words(runner: CliRunner) -> None:
    """Not even a resource group: nothing was made, and the user reads why."""
    refuse(runner, r"/resourcegroups/[^/]+$", (400, "Xyzzy", "Plugh."), times=99)

    result = runner.qft("up", "--plain")

    assert result.code == CLOUD
    assert "Xyzzy: Plugh." in result.err
    assert runner.harness.cloud.ledger.billing() == []


@pytest.mark.parametrize("code", ["Conflict", "RequestConflict", "InternalExecutionError"])
def test_conflict_is_retried_before_it_is_believed(runner: CliRunner, code: str) -> None:
    """A 409 with an unknown code passes by itself when the object is free again."""
    refuse(runner, r"/virtualMachines/[^/]+$", (409, code, "Plugh."), times=2)
    before = runner.harness.cloud.clock.now()

    result = runner.qft("up", "--plain")

    assert result.code == DONE, result.err
    assert "refused:" not in result.err
    assert runner.harness.cloud.clock.now() - before > 20  # pauses lay between
    assert {one.location for one in runner.harness.cloud.machines()} == {"eastus"}


def test_conflict_that_stays_moves_on(runner: CliRunner) -> None:
    """A 409 that does not pass is a refusal like others: the next place is rented."""
    refuse(runner, r"/virtualMachines/[^/]+$", (409, "Xyzzy", "Plugh."), times=8)

    result = runner.qft("up", "--plain")

    assert result.code == DONE, result.err
    refused = [
        one.split(" Azure refused")[0] for one in result.err.splitlines() if "refused: " in one
    ]
    assert len(set(refused)) == 2
    assert all("Rejected: " in one for one in refused)
    assert_nothing_is_left(runner)


@pytest.mark.parametrize(
    "case",
    [
        (409, "Conflict", "Plugh."),
        (400, "Xyzzy", "Plugh."),
        (409, "StaticPublicIPCountLimitReached", ADDRESSES),
        (409, "OperationNotAllowed", DEAR),
    ],
)
def test_refused_start_finds_another_place(runner: CliRunner, case: tuple[int, str, str]) -> None:
    """A start that is refused in unknown words does not end the run while others are free."""
    runner.qft("up", "--plain")
    runner.qft("down")
    refuse(runner, r"/virtualMachines/[^/]+/start$", case, method="POST", times=9)

    result = runner.qft("up", "--plain")

    assert result.code == DONE, result.err
    assert "bug of qft" not in result.err
    assert len(runner.harness.cloud.ledger.billing("compute")) == 1
    runner.harness.cloud.disruptions.queue.clear()
    assert_nothing_is_left(runner)


def test_refused_removal_is_retried(runner: CliRunner) -> None:
    """A removal that meets conflicts comes back until it is done."""
    runner.qft("up", "--plain")
    refuse(runner, r"/resourcegroups/[^/]+$", (409, "Xyzzy", "Plugh."), method="DELETE", times=6)

    assert_nothing_is_left(runner)


def test_removal_that_stays_refused_releases_the_compute(runner: CliRunner) -> None:
    """What cannot be removed is at least deallocated, and the user reads the words: exit 3."""
    runner.qft("up", "--plain")
    refuse(runner, r"/resourcegroups/[^/]+$", (400, "Xyzzy", "Plugh."), method="DELETE", times=99)

    result = runner.qft("down", "--delete")

    assert result.code == CLOUD
    assert "Xyzzy: Plugh." in result.err
    assert runner.harness.cloud.ledger.billing("compute") == []
    runner.harness.cloud.disruptions.queue.clear()
    assert_nothing_is_left(runner)


def test_refused_deallocation_says_what_bills(runner: CliRunner) -> None:
    """A machine that Azure will not release is not said to be released: exit 3, and why."""
    runner.qft("up", "--plain")
    refuse(runner, r"/deallocate$", (400, "Xyzzy", "Plugh."), method="POST", times=99)

    result = runner.qft("down")
    runner.harness.cloud.disruptions.queue.clear()

    assert result.code == CLOUD
    assert "still bills" in result.err
    assert_nothing_is_left(runner)


def test_retired_image_is_named(runner: CliRunner) -> None:
    """The user reads which image it was, though Azure did not say."""
    refuse(runner, r"/virtualMachines/[^/]+$", (400, "ImageVersionDeprecated", "Deprecated."))

    result = runner.qft("up", "--plain")

    (requests,) = [
        request.body["properties"]["storageProfile"]["imageReference"]
        for request in runner.harness.cloud.requests
        if request.method == "PUT" and "/virtualMachines/" in request.path
    ]
    assert result.code == CLOUD
    assert ":".join(requests.values()) in result.err
    assert runner.harness.cloud.ledger.billing() == []


INSIDE = {
    "policy beside the message": {
        "code": "RequestDisallowedByPolicy",
        "message": "Resource 'x' was disallowed by policy.",
        "additionalInfo": [
            {"type": "PolicyViolation", "info": {"policyAssignmentDisplayName": "No GPUs"}}
        ],
    },
    "in the details": {
        "code": "Conflict",
        "message": "See inside.",
        "details": [{"code": "RequestDisallowedByPolicy", "message": "Policy 'No GPUs' forbids."}],
    },
    "in an inner error": {
        "code": "Xyzzy",
        "message": "See inside.",
        "innererror": {"exceptiontype": "x", "errordetail": "Disallowed by policy 'No GPUs'."},
    },
}


@pytest.mark.parametrize("shape", INSIDE)
def test_policy_is_named_wherever_it_stands(runner: CliRunner, shape: str) -> None:
    """The name of the policy reaches the user, from the details or from beside the message."""
    reply = Reply(status=403, body=json.loads(json.dumps({"error": INSIDE[shape]})))
    runner.harness.cloud.disruptions.add(
        Disruption(
            kind=DisruptionKind.ANSWER, method="PUT", path=r"/virtualMachines/[^/]+$", reply=reply
        )
    )

    result = runner.qft("up", "--plain")

    assert result.code == CLOUD
    assert "No GPUs" in result.err
    assert "policy or lock" in result.err
    assert runner.harness.cloud.ledger.billing() == []
