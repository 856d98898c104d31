"""Maps AWS's error codes to kinds of error: the tables, and how they are read.

The codes are those that AWS documents for EC2, STS, Service Quotas, EventBridge Scheduler and
CloudWatch, and that public issue trackers show.
"""

from __future__ import annotations

import re
from enum import StrEnum


class AwsErrorKind(StrEnum):
    """What an error is about, which decides what can be done next."""

    CAPACITY = "capacity"
    NOT_SOLD = "not sold in that zone"
    QUOTA = "quota in vCPUs"
    LIMIT = "limit on something else"
    PRICE = "price"
    CREDENTIALS = "credentials"
    PERMISSIONS = "rights"
    SERVICE_ROLE = "service-linked role"
    OPT_IN = "region not enabled"
    ACCOUNT = "account"
    POLICY = "policy"
    NO_VPC = "no default VPC"
    IMAGE = "image"
    TRANSIENT = "passes by itself"
    BUSY = "busy with an earlier order"
    NOT_FOUND = "not known"
    GONE = "gone"
    EXISTS = "exists already"
    TOKEN_SPENT = "token of a dead machine"  # noqa: S105  (words)
    TOKEN_REUSED = "token with other parameters"  # noqa: S105  (words)
    NOT_TRUSTED = "role not trusted (yet)"
    DRY_RUN = "dry run passed"
    OUR_BUG = "our bug"
    UNFORESEEN = "unforeseen"


_CODES = {
    AwsErrorKind.CAPACITY: """
        InsufficientInstanceCapacity UnfulfillableCapacity InsufficientCapacity
        InsufficientHostCapacity InsufficientAddressCapacity InsufficientVolumeCapacity
        InsufficientFreeAddressesInSubnet
    """,
    AwsErrorKind.NOT_SOLD: "Unsupported VolumeTypeNotAvailableInZone",
    AwsErrorKind.QUOTA: "MaxSpotInstanceCountExceeded VcpuLimitExceeded",
    AwsErrorKind.LIMIT: """
        InstanceLimitExceeded VolumeLimitExceeded AddressLimitExceeded SecurityGroupLimitExceeded
        VpcLimitExceeded NetworkInterfaceLimitExceeded RulesPerSecurityGroupLimitExceeded
        TagLimitExceeded ServiceQuotaExceededException LimitExceeded LimitExceededFault
    """,
    AwsErrorKind.PRICE: "SpotMaxPriceTooLow",
    AwsErrorKind.CREDENTIALS: """
        AuthFailure InvalidClientTokenId UnrecognizedClientException ExpiredToken
        ExpiredTokenException RequestExpired SignatureDoesNotMatch InvalidSignatureException
        IncompleteSignature MissingAuthenticationToken MissingAuthenticationTokenException
        InvalidAccessKeyId UnauthorizedException
    """,
    AwsErrorKind.PERMISSIONS: """
        UnauthorizedOperation AccessDenied AccessDeniedException AuthorizationError NotAuthorized
        NotAuthorizedException OperationNotPermitted
    """,
    AwsErrorKind.SERVICE_ROLE: "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
    AwsErrorKind.OPT_IN: "OptInRequired RegionDisabledException",
    AwsErrorKind.ACCOUNT: "PendingVerification Blocked AccountDisabled NotSignedUp",
    AwsErrorKind.POLICY: "TagPolicyViolation",
    AwsErrorKind.NO_VPC: "VPCIdNotSpecified DefaultVpcDoesNotExist DefaultSubnetDoesNotExistInAZ",
    AwsErrorKind.TRANSIENT: """
        RequestLimitExceeded Throttling ThrottlingException ThrottledException
        TooManyRequestsException PriorRequestNotComplete RequestThrottled SlowDown InternalError
        InternalFailure InternalServerException InternalServerError ServerInternal
        ServiceUnavailable ServiceUnavailableException Unavailable RetryableError
        ConcurrentTagAccess RequestTimeout RequestTimeoutException ConflictException
        InternalServiceFault ServiceException
    """,
    AwsErrorKind.BUSY: """
        IncorrectInstanceState IncorrectSpotRequestState IncorrectState DependencyViolation
        InvalidGroup.InUse VolumeInUse
    """,
    AwsErrorKind.GONE: "ResourceNotFoundException NoSuchResourceException ResourceNotFound",
    AwsErrorKind.EXISTS: """
        InvalidGroup.Duplicate InvalidPermission.Duplicate
    """,
    AwsErrorKind.TOKEN_SPENT: "IdempotentInstanceTerminated",
    AwsErrorKind.TOKEN_REUSED: "IdempotentParameterMismatch",
    AwsErrorKind.DRY_RUN: "DryRunOperation",
    AwsErrorKind.IMAGE: "ParameterNotFound",
    AwsErrorKind.OUR_BUG: """
        InvalidBlockDeviceMapping InvalidUserData.Malformed MissingParameter UnsupportedOperation
        UnknownParameter InvalidParameterDependency InvalidCharacter MalformedQueryString
        InvalidAction InvalidQueryParameter ValidationError ValidationException InvalidInput
        InvalidRequestContentException
    """,
}
_KIND_BY_CODE = {code.lower(): kind for kind, codes in _CODES.items() for code in codes.split()}
_WORDS = (
    (r"no subnets? found for the default vpc|no default vpc", AwsErrorKind.NO_VPC),
    (r"no available spot capacity|insufficient capacity", AwsErrorKind.CAPACITY),
    (r"must allow aws eventbridge scheduler to assume", AwsErrorKind.NOT_TRUSTED),
)
"""Sentences that say more than the code they come with."""


def kind_by_code(code: str, message: str = "") -> AwsErrorKind | None:
    """The kind of an error by its code, and by its words where codes are ambiguous; None if new."""
    found = _KIND_BY_CODE.get(code.lower())
    by_words = kind_by_message(message)
    if found in {None, AwsErrorKind.NOT_SOLD, AwsErrorKind.OUR_BUG} and by_words is not None:
        return by_words
    if found is not None:
        return found
    if code.endswith((".NotFound", "NotFoundException")):
        return AwsErrorKind.IMAGE if code.startswith("InvalidAMIID") else AwsErrorKind.NOT_FOUND
    if code.startswith("InvalidAMIID"):
        return AwsErrorKind.IMAGE
    if code.startswith(("InvalidParameter", "Invalid")):
        return AwsErrorKind.OUR_BUG
    return AwsErrorKind.TRANSIENT if code.startswith("Throttl") else None


def kind_by_message(message: str) -> AwsErrorKind | None:
    """The kind of an error by its sentence; None if it says nothing."""
    for pattern, kind in _WORDS:
        if re.search(pattern, message, re.IGNORECASE):
            return kind
    return None
