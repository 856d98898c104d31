"""Which kind of refusal a code or a sentence of Azure's stands for; data, and the reading of it.

The codes are those that Microsoft documents and that public issue trackers show; new ones come
without notice. So a code that is not in the table is looked at for its parts, then its sentence is
read, and what says nothing to either is left to the HTTP status.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Refusal(StrEnum):
    """What a refusal is about, which decides what can be done next."""

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
    RIGHTS = "rights"
    TOKEN = "token"  # noqa: S105  (a word)
    SUBSCRIPTION = "subscription"
    UNREGISTERED = "unregistered"
    POLICY = "policy or lock"
    TRANSIENT = "passes by itself"
    EXISTS = "exists already"
    GONE = "gone"


_CODES = {
    Refusal.CAPACITY: """
        SkuNotAvailable AllocationFailed ZonalAllocationFailed OverconstrainedAllocationRequest
        OverconstrainedZonalAllocationRequest InsufficientCapacity OutOfCapacity CapacityUnavailable
    """,
    Refusal.NOT_AS_SPOT: "AzureSpotIsNotSupportedForThisVMSize",
    Refusal.CLOSED_PLACE: """
        RequestDisallowedByAzure LocationNotAvailableForResourceType NotAvailableForSubscription
        InvalidAvailabilityZone AvailabilityZoneNotSupported LocationNotAvailableForResourceGroup
        LocationNotSupported VMSizeNotSupported VMSizeIsNotPermittedToEnableAcceleratedNetworking
    """,
    Refusal.ADDRESSES: """
        PublicIPCountLimitReached StaticPublicIPCountLimitReached
        DynamicPublicIPCountLimitReached IPv4BasicSkuPublicIpCountLimitReached
        IPv4StandardSkuPublicIpCountLimitReached IPv6StandardSkuPublicIpCountLimitReached
        PublicIPAddressCountLimitReached PublicIpCountExceeded
    """,
    Refusal.QUOTA: """
        QuotaExceeded ResourceGroupQuotaExceeded ResourceCountExceedsLimitDueToTemplate
        ResourceQuotaExceeded SubscriptionQuotaExceeded ResourceLimitExceeded ResourceQuotaLimit
    """,
    Refusal.PRICE: "SpotPriceGreaterThanProvidedMaxPrice",
    Refusal.BAD_CAP: "MaxPriceValueInvalid MaxPriceIsSupportedOnlyForAzureSpotVirtualMachines",
    Refusal.FIXED_CAP: "MaxPriceChangeNotAllowedForAllocatedVMs MaxPriceChangeNotAllowed",
    Refusal.OUR_BUG: """
        EvictionPolicyCanBeSetOnlyOnAzureSpotVirtualMachines VMPriorityCannotBeApplied
        AzureSpotVMNotSupportedInAvailabilitySet PropertyChangeNotAllowed
    """,
    Refusal.IMAGE: """
        ImageNotFound PlatformImageNotFound VMImageNotFound GalleryImageNotFound ImageDeprecated
        ImageVersionDeprecated ArtifactNotFound MarketplacePurchaseEligibilityFailed
        VMMarketplaceInvalidInput ResourcePurchaseValidationFailed
        ResourcePurchaseCanceling PlanNotFound OfferNotFound
        MarketplaceImageTermsNotAccepted UserHasNotAcceptedTerms LegalTermsNotAccepted
        InvalidImageReference ImageBlobNotFound
    """,
    Refusal.API_VERSION: """
        InvalidApiVersionParameter MissingApiVersionParameter UnsupportedApiVersion
        InvalidResourceType ApiVersionNotSupported InvalidResourceNamespace
    """,
    Refusal.NO_SPOT: "AzureSpotFeatureNotEnabledForSubscription",
    Refusal.RIGHTS: """
        AuthorizationFailed LinkedAuthorizationFailed InsufficientPermissions
        LinkedAccessCheckFailed Forbidden
    """,
    Refusal.TOKEN: """
        ExpiredAuthenticationToken InvalidAuthenticationToken AuthenticationFailed
        InvalidAuthenticationTokenTenant InvalidAuthenticationTokenAudience
        AuthenticationFailedMissingToken AuthenticationFailedInvalidHeader InvalidAuthenticationInfo
    """,
    Refusal.SUBSCRIPTION: """
        SubscriptionNotFound InvalidSubscriptionId ReadOnlyDisabledSubscription
        SubscriptionNotRegistered DisabledSubscription SubscriptionDisabled SubscriptionSuspended
        SubscriptionDeleted SubscriptionWarned BillingNotEnabled SpendingLimitReached
    """,
    Refusal.UNREGISTERED: "MissingSubscriptionRegistration",
    Refusal.POLICY: """
        RequestDisallowedByPolicy ScopeLocked DisallowedOperation DenyAssignmentAuthorizationFailed
        ResourceDisallowedByPolicy LockedResource
    """,
    Refusal.TRANSIENT: """
        TooManyRequests SubscriptionRequestsThrottled OperationPreempted AnotherOperationInProgress
        RetryableError RetryableErrorDueToAnotherOperation InternalServerError InternalServiceError
        ServerTimeout GatewayTimeout NetworkingInternalOperationError OSProvisioningTimedOut
        ResourceGroupBeingDeleted ResourceGroupDeletionTimeout NicReservedForAnotherVm NicInUse
        PublicIPAddressCannotBeDeleted InUseSubnetCannotBeDeleted
        InUseNetworkSecurityGroupCannotBeDeleted AttachDiskWhileBeingDetached
        InvalidResourceReference ReferencedResourceNotProvisioned
        CanceledAndSupersededDueToAnotherOperation
    """,
    Refusal.EXISTS: "RoleAssignmentExists RoleDefinitionWithSameNameExists",
    Refusal.GONE: "NotFound ResourceNotFound ResourceGroupNotFound ParentResourceNotFound",
}
_BY_CODE = {code.lower(): kind for kind, codes in _CODES.items() for code in codes.split()}

# Parts of codes that nobody has told us of, the first that fits. What a limit on how often one may
# ask, or on how long a text may be, is called is no quota.
_CODE_PARTS = [
    (Refusal.CAPACITY, r"allocation(failed|timeout|timedout)|overconstrained|skus?notavail"),
    (
        Refusal.TRANSIENT,
        r"throttl|ratelimit|requestlimit|toomanyreq|inprogress|being(deleted|created)",
    ),
    (
        Refusal.TRANSIENT,
        r"timeout|timedout|temporarily|serverbusy|unavailable|preempted|superseded",
    ),
    (Refusal.ADDRESSES, r"publicip\w*(limit|quota|exceeded)"),
    (Refusal.QUOTA, r"quota|(core|vcpu|count|resource|subscription|regional)s?limit"),
    (Refusal.QUOTA, r"^(?!.*(size|length|char|depth)).*limit(reached|exceeded)"),
    (Refusal.QUOTA, r"(count|persubscription|perregion|cores)\w*(exceed|reached)"),
    (Refusal.CAPACITY, r"capacity"),
    (Refusal.PRICE, r"spotprice|pricegreater|pricetoolow"),
    (Refusal.IMAGE, r"image|marketplace|purchase|legalterms|terms(not|of)"),
    (
        Refusal.POLICY,
        r"(by|denied|disallowed)policy|policyviolation|disallowed|locked|denyassignment",
    ),
    (Refusal.SUBSCRIPTION, r"subscription\w*(disabled|suspended|deleted|notfound|warned|expired)"),
    (Refusal.SUBSCRIPTION, r"disabledsubscription|billingnotenabled|spendinglimit"),
    (Refusal.API_VERSION, r"apiversion"),
    (Refusal.RIGHTS, r"authorization|permission|accessdenied|accesscheck"),
    (Refusal.TOKEN, r"authentication(token|failed)"),
]
_WORDS = [
    (Refusal.PRICE, r"(max(imum)? ?price|price cap|bid).{0,80}(spot|market|current) price"),
    (Refusal.PRICE, r"(spot|market|current) price.{0,80}(max(imum)? ?price|cap\b|bid\b)"),
    (Refusal.TRANSIENT, r"throttl|too many requests|request rate|rate limit|rate of requests"),
    (Refusal.ADDRESSES, r"(more than \d+|limit|quota|maximum).{0,60}public ?ip"),
    (Refusal.ADDRESSES, r"public ?ip( address(es)?)?.{0,80}(limit|quota|maximum number)"),
    (
        Refusal.QUOTA,
        r"\bquotas?\b|exceed\w* .{0,60}\b(core|vcpu|resource|count|subscription)s? limit",
    ),
    (Refusal.QUOTA, r"(cannot|can not|can't) (create|have|deploy|allocate|add) more than \d+"),
    (Refusal.QUOTA, r"\blimit\b.{0,60}(has been|have been|was|is|were) (reached|exceeded|hit)\b"),
    (Refusal.QUOTA, r"(reached|exceed\w*) (the|your|its) (max\w* )?(limit|number)"),
    (Refusal.QUOTA, r"(maximum|max) number of .{1,60}(reached|exceeded|subscription|region)"),
    (Refusal.IMAGE, r"\bimages?\b.{0,120}(not found|not available|deprecat|retired|not exist)"),
    (Refusal.IMAGE, r"(not found|deprecat|retired|could not find|no longer).{0,80}\bimages?\b"),
    (Refusal.IMAGE, r"legal terms|terms of use|accept\w* the terms|marketplace|plan information"),
    (Refusal.CAPACITY, r"(sufficient|enough|out of|no|lack of|available) (\w+ ){0,2}capacity"),
    (Refusal.CAPACITY, r"capacity restriction|allocation failed|currently not available in"),
    (Refusal.UNREGISTERED, r"not registered to use namespace"),
    (Refusal.POLICY, r"disallowed by|by policy|scope.{0,200}lock|\blocked\b|deny assignment"),
    (
        Refusal.SUBSCRIPTION,
        r"subscription.{0,80}(disabled|suspended|read.?only|not enabled|expired)",
    ),
    (Refusal.NO_SPOT, r"spot.{0,60}not (enabled|supported|allowed|available).{0,40}subscription"),
    (Refusal.RIGHTS, r"(does not have|lacks|insufficient) (\w+ ){0,2}(authori|permission|rights)"),
    (Refusal.TRANSIENT, r"in progress|is being |marked for deletion|concurrent|another operation"),
    (
        Refusal.TRANSIENT,
        r"(try|retry)( again| the (request|operation))? (later|in a|after)|retryable",
    ),
    (Refusal.TRANSIENT, r"temporar(y|ily)|timed out|internal (server )?error"),
]
_NAMED = {code: kind for code, kind in _BY_CODE.items() if kind is not Refusal.GONE}


def kind_by_code(code: str) -> Refusal | None:
    """What a code in the table stands for; None for a general or an unknown one."""
    return _BY_CODE.get(code.lower())


def kind_by_words(code: str, message: str) -> Refusal | None:
    """What the parts of a code, or the words of its message, speak of; None for nothing known."""
    for word in re.findall(r"\b[A-Z][A-Za-z]{9,}\b", message):  # a code that a sentence quotes
        if word != code and word.lower() in _NAMED:
            return _NAMED[word.lower()]
    parts = code.lower().replace("_", "").replace("-", "")
    text = " ".join(message.split())
    by_parts = next((kind for kind, one in _CODE_PARTS if re.search(one, parts)), None)
    return by_parts or next(
        (kind for kind, one in _WORDS if re.search(one, text, re.IGNORECASE)), None
    )
