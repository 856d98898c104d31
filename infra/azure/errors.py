"""Translates each error of Azure into the class of the seam's tree that says what to do next.

    capacity, allocation, constraints, a place
    that is closed, a failure at Azure           NoCapacity      the next offer
    quota, and limits on addresses               OverQuota       family, limit, link to ask for more
    a spot price above the cap                   PriceAboveCap   with the price of now
    credentials                                  SignedOut       the command that signs in
    rights, policy, lock, image, offer type      NotAllowed      the command or page that helps
    404                                          Gone
    429, 5xx, broken connections, busy           Transient       with Azure's advice when to return
    409 that says nothing known                  Conflict        asked again a few times, then as:
    everything else                              Rejected        the next offer, code and message
    what we must never ask for                   BadRequest      our bug

Neither the exception class of the SDK nor the HTTP status decides: quota arrives as 409
`ResourceExistsError`, a failed operation as status 200. The error code does, else its words
(`error_codes.py`), and only what neither knows takes the class of its status.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from infra.azure.error_codes import AzureErrorKind, kind_by_code, kind_by_message
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

QUOTA_PORTAL = "https://portal.azure.com/#view/Microsoft_Azure_Capacity/QuotaMenuBlade/~/myQuotas"
SPOT_OFFERS = "https://learn.microsoft.com/azure/virtual-machines/spot-vms#offers-supported"


class AlreadyThereError(Rejected):
    """A create with `If-None-Match: *` met something; `create` looks whether it is our own."""


class UnregisteredError(NotAllowed):
    """The subscription has never used this part of Azure, so nothing of it can exist either."""


class ConflictError(Rejected):
    """A 409 with an unlisted code: mostly a second write on an object that is busy."""


class SubscriptionError(NotAllowed):
    """There is no such subscription for this account, or it is disabled: nothing can be rented."""


class ImageRefusedError(NotAllowed):
    """The image is retired, missing or not bought; whoever asked for it knows its name."""

    def naming(self, image: str) -> ImageRefusedError:
        """The same, with the image's name in it."""
        text = str(self)
        named = text if image in text else f"{text}; the image is `{image}`"
        return ImageRefusedError(named, hint=self.hint)


@dataclass(frozen=True, kw_only=True)
class AzureErrorInfo:
    """An error of Azure as plain values, without the SDK's classes."""

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
    def text(self) -> str:
        """The code and the message as one line for people."""
        text = " ".join(self.message.split())
        return f"{self.code}: {text}" if self.code else text


def translate(info: AzureErrorInfo, *, doing: str) -> ProviderError:
    """Translate what Azure answered while `doing` something into the seam's error; never raises."""
    if info.auth:
        from infra.azure.credentials import no_credentials  # imports the SDK, loaded by now

        return no_credentials(info.message)
    messages = () if info.status == 412 else ((info.code, info.message), *info.nested)
    for code, message in messages:
        kind = kind_by_code(code)
        if kind is not None:
            return _build(kind, _one(info, code, message), doing)
    for code, message in messages:
        kind = kind_by_message(code, message)
        if code.lower() == "noregisteredproviderfound":
            kind = _of_unknown_provider(message)
        if kind is not None and _may_overrule(kind, info.status):
            return _build(kind, _one(info, code, message), doing)
    return _by_status(info, doing)


def _one(info: AzureErrorInfo, code: str, message: str) -> AzureErrorInfo:
    """One of the reported errors, with the status and the advice of the whole."""
    return AzureErrorInfo(
        code=code, message=message, status=info.status, retry_after_s=info.retry_after_s
    )


def _may_overrule(kind: AzureErrorKind, status: int) -> bool:
    """Whether a message overrules a status: some statuses are certain."""
    if status in {0, 401, 408, 425, 429} or status >= 500:
        return False
    if status in {404, 410}:
        return kind in {
            AzureErrorKind.IMAGE,
            AzureErrorKind.API_VERSION,
            AzureErrorKind.CLOSED_PLACE,
        }
    return not (
        status == 200 and kind is AzureErrorKind.TRANSIENT
    )  # over, and not to be repeated as it is


def _of_unknown_provider(message: str) -> AzureErrorKind:
    """Distinguish a wrong api-version from a region without the type, which share a code."""
    version = re.search(r"API version '([^']*)'", message)
    supported = re.search(r"supported api-versions are '([^']*)'", message)
    place = re.search(r"location '([^']*)'", message)
    places = re.search(r"supported locations are '([^']*)'", message)
    if version and supported and version[1] not in supported[1].replace(" ", "").split(","):
        return AzureErrorKind.API_VERSION
    if place and place[1] and places:
        there = [one.strip().lower() for one in places[1].split(",")]
        return (
            AzureErrorKind.API_VERSION if place[1].lower() in there else AzureErrorKind.CLOSED_PLACE
        )
    return AzureErrorKind.API_VERSION if version else AzureErrorKind.CLOSED_PLACE


