"""Maps Azure's error codes and messages to kinds of error: the tables, and how they are read.

The codes are those that Microsoft documents and that public issue trackers show; new ones come
without notice. So a code that is not in the table is looked at for its parts, then its sentence is
read, and what says nothing to either is left to the HTTP status.
"""

from __future__ import annotations

import re
from enum import StrEnum


class ErrorKind(StrEnum):
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
    ErrorKind.CAPACITY: """
        SkuNotAvailable AllocationFailed ZonalAllocationFailed OverconstrainedAllocationRequest
        OverconstrainedZonalAllocationRequest InsufficientCapacity OutOfCapacity CapacityUnavailable
    """,
    ErrorKind.NOT_AS_SPOT: "AzureSpotIsNotSupportedForThisVMSize",
    ErrorKind.CLOSED_PLACE: """
        RequestDisallowedByAzure LocationNotAvailableForResourceType NotAvailableForSubscription
        InvalidAvailabilityZone AvailabilityZoneNotSupported LocationNotAvailableForResourceGroup
        LocationNotSupported VMSizeNotSupported VMSizeIsNotPermittedToEnableAcceleratedNetworking
    """,
    ErrorKind.ADDRESSES: """
        PublicIPCountLimitReached StaticPublicIPCountLimitReached
        DynamicPublicIPCountLimitReached IPv4BasicSkuPublicIpCountLimitReached
        IPv4StandardSkuPublicIpCountLimitReached IPv6StandardSkuPublicIpCountLimitReached
        PublicIPAddressCountLimitReached PublicIpCountExceeded
    """,
    ErrorKind.QUOTA: """
        QuotaExceeded ResourceGroupQuotaExceeded ResourceCountExceedsLimitDueToTemplate
        ResourceQuotaExceeded SubscriptionQuotaExceeded ResourceLimitExceeded ResourceQuotaLimit
    """,
    ErrorKind.PRICE: "SpotPriceGreaterThanProvidedMaxPrice",
    ErrorKind.BAD_CAP: "MaxPriceValueInvalid MaxPriceIsSupportedOnlyForAzureSpotVirtualMachines",
    ErrorKind.FIXED_CAP: "MaxPriceChangeNotAllowedForAllocatedVMs MaxPriceChangeNotAllowed",
    ErrorKind.OUR_BUG: """
        EvictionPolicyCanBeSetOnlyOnAzureSpotVirtualMachines VMPriorityCannotBeApplied
        AzureSpotVMNotSupportedInAvailabilitySet PropertyChangeNotAllowed
    """,
    ErrorKind.IMAGE: """
        ImageNotFound PlatformImageNotFound VMImageNotFound GalleryImageNotFound ImageDeprecated
        ImageVersionDeprecated ArtifactNotFound MarketplacePurchaseEligibilityFailed
        VMMarketplaceInvalidInput ResourcePurchaseValidationFailed
        ResourcePurchaseCanceling PlanNotFound OfferNotFound
        MarketplaceImageTermsNotAccepted UserHasNotAcceptedTerms LegalTermsNotAccepted
        InvalidImageReference ImageBlobNotFound
    """,
    ErrorKind.API_VERSION: """
        InvalidApiVersionParameter MissingApiVersionParameter UnsupportedApiVersion
        InvalidResourceType ApiVersionNotSupported InvalidResourceNamespace
    """,
    ErrorKind.NO_SPOT: "AzureSpotFeatureNotEnabledForSubscription",
    ErrorKind.PERMISSIONS: """
        AuthorizationFailed LinkedAuthorizationFailed InsufficientPermissions
        LinkedAccessCheckFailed Forbidden
    """,
    ErrorKind.TOKEN: """
        ExpiredAuthenticationToken InvalidAuthenticationToken AuthenticationFailed
        InvalidAuthenticationTokenTenant InvalidAuthenticationTokenAudience
        AuthenticationFailedMissingToken AuthenticationFailedInvalidHeader InvalidAuthenticationInfo
    """,
    ErrorKind.SUBSCRIPTION: """
        SubscriptionNotFound InvalidSubscriptionId ReadOnlyDisabledSubscription
        SubscriptionNotRegistered DisabledSubscription SubscriptionDisabled SubscriptionSuspended
        SubscriptionDeleted SubscriptionWarned BillingNotEnabled SpendingLimitReached
    """,
    ErrorKind.UNREGISTERED: "MissingSubscriptionRegistration",
    ErrorKind.POLICY: """
        RequestDisallowedByPolicy ScopeLocked DisallowedOperation DenyAssignmentAuthorizationFailed
        ResourceDisallowedByPolicy LockedResource
    """,
    ErrorKind.TRANSIENT: """
        TooManyRequests SubscriptionRequestsThrottled OperationPreempted AnotherOperationInProgress
        RetryableError RetryableErrorDueToAnotherOperation InternalServerError InternalServiceError
        ServerTimeout GatewayTimeout NetworkingInternalOperationError OSProvisioningTimedOut
        ResourceGroupBeingDeleted ResourceGroupDeletionTimeout NicReservedForAnotherVm NicInUse
        PublicIPAddressCannotBeDeleted InUseSubnetCannotBeDeleted
        InUseNetworkSecurityGroupCannotBeDeleted AttachDiskWhileBeingDetached
        InvalidResourceReference ReferencedResourceNotProvisioned
        CanceledAndSupersededDueToAnotherOperation
    """,
    ErrorKind.EXISTS: "RoleAssignmentExists RoleDefinitionWithSameNameExists",
    ErrorKind.GONE: "NotFound ResourceNotFound ResourceGroupNotFound ParentResourceNotFound",
}
_BY_CODE = {code.lower(): kind for kind, codes in _CODES.items() for code in codes.split()}

