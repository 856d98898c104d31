"""Every refusal of Azure reaches the user as the one class that says what to do next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from arm import Disruption, DisruptionKind
from arm.harness import T4, AzureHarness, azure, spec
from arm.market import ALLOCATION_TEXTS, LATE_TEXTS, QUOTA_URL
from arm.replies import ArmError, Reply
from support.azure_texts import PRICE, RESERVED, quota_text

from infra.azure.errors import AzureErrorInfo, translate
from infra.azure.offers import REFUSALS_TTL_S, quota_covers
from infra.errors import (
    BadRequest,
    Gone,
    NoCapacity,
    NotAllowed,
    OverQuota,
    PriceAboveCap,
    ProviderError,
    Transient,
)
from infra.offer import Want
from infra.renting.refusal_cache import RefusalCache


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AzureHarness]:
    """A cloud to be refused by."""
    with azure(tmp_path) as harness:
        yield harness


OLD_QUOTA = (
    "Operation results in exceeding quota limits of Core. Maximum allowed: 4, Current in use: 4, "
    "Additional requested: 8."
)
TABLE: list[tuple[str, int, str, type[ProviderError], str]] = [
    # code, HTTP status, message, class, what the user must read in message or hint
    ("OperationNotAllowed", 409, quota_text("LowPriorityCores"), OverQuota, "none at all"),
    ("OperationNotAllowed", 409, quota_text("LowPriorityCores", 3), OverQuota, "at least 7"),
    (
        "OperationNotAllowed",
        409,
        quota_text("Standard NCASv3_T4 Family Cores"),
        OverQuota,
        QUOTA_URL,
    ),
    ("OperationNotAllowed", 409, quota_text("Total Regional Cores"), OverQuota, "eastus"),
    ("OperationNotAllowed", 409, "Another operation is in progress on it.", Transient, "repeat"),
    ("OperationNotAllowed", 409, "Something else.", BadRequest, "Something else"),
    ("SkuNotAvailable", 409, "… not available in location 'x'.", NoCapacity, "vm.regions"),
    *((code, 200, text, NoCapacity, "vm.regions") for code, text in ALLOCATION_TEXTS.items()),
    ("SpotPriceGreaterThanProvidedMaxPrice", 409, PRICE, PriceAboveCap, "0.149"),
    ("MaxPriceValueInvalid", 400, "Invalid.", BadRequest, "USD per hour"),
    ("MaxPriceChangeNotAllowedForAllocatedVMs", 409, "No.", BadRequest, "qft down"),
    ("MaxPriceChangeNotAllowed", 409, "No.", BadRequest, "qft down"),
    ("MaxPriceIsSupportedOnlyForAzureSpotVirtualMachines", 400, "No.", BadRequest, "vm.max_price"),
    ("EvictionPolicyCanBeSetOnlyOnAzureSpotVirtualMachines", 400, "No.", BadRequest, "bug of qft"),
    ("AzureSpotIsNotSupportedForThisVMSize", 400, "No.", NoCapacity, "another `vm.gpu`"),
    ("AzureSpotFeatureNotEnabledForSubscription", 409, "No.", NotAllowed, "free trials"),
    ("VMPriorityCannotBeApplied", 409, "No.", BadRequest, "bug of qft"),
    ("AzureSpotVMNotSupportedInAvailabilitySet", 400, "No.", BadRequest, "bug of qft"),
    ("NicReservedForAnotherVm", 400, RESERVED, Transient, "reserved"),
    ("PublicIPAddressCannotBeDeleted", 400, "In use.", Transient, "In use"),
    ("InUseSubnetCannotBeDeleted", 400, "In use.", Transient, "In use"),
    ("InUseNetworkSecurityGroupCannotBeDeleted", 400, "In use.", Transient, "In use"),
    (
        "MissingSubscriptionRegistration",
        409,
        "The subscription is not registered to use namespace 'Microsoft.Compute'.",
        NotAllowed,
        "az provider register --wait --namespace Microsoft.Compute",
    ),
    ("AuthorizationFailed", 403, "No right.", NotAllowed, "Contributor"),
    ("ExpiredAuthenticationToken", 401, "Expired.", NotAllowed, "az login"),
    ("SubscriptionNotFound", 404, "No such.", NotAllowed, "AZURE_SUBSCRIPTION_ID"),
    ("RequestDisallowedByPolicy", 403, "Policy.", NotAllowed, "administrator"),
    ("TooManyRequests", 429, "Slow down.", Transient, "Slow down"),
    ("InternalServerError", 500, "Oops.", Transient, "Oops"),
    ("ResourceGroupNotFound", 404, "Gone.", Gone, "does not exist"),
    ("NotFound", 404, "The entity was not found.", Gone, "does not exist"),
    ("ResourceNotFound", 404, "Gone.", Gone, "does not exist"),
    ("", 503, "", Transient, "answered 503 and no word"),
    ("", 0, "", Transient, "did not answer"),
    ("", 403, "", NotAllowed, "(403)"),
    ("", 401, "", NotAllowed, "az login"),
    ("", 0, "Connection reset by peer", Transient, "Connection reset"),
    ("", 200, "", NoCapacity, "without saying why"),
    ("OSProvisioningInternalError", 200, "Oops.", NoCapacity, "OSProvisioningInternalError: Oops"),
    ("QuotaExceeded", 409, quota_text("LowPriorityCores"), OverQuota, "at least 4"),
    ("PublicIPCountLimitReached", 400, "No more than 3.", OverQuota, "public-ip list"),
    ("RequestDisallowedByAzure", 403, "Not here.", NoCapacity, "other regions"),
    ("LocationNotAvailableForResourceType", 400, "No.", NoCapacity, "closed to this subscription"),
    (
        "SpotPriceGreaterThanProvidedMaxPrice",
        409,
        "Dear.",
        PriceAboveCap,
        "`vm.max_price` above it",
    ),
    ("LocationNotAvailableForResourceGroup", 400, "No 'x'.", NoCapacity, "other regions"),
    ("NoRegisteredProviderFound", 400, "None in 'x'.", NoCapacity, "other regions"),
    (
        "OperationNotAllowed",
        409,
        OLD_QUOTA,
        OverQuota,
        "Core quota is too small; it has a limit of 4",
    ),
    ("QuotaExceeded", 409, "Too many.", OverQuota, "own quota is too small"),
    ("BrandNewCode", 400, "Never seen.", BadRequest, "BrandNewCode: Never seen."),
    ("InvalidResourceReference", 400, "Not found there.", Transient, "repeat"),
    ("ReferencedResourceNotProvisioned", 429, "Not yet.", Transient, "repeat"),
    ("CanceledAndSupersededDueToAnotherOperation", 200, "Later.", Transient, "repeat"),
]


@pytest.mark.parametrize(("code", "status", "message", "kind", "expected"), TABLE)
def test_refusal_says_what_to_do(
    code: str, status: int, message: str, kind: type[ProviderError], expected: str
) -> None:
    """Code and message decide, whatever the HTTP status; the reader learns what helps."""
    error = translate(AzureErrorInfo(code=code, message=message, status=status), doing="rent it")

    assert isinstance(error, kind)
    assert expected in f"{error} {error.hint}"


def test_price_refusal_carries_the_price_of_now() -> None:
    """The current price is a number, not only a word in a sentence."""
    error = translate(
        AzureErrorInfo(code="SpotPriceGreaterThanProvidedMaxPrice", message=PRICE, status=409),
        doing="x",
    )

    assert isinstance(error, PriceAboveCap)
    assert error.current_usd_per_h == 0.149


def test_quota_refusal_carries_family_and_limit() -> None:
    """A program can read which pool is too small, and how small."""
    error = translate(
        AzureErrorInfo(
            code="OperationNotAllowed", message=quota_text("LowPriorityCores", 3), status=409
        ),
        doing="x",
    )

    assert isinstance(error, OverQuota)
    assert (error.family, error.limit) == ("LowPriorityCores", 3)


def test_nested_reason_decides() -> None:
    """A group deletion names its reason in the details."""
    info = AzureErrorInfo(
        code="ResourceGroupDeletionBlocked",
        status=409,
        nested=(("NicReservedForAnotherVm", RESERVED),),
    )

    assert isinstance(translate(info, doing="remove it"), Transient)


def test_failed_sign_in_keeps_the_useful_lines() -> None:
    """Of ten ways to sign in, the reader sees what went wrong with the one that could work."""
    expected = (
        "DefaultAzureCredential failed to retrieve a token from the included credentials.\n"
        "Attempted credentials:\n"
        "\tEnvironmentCredential: Authentication failed: AADSTS7000215: Invalid client secret.\n"
        "\tAzureCliCredential: Azure CLI not found on path\n"
        "\tAzurePowerShellCredential: PowerShell is not installed\n"
        "To mitigate this issue, please refer to the troubleshooting guidelines."
    )

    error = translate(AzureErrorInfo(message=expected, auth=True), doing="x")

    assert isinstance(error, NotAllowed)
    assert "AADSTS7000215" in str(error)
    assert "PowerShell" not in str(error)
    assert "az login" in error.hint


def test_sign_in_without_network_is_transient() -> None:
    """A laptop that lost its network while its token ran out is no case for a human."""
    expected = (
        "DefaultAzureCredential failed to retrieve a token from the included credentials.\n"
        "\tEnvironmentCredential: Authentication failed: ('Connection aborted.', "
        "RemoteDisconnected('Remote end closed connection without response'))\n"
    )

    assert isinstance(translate(AzureErrorInfo(message=expected, auth=True), doing="x"), Transient)


def test_az_that_takes_too_long_is_transient() -> None:
    """A command that did not answer in time has not refused anybody."""
    expected = "AzureCliCredential: Failed to invoke the Azure CLI"

    assert isinstance(translate(AzureErrorInfo(message=expected, auth=True), doing="x"), Transient)


REFUSALS: list[tuple[int, str, str, type[ProviderError]]] = [
    (status, code, message, kind)
    for code, status, message, kind, _ in TABLE
    if code and status >= 400 and status != 401 and kind not in {Transient, Gone}
]


@pytest.mark.parametrize(("status", "code", "message", "kind"), REFUSALS)
def test_refused_create_leaves_nothing(
    harness: AzureHarness, status: int, code: str, message: str, kind: type[ProviderError]
) -> None:
    """Through the real SDK, each refusal of the machine ends in its class and an empty ledger."""
    reply = Reply(status=status, body=ArmError(status, code, message).body)
    path = r"/virtualMachines/[^/]+$"
    harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.ANSWER, method="PUT", path=path, reply=reply)
    )

    with pytest.raises(kind):
        harness.provider().create(spec())

    assert harness.cloud.leftovers() == []
    assert harness.cloud.ledger.billing() == []


FULL = {"code": "SkuNotAvailable", "message": "Not available in location 'x'."}
WRAPPED: dict[str, object] = {
    "details of details": {"details": [{"code": "Conflict", "details": [FULL]}]},
    "details that are no list": {"details": FULL},
    "an inner error": {"innererror": {"code": "Inner", "innerError": FULL}},
    "holes": {"details": [None, 5, {"code": None}, FULL]},
}


@pytest.mark.parametrize("shape", WRAPPED)
def test_reason_is_found_however_deep_it_is_wrapped(harness: AzureHarness, shape: str) -> None:
    """A refusal that hides its reason inside others is still the lack of capacity that it is."""
    inside = WRAPPED[shape]
    assert isinstance(inside, dict)
    body = {"error": {"code": "DeploymentFailed", "message": "See the details."} | inside}
    reply = Reply(status=409, body=body)
    path = r"/virtualMachines/[^/]+$"
    harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.ANSWER, method="PUT", path=path, reply=reply)
    )

    with pytest.raises(NoCapacity, match="Not available in location"):
        harness.provider().create(spec())


ODD = {"details": 5, "innererror": "x", "code": 12, "message": None}


@pytest.mark.parametrize("body", [{"error": ODD}, {"error": None}, [1], None, "<html>", 7])
def test_refusal_of_any_shape_is_a_refusal(harness: AzureHarness, body: object) -> None:
    """What is not in the shape of ARM's errors still ends in words and an empty ledger."""
    reply = Reply(status=400, body=body)
    path = r"/virtualMachines/[^/]+$"
    harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.ANSWER, method="PUT", path=path, reply=reply)
    )

    with pytest.raises(BadRequest):
        harness.provider().create(spec())

    assert harness.cloud.leftovers() == []