def _by_status(info: AzureErrorInfo, doing: str) -> ProviderError:
    status = info.status
    if status in {0, 408, 425, 429} or status >= 500:
        return _transient(info, doing)
    if status in {409, 423}:
        if info.retry_after_s is not None:
            return _transient(info, doing)
        if info.code.lower() == "operationnotallowed":  # its words would say if it were busy
            return _refused(info, doing, Rejected)
        return _refused(info, doing, ConflictError)
    if status in {404, 410}:
        return _build(AzureErrorKind.GONE, info, doing)
    if status == 401:
        return _build(AzureErrorKind.TOKEN, info, doing)
    if status in {402, 403, 451}:
        return _build(AzureErrorKind.PERMISSIONS, info, doing)
    if status == 412:
        return _build(AzureErrorKind.EXISTS, info, doing)
    if status == 200:  # accepted, and failed at Azure: another host may do better
        why = f"({info.text})" if info.code else "without saying why"
        return NoCapacity(
            f"cannot {doing}: Azure marked it as failed {why}",
            hint="the next size or region is tried; nothing is left to pay for",
        )
    return _refused(info, doing, Rejected)


def _refused(info: AzureErrorInfo, doing: str, kind: type[Rejected]) -> ProviderError:
    """A refusal that nobody foresaw, in Azure's own words."""
    return kind(
        f"cannot {doing}: Azure refused the request ({info.text or info.status})",
        hint="if its words do not say what to change, please report the line above",
    )


def _no_address(info: AzureErrorInfo, doing: str) -> ProviderError:
    return OverQuota(
        f"cannot {doing}: no more public addresses may be had there ({info.text})",
        family="public IP addresses",
        hint="`az network public-ip list -o table` shows yours; those that nothing uses can go",
    )


def _price(info: AzureErrorInfo, doing: str) -> ProviderError:
    cap = _usd(r"(?:max(?:imum)? ?price|price cap|\bbid|\bcap)", info.message)
    now = _usd(r"(?:spot|market|current) price", info.message)
    numbers = cap is not None and now is not None
    comparison = f"the cap of {cap} USD/h is below the price of now, {now} USD/h"
    return PriceAboveCap(
        f"cannot {doing}: {comparison if numbers else info.text}",
        current_usd_per_h=now,
        hint=f"set `vm.max_price` above {now or 'it'}, name more regions, or wait",
    )


def _usd(before: str, text: str) -> float | None:
    """The first amount that follows some words closely."""
    found = re.search(rf"{before}[^\d]{{0,40}}?(\d+(?:\.\d+)?)", text, re.IGNORECASE)
    return float(found[1]) if found else None


def _quota(info: AzureErrorInfo, doing: str) -> ProviderError:
    text = f"{info.code} {info.message}"
    family = re.search(
        r"exceeding (?:approved (.+?) quota|quota limits? of (.+?)[.,])", text, re.IGNORECASE
    )
    return over_quota(info, doing, (family[1] or family[2]) if family else "")


def over_quota(info: AzureErrorInfo, doing: str, family: str) -> OverQuota:
    """Quota with its family, its limit and the link under which more can be asked for."""
    limit = _number(r"(?:Current Limit|Maximum allowed): (\d+)", info.message)
    needed = _number(r"New Limit Required: (\d+)", info.message)
    place = re.search(r"Location: (\w+)", info.message)
    reason = "" if family or limit is not None else f" ({info.text})"  # its words say which
    urls = re.findall(r"https?://[^\s'\"]+[^\s'\".,]", info.message)
    url = next((one for one in urls if "ProdportalCRP" in one), QUOTA_PORTAL)
    where = f" in {place[1]}" if place else ""
    have = "none at all" if limit == 0 else f"a limit of {limit}" if limit is not None else "less"
    name = family or "own"
    ask = f"at least {needed}" if needed is not None else "more"
    return OverQuota(
        f"cannot {doing}: the account's {name} quota{where} is too small; it has {have}{reason}; "
        f"ask for {ask} at {url}",
        family=family,
        limit=limit,
        hint="name regions with quota under `vm.regions` meanwhile; free trials cannot ask",
    )


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found[1]) if found else None


