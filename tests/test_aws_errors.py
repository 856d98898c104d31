"""Each error of AWS becomes the class of the seam that says what to do next, by real botocore."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.tokens import SSOTokenProvider
from ec2 import disruptions
from ec2.harness import AwsHarness, aws
from ec2.replies import AwsError
from ec2.steps import Ec2User

from infra.aws.errors import (
    AlreadyThereError,
    DryRunPassedError,
    NoDefaultVpcError,
    NotYetVisibleError,
    RegionNotEnabledError,
    TokenReusedError,
    TokenSpentError,
)
from infra.aws.sdk import AwsClients
from infra.errors import (
    BadRequest,
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

CODES: dict[type[ProviderError], str] = {
    NoCapacity: """
        InsufficientInstanceCapacity:500 UnfulfillableCapacity:500 InsufficientCapacity:500
        InsufficientHostCapacity:500 InsufficientAddressCapacity:500 InsufficientVolumeCapacity:500
        InsufficientFreeAddressesInSubnet Unsupported VolumeTypeNotAvailableInZone
    """,
    OverQuota: "MaxSpotInstanceCountExceeded VcpuLimitExceeded",
    PriceAboveCap: "SpotMaxPriceTooLow",
    SignedOut: """
        AuthFailure:401 InvalidClientTokenId:403 UnrecognizedClientException ExpiredToken:403
        ExpiredTokenException RequestExpired
    """,
    NotAllowed: """
        UnauthorizedOperation:403 AccessDenied:403 AccessDeniedException
        AuthFailure.ServiceLinkedRoleCreationNotPermitted:403 PendingVerification Blocked
        AccountDisabled TagPolicyViolation OperationNotPermitted InvalidAMIID.NotFound
    """,
    RegionNotEnabledError: "OptInRequired:401",
    NoDefaultVpcError: "VPCIdNotSpecified DefaultVpcDoesNotExist",
    Transient: """
        RequestLimitExceeded:503 Throttling ThrottlingException TooManyRequestsException
        InternalError:500 InternalFailure:500 ServerInternal:500 ServiceUnavailable:503
        Unavailable:503 RetryableError ConcurrentTagAccess IncorrectInstanceState
        IncorrectSpotRequestState DependencyViolation NeverSeenBefore:500 NeverSeenBefore:429
    """,
    NotYetVisibleError: """
        InvalidInstanceID.NotFound InvalidSpotInstanceRequestID.NotFound InvalidGroup.NotFound
        InvalidVolume.NotFound
    """,
    Gone: "ResourceNotFoundException NeverSeenBefore:404",
    BadRequest: """
        InvalidParameterValue InvalidParameterCombination InvalidBlockDeviceMapping
        InvalidUserData.Malformed MissingParameter UnsupportedOperation UnknownParameter
    """,
    TokenSpentError: "IdempotentInstanceTerminated",
    TokenReusedError: "IdempotentParameterMismatch",
    AlreadyThereError: "InvalidGroup.Duplicate InvalidPermission.Duplicate",
    DryRunPassedError: "DryRunOperation:412",
    Rejected: "NeverSeenBefore",
}
"""What AWS documents of its codes, with the status where it is not 400; not read from the code."""
ROWS = [(code, error) for error, codes in CODES.items() for code in codes.split()]


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsHarness]:
    """An account in which nothing is made."""
    with aws(tmp_path_factory.mktemp("errors")) as made:
        yield made


@pytest.mark.parametrize(("code", "error"), ROWS, ids=[code for code, _ in ROWS])
def test_a_code_becomes_its_class(
    harness: AwsHarness, code: str, error: type[ProviderError]
) -> None:
    """The code decides, the status only for codes that nobody knows; the code stays readable."""
    name, _, status = code.partition(":")
    refusal = AwsError(name, "the words of AWS", status=int(status or 400))
    harness.cloud.disruptions.add(disruptions.refused(refusal, call="DescribeVpcs"))
    with pytest.raises(ProviderError) as caught:
        Ec2User(harness).call("describe_vpcs")

    assert type(caught.value) is error
    assert name in str(caught.value)
    assert "the words of AWS" in str(caught.value)


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("AuthFailure.ServiceLinkedRoleCreationNotPermitted", "create-service-linked-role"),
        ("MaxSpotInstanceCountExceeded", "us-east-1.console.aws.amazon.com/servicequotas"),
        ("OptInRequired", "aws account enable-region --region-name us-east-1"),
        ("VPCIdNotSpecified", "aws ec2 create-default-vpc --region us-east-1"),
        ("ExpiredToken", "aws sso login"),
    ],
)
def test_an_error_names_the_command_that_mends_it(
    harness: AwsHarness, code: str, hint: str
) -> None:
    """What a user can mend comes with the command or the page that does it."""
    call = "DescribeVpcs"
    harness.cloud.disruptions.add(disruptions.refused(AwsError(code, "words"), call=call))
    with pytest.raises(ProviderError) as caught:
        Ec2User(harness).call("describe_vpcs")

    assert hint in f"{caught.value} {caught.value.hint}"


@dataclasses.dataclass(frozen=True)
class Home:
    """A computer without keys in its environment: what it has is in its files."""

    path: Path
    patch: pytest.MonkeyPatch

    def configure(self, text: str) -> None:
        """Write the configuration of AWS's tools."""
        (self.path / "config").write_text(text)

    def cache_token(self, session: str, *, expires_at: str) -> None:
        """Sign in with SSO once, as `aws sso login` leaves it."""
        self.patch.setattr(SSOTokenProvider, "_SSO_TOKEN_CACHE_DIR", str(self.path))
        name = hashlib.sha1(session.encode(), usedforsecurity=False).hexdigest()
        token = {
            "startUrl": "https://d-1.awsapps.com/start",
            "region": "us-east-1",
            "accessToken": "throwaway",
            "expiresAt": expires_at,
        }
        (self.path / f"{name}.json").write_text(json.dumps(token))