LATE_KINDS: dict[str, type[ProviderError]] = {
    "OperationNotAllowed": OverQuota,
    "SpotPriceGreaterThanProvidedMaxPrice": PriceAboveCap,
}


@pytest.mark.parametrize("code", sorted(LATE_TEXTS))
def test_late_refusal_leaves_nothing(harness: AzureHarness, code: str) -> None:
    """A machine that was accepted and then failed goes, with its disk and its reserved card."""
    harness.cloud.market.sold_out[T4.lower(), "eastus"] = code
    began = harness.cloud.clock.now()

    with pytest.raises(LATE_KINDS.get(code, NoCapacity)):
        harness.provider().create(spec())

    assert harness.cloud.leftovers() == []
    assert harness.cloud.clock.now() - began > 180  # the card was reserved for that long


def test_refusal_is_remembered_for_a_while(harness: AzureHarness) -> None:
    """The next question for offers skips the place that was full, and comes back to it later."""
    harness.cloud.market.sold_out[T4.lower(), "eastus"] = "SkuNotAvailable"
    with pytest.raises(NoCapacity):
        harness.provider().create(spec())
    want = Want(gpu="T4", regions=["eastus", "westus2"])

    first, *others = harness.provider().offers(want)
    harness.advance(3601)
    later = harness.provider().offers(want)[0]

    assert (first.region, later.region) == ("westus2", "eastus")
    place = ("eastus", T4, "")
    (full,) = [one for one in others if (one.region, one.size, one.zone) == place]
    assert full.clears
    assert "asked again at" in full.blocked_by


