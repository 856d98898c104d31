"""Maps Azure's error codes and messages to kinds of error: the tables, and how they are read.

The codes are those that Microsoft documents and that public issue trackers show; new ones come
without notice. So a code that is not in the table is looked at for its parts, then its sentence is
read, and what says nothing to either is left to the HTTP status.
"""

from __future__ import annotations

import re
from enum import StrEnum


class AzureErrorKind(StrEnum):
    """What an error is about, which decides what can be done next."""

    CAPACITY = "capacity"
    NOT_AS_SPOT = "not sold as spot"
    CLOSED_PLACE = "closed place"
    QUOTA = "quota"
    ADDRESSES = "public addresses"
    PRICE = "price"
    BAD_CAP = "not a price cap"
    FIXED_CAP = "cap that cannot change now"
    IMAGE = "image"
    OUR_BUG = "our bug"
    API_VERSION = "api-version"
    NO_SPOT = "no spot for this account"
    PERMISSIONS = "rights"
    TOKEN = "token"  # noqa: S105  (a word)
    SUBSCRIPTION = "subscription"
    UNREGISTERED = "unregistered"
    POLICY = "policy or lock"
    TRANSIENT = "passes by itself"
    EXISTS = "exists already"
    GONE = "gone"


_CODES = {
    AzureErrorKind.CAPACITY: """
        SkuNotAvailable AllocationFailed ZonalAllocationFailed OverconstrainedAllocationRequest
        OverconstrainedZonalAllocationRequest InsufficientCapacity OutOfCapacity CapacityUnavailable
    """,
    AzureErrorKind.NOT_AS_SPOT: "AzureSpotIsNotSupportedForThisVMSize",
    AzureErrorKind.CLOSED_PLACE: """
        RequestDisallowedByAzure LocationNotAvailableForResourceType NotAvailableForSubscription
        InvalidAvailabilityZone AvailabilityZoneNotSupported LocationNotAvailableForResourceGroup
        LocationNotSupported VMSizeNotSupported VMSizeIsNotPermittedToEnableAcceleratedNetworking
    """,
    AzureErrorKind.ADDRESSES: """
        PublicIPCountLimitReached StaticPublicIPCountLimitReached
        DynamicPublicIPCountLimitReached IPv4BasicSkuPublicIpCountLimitReached
        IPv4StandardSkuPublicIpCountLimitReached IPv6StandardSkuPublicIpCountLimitReached
        PublicIPAddressCountLimitReached PublicIpCountExceeded
    """,
    AzureErrorKind.QUOTA: """
        QuotaExceeded ResourceGroupQuotaExceeded ResourceCountExceedsLimitDueToTemplate
        ResourceQuotaExceeded SubscriptionQuotaExceeded ResourceLimitExceeded ResourceQuotaLimit
    """,
    AzureErrorKind.PRICE: "SpotPriceGreaterThanProvidedMaxPrice",
    AzureErrorKind.BAD_CAP: """
        MaxPriceValueInvalid MaxPriceIsSupportedOnlyForAzureSpotVirtualMachines
    """,
    AzureErrorKind.FIXED_CAP: "MaxPriceChangeNotAllowedForAllocatedVMs MaxPriceChangeNotAllowed",
    AzureErrorKind.OUR_BUG: """
        EvictionPolicyCanBeSetOnlyOnAzureSpotVirtualMachines VMPriorityCannotBeApplied
        AzureSpotVMNotSupportedInAvailabilitySet PropertyChangeNotAllowed
    """,
    AzureErrorKind.IMAGE: """
        ImageNotFound PlatformImageNotFound VMImageNotFound GalleryImageNotFound ImageDeprecated
        ImageVersionDeprecated ArtifactNotFound MarketplacePurchaseEligibilityFailed
        VMMarketplaceInvalidInput ResourcePurchaseValidationFailed
        ResourcePurchaseCanceling PlanNotFound OfferNotFound
        MarketplaceImageTermsNotAccepted UserHasNotAcceptedTerms LegalTermsNotAccepted
        InvalidImageReference ImageBlobNotFound
    """,
    AzureErrorKind.API_VERSION: """
        InvalidApiVersionParameter MissingApiVersionParameter UnsupportedApiVersion
        InvalidResourceType ApiVersionNotSupported InvalidResourceNamespace
    """,
    AzureErrorKind.NO_SPOT: "AzureSpotFeatureNotEnabledForSubscription",
    AzureErrorKind.PERMISSIONS: """
        AuthorizationFailed LinkedAuthorizationFailed InsufficientPermissions
        LinkedAccessCheckFailed Forbidden
    """,
    AzureErrorKind.TOKEN: """
        ExpiredAuthenticationToken InvalidAuthenticationToken AuthenticationFailed
        InvalidAuthenticationTokenTenant InvalidAuthenticationTokenAudience
        AuthenticationFailedMissingToken AuthenticationFailedInvalidHeader InvalidAuthenticationInfo
    """,
    AzureErrorKind.SUBSCRIPTION: """
        SubscriptionNotFound InvalidSubscriptionId ReadOnlyDisabledSubscription
        SubscriptionNotRegistered DisabledSubscription SubscriptionDisabled SubscriptionSuspended
        SubscriptionDeleted SubscriptionWarned BillingNotEnabled SpendingLimitReached
    """,
    AzureErrorKind.UNREGISTERED: "MissingSubscriptionRegistration",
    AzureErrorKind.POLICY: """
        RequestDisallowedByPolicy ScopeLocked DisallowedOperation DenyAssignmentAuthorizationFailed
        ResourceDisallowedByPolicy LockedResource
    """,
    AzureErrorKind.TRANSIENT: """
        TooManyRequests SubscriptionRequestsThrottled OperationPreempted AnotherOperationInProgress
        RetryableError RetryableErrorDueToAnotherOperation InternalServerError InternalServiceError
        ServerTimeout GatewayTimeout NetworkingInternalOperationError OSProvisioningTimedOut
        ResourceGroupBeingDeleted ResourceGroupDeletionTimeout NicReservedForAnotherVm NicInUse
        PublicIPAddressCannotBeDeleted InUseSubnetCannotBeDeleted
        InUseNetworkSecurityGroupCannotBeDeleted AttachDiskWhileBeingDetached
        InvalidResourceReference ReferencedResourceNotProvisioned
        CanceledAndSupersededDueToAnotherOperation
    """,
    AzureErrorKind.EXISTS: "RoleAssignmentExists RoleDefinitionWithSameNameExists",
    AzureErrorKind.GONE: "NotFound ResourceNotFound ResourceGroupNotFound ParentResourceNotFound",
}
_BY_CODE = {code.lower(): kind for kind, codes in _CODES.items() for code in codes.split()}

