"""Each refusal of Azure becomes the one class of the seam's tree that says what to do next.

    capacity, allocation, constraints, a place
    that is closed, a failure at Azure           NoCapacity      the next offer
    quota                                        OverQuota       family, limit, link to ask for more
    SpotPriceGreaterThanProvidedMaxPrice         PriceAboveCap   with the price of now
    credentials                                  SignedOut       the command that signs in
    rights, policy, offer type                   NotAllowed      the command or page that helps
    404                                          Gone
    429, 5xx, broken connections, busy           Transient       with Azure's advice when to return
    everything else                              BadRequest      our bug: code and message verbatim

Neither the exception class of the SDK nor the HTTP status decides: quota arrives as 409
`ResourceExistsError`, a failed operation as status 200. The error code does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from infra.provider import (
    BadRequest,
    Gone,
    NoCapacity,
    NotAllowed,
    OverQuota,
    PriceAboveCap,
    ProviderError,
    SignedOut,
    Transient,
)

QUOTA_PORTAL = "https://portal.azure.com/#view/Microsoft_Azure_Capacity/QuotaMenuBlade/~/myQuotas"
SPOT_OFFERS = "https://learn.microsoft.com/azure/virtual-machines/spot-vms#offers-supported"


class AlreadyThereError(BadRequest):
    """A create with `If-None-Match: *` met something; `create` looks whether it is our own."""


class UnregisteredError(NotAllowed):
    """The subscription has never used this part of Azure, so nothing of it can exist either."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What Azure said, freed from the SDK's classes."""

    code: str = ""
    message: str = ""
    status: int = 0
    """The HTTP status; 200 for an operation that failed later, 0 if nothing was answered."""
    retry_after_s: float | None = None
    nested: tuple[tuple[str, str], ...] = ()
    """Code and message of the errors inside the error, where group deletions hide the reason."""
    auth: bool = False
    """Whether the credential chain itself failed, before anything was asked of Azure."""

    @property
    def said(self) -> str:
        """The code and the message as one line for people."""
        text = " ".join(self.message.split())
        return f"{self.code}: {text}" if self.code else text


def translate(fault: Fault, *, doing: str) -> ProviderError:
    """The error of the seam for what Azure answered while `doing` something; never raises."""
    if fault.auth:
        return _no_credentials(fault)
    if fault.status == 412:
        return _by_status(fault, doing)
    said = ((fault.code, fault.message), *fault.nested)
    for code, message in said:
        build = _RULES.get(code.lower())
        if build is not None:
            one = Fault(
                code=code,
                message=message,
                status=fault.status,
                retry_after_s=fault.retry_after_s,
            )
            return build(one, doing)
    return _by_status(fault, doing)


def _by_status(fault: Fault, doing: str) -> ProviderError:
    if fault.status in {0, 408, 429} or fault.status >= 500:
        return _transient(fault, doing)
    if fault.status == 409 and fault.retry_after_s is not None:
        return _transient(fault, doing)
    if fault.status == 404:
        return Gone(f"cannot {doing}: it does not exist ({fault.said})")
    if fault.status == 401:
        return _bad_token(fault, doing)
    if fault.status == 403:
        return _not_allowed(fault, doing)
    if fault.status == 412:
        return AlreadyThereError(f"cannot {doing}: it exists already ({fault.said})")
    if fault.status == 200:  # accepted, and failed at Azure: another host may do better
        why = f"({fault.said})" if fault.code else "without saying why"
        return NoCapacity(
            f"cannot {doing}: Azure marked it as failed {why}",
            hint="the next size or region is tried; nothing is left to pay for",
        )
    return _bad_request(fault, doing)


def _no_capacity(fault: Fault, doing: str) -> ProviderError:
    return NoCapacity(
        f"cannot {doing}: no spot capacity there now ({fault.said})",
        hint="more regions under `vm.regions` help most; the same place is tried again in an hour",
    )


def _not_as_spot(fault: Fault, doing: str) -> ProviderError:
    return NoCapacity(
        f"cannot {doing}: this size is not rented as spot ({fault.said})",
        hint="choose another `vm.gpu` or let the next offer be tried",
    )


def _closed_place(fault: Fault, doing: str) -> ProviderError:
    return NoCapacity(
        f"cannot {doing}: that place is closed to this subscription ({fault.said})",
        hint="name other regions under `vm.regions`; the next offer is tried",
    )


def _no_address(fault: Fault, doing: str) -> ProviderError:
    return OverQuota(
        f"cannot {doing}: no more public addresses may be had there ({fault.said})",
        family="public IP addresses",
        hint="`az network public-ip list -o table` shows yours; those that nothing uses can go",
    )


def _price(fault: Fault, doing: str) -> ProviderError:
    found = re.search(
        r"max price '([\d.]+) USD'.*?current spot price '([\d.]+) USD'", fault.message
    )
    cap, now = (float(found[1]), float(found[2])) if found else (None, None)
    told = f"the cap of {cap} USD/h is below the price of now, {now} USD/h" if found else fault.said
    return PriceAboveCap(
        f"cannot {doing}: {told}",
        current_usd_per_h=now,
        hint=f"set `vm.max_price` above {now or 'it'}, name more regions, or wait",
    )