def test_memory_of_a_clock_that_was_ahead_is_not_believed(harness: AzureHarness) -> None:
    """A computer whose clock was a year ahead for a while does not shun a place for that year."""
    ahead = RefusalCache(
        path=harness.state_dir / "refusals.json",
        clock=lambda: harness.cloud.clock.now() + 365 * 86_400,
        ttl_s=REFUSALS_TTL_S,
        quota_covers=quota_covers,
    )
    harness.state_dir.mkdir(exist_ok=True)
    ahead.note(spec().offer, NoCapacity("full"))
    kept = harness.state_dir / "sizes" / "eastus.json"
    free = harness.provider().offers(Want(gpu="T4", regions=["eastus"]))[0]
    later = json.loads(kept.read_text())
    kept.write_text(json.dumps(later | {"at_s": ahead.clock()}))
    harness.cloud.market.restricted.add((T4.lower(), "eastus"))

    offers = harness.provider().offers(Want(gpu="T4", regions=["eastus"]))

    (here,) = [one for one in offers if (one.size, one.zone) == (T4, "")]
    assert ahead.refusals() != []
    assert (free.size, free.zone, free.blocked_by) == (T4, "", "")
    assert here.blocked_by.startswith("closed to this subscription")


def test_regular_machine_is_removed(harness: AzureHarness) -> None:
    """A machine that Azure made without Spot would cost three times as much: it goes at once."""
    harness.cloud.world.loses_priority = True

    with pytest.raises(BadRequest, match="on-demand price"):
        harness.provider().create(spec())

    assert harness.cloud.leftovers() == []
    assert harness.cloud.ledger.billing() == []


def test_machine_taken_while_it_is_made_is_no_capacity(harness: AzureHarness) -> None:
    """An eviction can come before the machine is ready; that is a place with no room."""
    gone = Reply(status=404, body=ArmError(404, "NotFound", "The entity was not found.").body)
    for path in (r"Microsoft.Compute/locations/.+/operations/", r"/virtualMachines/[^/]+$"):
        harness.cloud.disruptions.add(
            Disruption(kind=DisruptionKind.ANSWER, method="GET", path=path, reply=gone, times=9)
        )

    with pytest.raises(NoCapacity, match="while it was being made"):
        harness.provider().create(spec())

    assert harness.cloud.leftovers() == []