# Parts of codes that are not listed above, the first that fits. What a limit on how often one may
# ask, or on how long a text may be, is called is no quota.
_CODE_PATTERNS = [
    (ErrorKind.CAPACITY, r"allocation(failed|timeout|timedout)|overconstrained|skus?notavail"),
    (
        ErrorKind.TRANSIENT,
        r"throttl|ratelimit|requestlimit|toomanyreq|inprogress|being(deleted|created)",
    ),
    (
        ErrorKind.TRANSIENT,
        r"timeout|timedout|temporarily|serverbusy|unavailable|preempted|superseded",
    ),
    (ErrorKind.ADDRESSES, r"publicip\w*(limit|quota|exceeded)"),
    (ErrorKind.QUOTA, r"quota|(core|vcpu|count|resource|subscription|regional)s?limit"),
    (ErrorKind.QUOTA, r"^(?!.*(size|length|char|depth)).*limit(reached|exceeded)"),
    (ErrorKind.QUOTA, r"(count|persubscription|perregion|cores)\w*(exceed|reached)"),
    (ErrorKind.CAPACITY, r"capacity"),
    (ErrorKind.PRICE, r"spotprice|pricegreater|pricetoolow"),
    (ErrorKind.IMAGE, r"image|marketplace|purchase|legalterms|terms(not|of)"),
    (
        ErrorKind.POLICY,
        r"(by|denied|disallowed)policy|policyviolation|disallowed|locked|denyassignment",
    ),
    (
        ErrorKind.SUBSCRIPTION,
        r"subscription\w*(disabled|suspended|deleted|notfound|warned|expired)",
    ),
    (ErrorKind.SUBSCRIPTION, r"disabledsubscription|billingnotenabled|spendinglimit"),
    (ErrorKind.API_VERSION, r"apiversion"),
    (ErrorKind.PERMISSIONS, r"authorization|permission|accessdenied|accesscheck"),
    (ErrorKind.TOKEN, r"authentication(token|failed)"),
]
_MESSAGE_PATTERNS = [
    (ErrorKind.PRICE, r"(max(imum)? ?price|price cap|bid).{0,80}(spot|market|current) price"),
    (ErrorKind.PRICE, r"(spot|market|current) price.{0,80}(max(imum)? ?price|cap\b|bid\b)"),
    (ErrorKind.TRANSIENT, r"throttl|too many requests|request rate|rate limit|rate of requests"),
    (ErrorKind.ADDRESSES, r"(more than \d+|limit|quota|maximum).{0,60}public ?ip"),
    (ErrorKind.ADDRESSES, r"public ?ip( address(es)?)?.{0,80}(limit|quota|maximum number)"),
    (
        ErrorKind.QUOTA,
        r"\bquotas?\b|exceed\w* .{0,60}\b(core|vcpu|resource|count|subscription)s? limit",
    ),
    (ErrorKind.QUOTA, r"(cannot|can not|can't) (create|have|deploy|allocate|add) more than \d+"),
    (ErrorKind.QUOTA, r"\blimit\b.{0,60}(has been|have been|was|is|were) (reached|exceeded|hit)\b"),
    (ErrorKind.QUOTA, r"(reached|exceed\w*) (the|your|its) (max\w* )?(limit|number)"),
    (ErrorKind.QUOTA, r"(maximum|max) number of .{1,60}(reached|exceeded|subscription|region)"),
    (ErrorKind.IMAGE, r"\bimages?\b.{0,120}(not found|not available|deprecat|retired|not exist)"),
    (ErrorKind.IMAGE, r"(not found|deprecat|retired|could not find|no longer).{0,80}\bimages?\b"),
    (ErrorKind.IMAGE, r"legal terms|terms of use|accept\w* the terms|marketplace|plan information"),
    (ErrorKind.CAPACITY, r"(sufficient|enough|out of|no|lack of|available) (\w+ ){0,2}capacity"),
    (ErrorKind.CAPACITY, r"capacity restriction|allocation failed|currently not available in"),
    (ErrorKind.UNREGISTERED, r"not registered to use namespace"),
    (ErrorKind.POLICY, r"disallowed by|by policy|scope.{0,200}lock|\blocked\b|deny assignment"),
    (
        ErrorKind.SUBSCRIPTION,
        r"subscription.{0,80}(disabled|suspended|read.?only|not enabled|expired)",
    ),
    (ErrorKind.NO_SPOT, r"spot.{0,60}not (enabled|supported|allowed|available).{0,40}subscription"),
    (
        ErrorKind.PERMISSIONS,
        r"(does not have|lacks|insufficient) (\w+ ){0,2}(authori|permission|rights)",
    ),
    (
        ErrorKind.TRANSIENT,
        r"in progress|is being |marked for deletion|concurrent|another operation",
    ),
    (
        ErrorKind.TRANSIENT,
        r"(try|retry)( again| the (request|operation))? (later|in a|after)|retryable",
    ),
    (ErrorKind.TRANSIENT, r"temporar(y|ily)|timed out|internal (server )?error"),
]
_NAMED = {code: kind for code, kind in _BY_CODE.items() if kind is not ErrorKind.GONE}


def kind_by_code(code: str) -> ErrorKind | None:
    """Find the kind of a code; None for a general or an unlisted one."""
    return _BY_CODE.get(code.lower())


def kind_by_message(code: str, message: str) -> ErrorKind | None:
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