@pytest.fixture
def home(harness: AwsHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home folder with nothing in it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return Home(tmp_path, monkeypatch)


SSO = """
[default]
region = us-east-1
sso_session = mine
sso_account_id = 111122223333
sso_role_name = Renter
[sso-session mine]
sso_start_url = https://d-1.awsapps.com/start
sso_region = us-east-1
"""


def whoami(harness: AwsHarness, **settings: Any) -> str:
    """The account that is signed in, by the session that a user's own qft opens."""
    clients = AwsClients(harness.settings(**settings))
    try:
        return clients.account()
    finally:
        clients.close()


def test_nobody_is_signed_in(harness: AwsHarness, home: Home) -> None:
    """Without keys anywhere the user is told how to sign in."""
    with pytest.raises(SignedOut) as caught:
        whoami(harness)

    assert "aws configure" in caught.value.hint


def test_sso_was_never_signed_in(harness: AwsHarness, home: Home) -> None:
    """A profile of SSO without a token is signed out."""
    home.configure(SSO)
    with pytest.raises(SignedOut) as caught:
        whoami(harness)

    assert "aws sso login" in caught.value.hint


def test_sso_has_expired(harness: AwsHarness, home: Home) -> None:
    """A token of SSO that has expired, and cannot be renewed, is signed out."""
    home.configure(SSO)
    home.cache_token("mine", expires_at="2026-01-01T00:00:00Z")
    with pytest.raises(SignedOut, match="expired") as caught:
        whoami(harness)

    assert "aws sso login" in caught.value.hint


def test_a_profile_that_does_not_exist_is_named(harness: AwsHarness, home: Home) -> None:
    """A profile that the configuration lacks is not a matter of signing in."""
    with pytest.raises(NotAllowed, match="nobodys") as caught:
        whoami(harness, profile="nobodys")

    assert not isinstance(caught.value, SignedOut)


def test_half_a_profile_is_named(harness: AwsHarness, home: Home) -> None:
    """A profile with a key id and no secret is a mistake in a file, and told as one."""
    (home.path / "credentials").write_text("[default]\naws_access_key_id = AKIAHALF\n")
    with pytest.raises(NotAllowed, match="aws_secret_access_key") as caught:
        whoami(harness)

    assert not isinstance(caught.value, SignedOut)


def test_whoever_signs_in_again_needs_no_restart(harness: AwsHarness) -> None:
    """Keys that are valid again are used by the same process."""
    clients = harness.clients()
    harness.cloud.expire_credentials()
    with pytest.raises(SignedOut):
        clients.account()
    harness.cloud.renew_credentials()

    assert clients.account() == "111122223333"


@pytest.mark.parametrize("code", ["OptInRequired", "AuthFailure"])
def test_a_region_that_is_not_enabled_signs_nobody_out(harness: AwsHarness, code: str) -> None:
    """It refuses credentials as if they were wrong, which other regions accept."""
    harness.cloud.world.opt_in_code = code
    clients = harness.clients()

    with pytest.raises(RegionNotEnabledError) as caught:
        clients.call("ec2", "ap-east-1", "describe_vpcs", doing="look")

    assert "enable-region --region-name ap-east-1" in caught.value.hint
    harness.cloud.expire_credentials()
    with pytest.raises(SignedOut):
        clients.call("ec2", "ap-east-1", "describe_vpcs", doing="look")
    harness.cloud.renew_credentials()
    clients.close()


def test_a_page_in_place_of_an_answer_lists_nothing(harness: AwsHarness) -> None:
    """A proxy's page with status 200 is no empty list: it says nothing about what exists."""
    clients = harness.clients()
    for service, operation, key, call in (
        ("ec2", "describe_vpcs", "Vpcs", "DescribeVpcs"),
        ("scheduler", "list_schedules", "Schedules", "ListSchedules"),
        ("service-quotas", "list_service_quotas", "Quotas", "ListServiceQuotas"),
    ):
        parameters = {"ServiceCode": "ec2"} if service == "service-quotas" else {}
        harness.cloud.disruptions.add(disruptions.unreadable_page(call=call))
        with pytest.raises(Transient):
            clients.pages(service, "us-east-1", operation, key, doing="look", **parameters)