def _operation_not_allowed(fault: Fault, doing: str) -> ProviderError:
    """The same code carries quota, which needs a human, and bad timing, which needs a moment."""
    told = f"{fault.code} {fault.message}"
    family = re.search(
        r"exceeding (?:approved (.+?) quota|quota limits? of (.+?)[.,])", told, re.IGNORECASE
    )
    if family:
        return over_quota(fault, doing, family[1] or family[2])
    if "quota" in told.lower():
        return over_quota(fault, doing, "")
    if re.search(r"in progress|is being|marked for deletion|concurrent", fault.message):
        return _transient(fault, doing)
    return _bad_request(fault, doing)


def over_quota(fault: Fault, doing: str, family: str) -> OverQuota:
    """Quota with its family, its limit and the link under which more can be asked for."""
    limit = _number(r"(?:Current Limit|Maximum allowed): (\d+)", fault.message)
    needed = _number(r"New Limit Required: (\d+)", fault.message)
    place = re.search(r"Location: (\w+)", fault.message)
    links = re.findall(r"https?://[^\s'\"]+[^\s'\".,]", fault.message)
    link = next((one for one in links if "ProdportalCRP" in one), QUOTA_PORTAL)
    where = f" in {place[1]}" if place else ""
    have = "none at all" if limit == 0 else f"a limit of {limit}" if limit is not None else "less"
    name = family or "own"
    ask = f"at least {needed}" if needed is not None else "more"
    return OverQuota(
        f"cannot {doing}: the account's {name} quota{where} is too small; it has {have}; "
        f"ask for {ask} at {link}",
        family=family,
        limit=limit,
        hint="name regions with quota under `vm.regions` meanwhile; free trials cannot ask",
    )


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found[1]) if found else None


def _transient(fault: Fault, doing: str) -> ProviderError:
    wait = fault.retry_after_s
    reserved = re.search(r"reserved for another Virtual Machine for (\d+) seconds", fault.message)
    if wait is None and reserved:
        wait = float(reserved[1]) / 6  # asked again sooner: most of the time has often gone by
    return Transient(
        f"cannot {doing} just now: {fault.said or _silence(fault)}",
        hint="the same call is safe to repeat",
        retry_after_s=wait,
    )


def _silence(fault: Fault) -> str:
    return f"Azure answered {fault.status} and no word" if fault.status else "Azure did not answer"


def _gone(fault: Fault, doing: str) -> ProviderError:
    return Gone(f"cannot {doing}: it does not exist ({fault.said})")


def _bad_request(fault: Fault, doing: str) -> ProviderError:
    return BadRequest(
        f"cannot {doing}: Azure refused the request ({fault.said or fault.status})",
        hint="this is a bug of qft: please report the line above",
    )


def _bad_cap(fault: Fault, doing: str) -> ProviderError:
    return BadRequest(
        f"cannot {doing}: {fault.said}",
        hint="`vm.max_price` is USD per hour, above 0, with at most five decimals",
    )


def _cap_is_fixed(fault: Fault, doing: str) -> ProviderError:
    return BadRequest(
        f"cannot {doing}: {fault.said}",
        hint="a cap changes only while the machine is deallocated: `qft down`, then `qft up`",
    )


def _no_spot_for_account(fault: Fault, doing: str) -> ProviderError:
    return NotAllowed(
        f"cannot {doing}: this subscription may not use spot machines ({fault.said})",
        hint=f"free trials and student offers cannot; pay-as-you-go can: {SPOT_OFFERS}",
    )


def _not_allowed(fault: Fault, doing: str) -> ProviderError:
    return NotAllowed(
        f"cannot {doing}: the account lacks the right ({fault.said or fault.status})",
        hint="`Contributor` on the subscription is enough; `qft doctor` shows what is missing",
    )


def _bad_token(fault: Fault, doing: str) -> ProviderError:
    return SignedOut(
        f"cannot {doing}: Azure does not accept the credentials ({fault.said or fault.status})",
        hint="`az login`, then `az account set --subscription NAME`",
    )


def _no_subscription(fault: Fault, doing: str) -> ProviderError:
    return NotAllowed(
        f"cannot {doing}: {fault.said}",
        hint="`az account list` shows yours; set AZURE_SUBSCRIPTION_ID to one that is enabled",
    )


def _unregistered(fault: Fault, doing: str) -> ProviderError:
    found = re.search(r"namespace '([\w.]+)'", fault.message)
    return UnregisteredError(
        f"cannot {doing}: {fault.said}",
        hint=f"`az provider register --wait --namespace {found[1] if found else 'NAMESPACE'}`",
    )


def _policy(fault: Fault, doing: str) -> ProviderError:
    return NotAllowed(
        f"cannot {doing}: a policy or lock of your organisation forbids it ({fault.said})",
        hint="its administrator can exempt the resource groups named `qft-*`",
    )


def _terms(fault: Fault, doing: str) -> ProviderError:
    return NotAllowed(
        f"cannot {doing}: the image may not be bought with this account ({fault.said})",
        hint="`az vm image terms show --urn URN` tells its terms",
    )