def _transient(info: AzureErrorInfo, doing: str) -> ProviderError:
    wait = info.retry_after_s
    reserved = re.search(r"reserved for another Virtual Machine for (\d+) seconds", info.message)
    if wait is None and reserved:
        wait = float(reserved[1]) / 6  # asked again sooner: most of the time has often gone by
    return Transient(
        f"cannot {doing} just now: {info.text or _silence(info)}",
        hint="the same call is safe to repeat",
        retry_after_s=wait,
    )


def _silence(info: AzureErrorInfo) -> str:
    return f"Azure answered {info.status} and no word" if info.status else "Azure did not answer"


def _unregistered(info: AzureErrorInfo, doing: str) -> ProviderError:
    found = re.search(r"namespace '([\w.]+)'", info.message)
    return UnregisteredError(
        f"cannot {doing}: {info.text}",
        hint=f"`az provider register --wait --namespace {found[1] if found else 'NAMESPACE'}`",
    )


_PLAIN: dict[AzureErrorKind, tuple[type[ProviderError], str, str]] = {
    AzureErrorKind.CAPACITY: (
        NoCapacity,
        "no spot capacity there now",
        "more regions under `vm.regions` help most; the same place is tried again in an hour",
    ),
    AzureErrorKind.NOT_AS_SPOT: (
        NoCapacity,
        "this size is not rented as spot",
        "choose another `vm.gpu` or let the next offer be tried",
    ),
    AzureErrorKind.CLOSED_PLACE: (
        NoCapacity,
        "that place is closed to this subscription",
        "name other regions under `vm.regions`; the next offer is tried",
    ),
    AzureErrorKind.BAD_CAP: (
        BadRequest,
        "",
        "`vm.max_price` is USD per hour, above 0, with at most five decimals",
    ),
    AzureErrorKind.FIXED_CAP: (
        BadRequest,
        "",
        "a cap changes only while the machine is deallocated: `qft down`, then `qft up`",
    ),
    AzureErrorKind.IMAGE: (
        ImageRefusedError,
        "the image is not to be had for this account",
        (
            "`vm: {image: URN}` names another; `az vm image terms show --urn URN` tells whether "
            "its terms are accepted"
        ),
    ),
    AzureErrorKind.OUR_BUG: (
        BadRequest,
        "Azure refused the request",
        "this is a bug of qft: please report the line above",
    ),
    AzureErrorKind.API_VERSION: (
        Rejected,
        "this cloud does not know what qft asks it with",
        "a newer qft may ask with another api-version; please report the line above",
    ),
    AzureErrorKind.NO_SPOT: (
        NotAllowed,
        "this subscription may not use spot machines",
        f"free trials and student offers cannot; pay-as-you-go can: {SPOT_OFFERS}",
    ),
    AzureErrorKind.PERMISSIONS: (
        NotAllowed,
        "the account lacks the right",
        "`Contributor` on the subscription is enough; `qft doctor` shows what is missing",
    ),
    AzureErrorKind.TOKEN: (
        SignedOut,
        "Azure does not accept the credentials",
        "`az login`, then `az account set --subscription NAME`",
    ),
    AzureErrorKind.SUBSCRIPTION: (
        SubscriptionError,
        "",
        "`az account list` shows yours; set AZURE_SUBSCRIPTION_ID to one that is enabled",
    ),
    AzureErrorKind.POLICY: (
        NotAllowed,
        "a policy or lock of your organisation forbids it",
        "its administrator can exempt the resource groups named `qft-*`",
    ),
    AzureErrorKind.EXISTS: (AlreadyThereError, "it exists already", ""),
    AzureErrorKind.GONE: (Gone, "it does not exist", ""),
}
"""The errors that say no more than what Azure said: their class, what it means, and the hint."""
_SPECIAL: dict[AzureErrorKind, Callable[[AzureErrorInfo, str], ProviderError]] = {
    AzureErrorKind.ADDRESSES: _no_address,
    AzureErrorKind.QUOTA: _quota,
    AzureErrorKind.PRICE: _price,
    AzureErrorKind.UNREGISTERED: _unregistered,
    AzureErrorKind.TRANSIENT: _transient,
}


def _build(kind: AzureErrorKind, info: AzureErrorInfo, doing: str) -> ProviderError:
    """The error of the seam for one kind of error."""
    if kind in _SPECIAL:
        return _SPECIAL[kind](info, doing)
    error, meaning, hint = _PLAIN[kind]
    text = str(info.text or info.status)
    return error(f"cannot {doing}: {f'{meaning} ({text})' if meaning else text}", hint=hint)