# Parts of codes that are not listed above, the first that fits. What a limit on how often one may
# ask, or on how long a text may be, is called is no quota.
_CODE_PATTERNS = [
    (AzureErrorKind.CAPACITY, r"allocation(failed|timeout|timedout)|overconstrained|skus?notavail"),
    (
        AzureErrorKind.TRANSIENT,
        r"throttl|ratelimit|requestlimit|toomanyreq|inprogress|being(deleted|created)",
    ),
    (
        AzureErrorKind.TRANSIENT,
        r"timeout|timedout|temporarily|serverbusy|unavailable|preempted|superseded",
    ),
    (AzureErrorKind.ADDRESSES, r"publicip\w*(limit|quota|exceeded)"),
    (AzureErrorKind.QUOTA, r"quota|(core|vcpu|count|resource|subscription|regional)s?limit"),
    (AzureErrorKind.QUOTA, r"^(?!.*(size|length|char|depth)).*limit(reached|exceeded)"),
    (AzureErrorKind.QUOTA, r"(count|persubscription|perregion|cores)\w*(exceed|reached)"),
    (AzureErrorKind.CAPACITY, r"capacity"),
    (AzureErrorKind.PRICE, r"spotprice|pricegreater|pricetoolow"),
    (AzureErrorKind.IMAGE, r"image|marketplace|purchase|legalterms|terms(not|of)"),
    (
        AzureErrorKind.POLICY,
        r"(by|denied|disallowed)policy|policyviolation|disallowed|locked|denyassignment",
    ),
    (
        AzureErrorKind.SUBSCRIPTION,
        r"subscription\w*(disabled|suspended|deleted|notfound|warned|expired)",
    ),
    (AzureErrorKind.SUBSCRIPTION, r"disabledsubscription|billingnotenabled|spendinglimit"),
    (AzureErrorKind.API_VERSION, r"apiversion"),
    (AzureErrorKind.PERMISSIONS, r"authorization|permission|accessdenied|accesscheck"),
    (AzureErrorKind.TOKEN, r"authentication(token|failed)"),
]
_MESSAGE_PATTERNS = [
    (AzureErrorKind.PRICE, r"(max(imum)? ?price|price cap|bid).{0,80}(spot|market|current) price"),
    (AzureErrorKind.PRICE, r"(spot|market|current) price.{0,80}(max(imum)? ?price|cap\b|bid\b)"),
    (
        AzureErrorKind.TRANSIENT,
        r"throttl|too many requests|request rate|rate limit|rate of requests",
    ),
    (AzureErrorKind.ADDRESSES, r"(more than \d+|limit|quota|maximum).{0,60}public ?ip"),
    (AzureErrorKind.ADDRESSES, r"public ?ip( address(es)?)?.{0,80}(limit|quota|maximum number)"),
    (
        AzureErrorKind.QUOTA,
        r"\bquotas?\b|exceed\w* .{0,60}\b(core|vcpu|resource|count|subscription)s? limit",
    ),
    (
        AzureErrorKind.QUOTA,
        r"(cannot|can not|can't) (create|have|deploy|allocate|add) more than \d+",
    ),
    (
        AzureErrorKind.QUOTA,
        r"\blimit\b.{0,60}(has been|have been|was|is|were) (reached|exceeded|hit)\b",
    ),
    (AzureErrorKind.QUOTA, r"(reached|exceed\w*) (the|your|its) (max\w* )?(limit|number)"),
    (
        AzureErrorKind.QUOTA,
        r"(maximum|max) number of .{1,60}(reached|exceeded|subscription|region)",
    ),
    (
        AzureErrorKind.IMAGE,
        r"\bimages?\b.{0,120}(not found|not available|deprecat|retired|not exist)",
    ),
    (
        AzureErrorKind.IMAGE,
        r"(not found|deprecat|retired|could not find|no longer).{0,80}\bimages?\b",
    ),
    (
        AzureErrorKind.IMAGE,
        r"legal terms|terms of use|accept\w* the terms|marketplace|plan information",
    ),
    (
        AzureErrorKind.CAPACITY,
        r"(sufficient|enough|out of|no|lack of|available) (\w+ ){0,2}capacity",
    ),
    (AzureErrorKind.CAPACITY, r"capacity restriction|allocation failed|currently not available in"),
    (AzureErrorKind.UNREGISTERED, r"not registered to use namespace"),
    (
        AzureErrorKind.POLICY,
        r"disallowed by|by policy|scope.{0,200}lock|\blocked\b|deny assignment",
    ),
    (
        AzureErrorKind.SUBSCRIPTION,
        r"subscription.{0,80}(disabled|suspended|read.?only|not enabled|expired)",
    ),
    (
        AzureErrorKind.NO_SPOT,
        r"spot.{0,60}not (enabled|supported|allowed|available).{0,40}subscription",
    ),
    (
        AzureErrorKind.PERMISSIONS,
        r"(does not have|lacks|insufficient) (\w+ ){0,2}(authori|permission|rights)",
    ),
    (
        AzureErrorKind.TRANSIENT,
        r"in progress|is being |marked for deletion|concurrent|another operation",
    ),
    (
        AzureErrorKind.TRANSIENT,
        r"(try|retry)( again| the (request|operation))? (later|in a|after)|retryable",
    ),
    (AzureErrorKind.TRANSIENT, r"temporar(y|ily)|timed out|internal (server )?error"),
]
_NAMED = {code: kind for code, kind in _BY_CODE.items() if kind is not AzureErrorKind.GONE}


def kind_by_code(code: str) -> AzureErrorKind | None:
    """Find the kind of a code; None for a general or an unlisted one."""
    return _BY_CODE.get(code.lower())


def kind_by_message(code: str, message: str) -> AzureErrorKind | None:
    """Find the kind by parts of a code or words of its message; None if neither is listed."""
    for word in re.findall(r"\b[A-Z][A-Za-z]{9,}\b", message):  # a code that a sentence quotes
        if word != code and word.lower() in _NAMED:
            return _NAMED[word.lower()]
    parts = code.lower().replace("_", "").replace("-", "")
    text = " ".join(message.split())
    by_parts = next((kind for kind, one in _CODE_PATTERNS if re.search(one, parts)), None)
    return by_parts or next(
        (kind for kind, one in _MESSAGE_PATTERNS if re.search(one, text, re.IGNORECASE)), None
    )