def _no_credentials(fault: Fault) -> ProviderError:
    """Of a chain that tried ten ways to sign in, keep the lines that tell a human something."""
    lines = [line.strip() for line in fault.message.splitlines() if line.strip()]
    useful = [line for line in lines if not _DULL.search(line)]
    tried = [line for line in useful if "authentication unavailable" not in line]
    told = "; ".join((tried or useful)[:3]) or "no way to sign in was found"
    if _BROKEN_NETWORK.search(told) and "AADSTS" not in told:
        return Transient(
            f"cannot sign in to Azure just now: {told}",
            hint="the network seems to be away; the same call is safe to repeat",
        )
    if "Failed to invoke the Azure CLI" in told:  # so azure-identity calls one that takes too long
        return Transient(
            f"cannot sign in to Azure just now: {told}",
            hint="`az account get-access-token` should answer within seconds; see what it says",
        )
    login = next((line for line in lines if line.startswith("az login")), "")
    return SignedOut(
        f"cannot sign in to Azure: {told}",
        hint=f"`{login}`"
        if login
        else "`az login`, or set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET",
    )


_DULL = re.compile(
    r"troubleshoot|Attempted credentials|Visit https|To mitigate|not installed on path|"
    r"not found on path|SharedTokenCache|VisualStudioCode|InteractiveBrowser|Broker|"
    r"WorkloadIdentity|DeveloperCli|PowerShell|no response from the IMDS|"
    r"DefaultAzureCredential failed|^Trace ID|^Run the command below|^Interactive auth|^az log",
    re.IGNORECASE,
)
_BROKEN_NETWORK = re.compile(
    r"Connection aborted|RemoteDisconnected|Connection refused|Connection reset|timed out|"
    r"Max retries exceeded|Name or service not known|getaddrinfo|NameResolution|"
    r"Temporary failure|unreachable",
    re.IGNORECASE,
)
_Build = Callable[[Fault, str], ProviderError]

_CODES: dict[_Build, str] = {
    _no_capacity: """
        SkuNotAvailable AllocationFailed ZonalAllocationFailed OverconstrainedAllocationRequest
        OverconstrainedZonalAllocationRequest
    """,
    _not_as_spot: "AzureSpotIsNotSupportedForThisVMSize",
    _closed_place: """
        RequestDisallowedByAzure LocationNotAvailableForResourceType NotAvailableForSubscription
        InvalidAvailabilityZone AvailabilityZoneNotSupported LocationNotAvailableForResourceGroup
        NoRegisteredProviderFound
    """,
    _no_address: "PublicIPCountLimitReached",
    _operation_not_allowed: "OperationNotAllowed QuotaExceeded ResourceGroupQuotaExceeded",
    _price: "SpotPriceGreaterThanProvidedMaxPrice",
    _bad_cap: "MaxPriceValueInvalid MaxPriceIsSupportedOnlyForAzureSpotVirtualMachines",
    _cap_is_fixed: "MaxPriceChangeNotAllowedForAllocatedVMs MaxPriceChangeNotAllowed",
    _bad_request: """
        EvictionPolicyCanBeSetOnlyOnAzureSpotVirtualMachines VMPriorityCannotBeApplied
        AzureSpotVMNotSupportedInAvailabilitySet PropertyChangeNotAllowed
    """,
    _no_spot_for_account: "AzureSpotFeatureNotEnabledForSubscription",
    _not_allowed: "AuthorizationFailed LinkedAuthorizationFailed InsufficientPermissions",
    _bad_token: """
        ExpiredAuthenticationToken InvalidAuthenticationToken AuthenticationFailed
        InvalidAuthenticationTokenTenant InvalidAuthenticationTokenAudience
    """,
    _no_subscription: """
        SubscriptionNotFound InvalidSubscriptionId ReadOnlyDisabledSubscription
        SubscriptionNotRegistered
    """,
    _unregistered: "MissingSubscriptionRegistration",
    _policy: "RequestDisallowedByPolicy ScopeLocked DisallowedOperation",
    _terms: "MarketplacePurchaseEligibilityFailed ResourcePurchaseValidationFailed",
    _transient: """
        TooManyRequests SubscriptionRequestsThrottled OperationPreempted AnotherOperationInProgress
        RetryableError RetryableErrorDueToAnotherOperation InternalServerError InternalServiceError
        ServerTimeout GatewayTimeout NetworkingInternalOperationError OSProvisioningTimedOut
        ResourceGroupBeingDeleted ResourceGroupDeletionTimeout NicReservedForAnotherVm NicInUse
        PublicIPAddressCannotBeDeleted InUseSubnetCannotBeDeleted
        InUseNetworkSecurityGroupCannotBeDeleted AttachDiskWhileBeingDetached
        InvalidResourceReference ReferencedResourceNotProvisioned
        CanceledAndSupersededDueToAnotherOperation
    """,
    _gone: "NotFound ResourceNotFound ResourceGroupNotFound ParentResourceNotFound",
}
_RULES = {code.lower(): build for build, codes in _CODES.items() for code in codes.split()}
