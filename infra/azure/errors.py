"""Each refusal of Azure becomes the one class of the seam's tree that says what to do next.

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
(`codes.py`), and only what neither knows takes the class of its status.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from infra.azure.credential_errors import no_credentials
from infra.azure.error_codes import Refusal, kind_by_code, kind_by_words
from infra.provider import (
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
    """A 409 whose code nobody has told us of: mostly a second write on an object that is busy."""


class ImageRefusedError(NotAllowed):
    """The image is retired, missing or not bought; whoever asked for it knows its name."""

    def naming(self, image: str) -> ImageRefusedError:
        """The same, with the image's name in it."""
        told = str(self)
        named = told if image in told else f"{told}; the image is `{image}`"
        return ImageRefusedError(named, hint=self.hint)


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
        return no_credentials(fault.message)
    told = () if fault.status == 412 else ((fault.code, fault.message), *fault.nested)
    for code, message in told:
        kind = kind_by_code(code)
        if kind is not None:
            return _BUILD[kind](_one(fault, code, message), doing)
    for code, message in told:
        kind = kind_by_words(code, message)
        if code.lower() == "noregisteredproviderfound":
            kind = _of_unknown_provider(message)
        if kind is not None and _may_overrule(kind, fault.status):
            return _BUILD[kind](_one(fault, code, message), doing)
    return _by_status(fault, doing)


def _one(fault: Fault, code: str, message: str) -> Fault:
    """One of the errors that were told, with the status and the advice of the whole."""
    return Fault(code=code, message=message, status=fault.status, retry_after_s=fault.retry_after_s)


def _may_overrule(kind: Refusal, status: int) -> bool:
    """Whether words are believed against a status: some statuses speak for themselves."""
    if status in {0, 401, 408, 425, 429} or status >= 500:
        return False
    if status in {404, 410}:
        return kind in {Refusal.IMAGE, Refusal.API_VERSION, Refusal.CLOSED_PLACE}
    return not (
        status == 200 and kind is Refusal.TRANSIENT
    )  # over, and not to be repeated as it is


def _of_unknown_provider(message: str) -> Refusal:
    """A wrong api-version and a region without the type share a code: the lists tell them apart."""
    version = re.search(r"API version '([^']*)'", message)
    known = re.search(r"supported api-versions are '([^']*)'", message)
    place = re.search(r"location '([^']*)'", message)
    places = re.search(r"supported locations are '([^']*)'", message)
    if version and known and version[1] not in known[1].replace(" ", "").split(","):
        return Refusal.API_VERSION
    if place and place[1] and places:
        there = [one.strip().lower() for one in places[1].split(",")]
        return Refusal.API_VERSION if place[1].lower() in there else Refusal.CLOSED_PLACE
    return Refusal.API_VERSION if version else Refusal.CLOSED_PLACE


def _by_status(fault: Fault, doing: str) -> ProviderError:
    status = fault.status
    if status in {0, 408, 425, 429} or status >= 500:
        return _transient(fault, doing)
    if status in {409, 423}:
        if fault.retry_after_s is not None:
            return _transient(fault, doing)
        if fault.code.lower() == "operationnotallowed":  # its words would say if it were busy
            return _refused(fault, doing, Rejected)
        return _refused(fault, doing, ConflictError)
    if status in {404, 410}:
        return _gone(fault, doing)
    if status == 401:
        return _bad_token(fault, doing)
    if status in {402, 403, 451}:
        return _not_allowed(fault, doing)
    if status == 412:
        return _exists(fault, doing)
    if status == 200:  # accepted, and failed at Azure: another host may do better
        why = f"({fault.said})" if fault.code else "without saying why"
        return NoCapacity(
            f"cannot {doing}: Azure marked it as failed {why}",
            hint="the next size or region is tried; nothing is left to pay for",
        )
    return _refused(fault, doing, Rejected)


def _refused(fault: Fault, doing: str, kind: type[Rejected]) -> ProviderError:
    """A refusal that nobody foresaw, in Azure's own words."""
    return kind(
        f"cannot {doing}: Azure refused the request ({fault.said or fault.status})",
        hint="if its words do not say what to change, please report the line above",
    )


def _exists(fault: Fault, doing: str) -> ProviderError:
    return AlreadyThereError(f"cannot {doing}: it exists already ({fault.said})")


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
    cap = _usd(r"(?:max(?:imum)? ?price|price cap|\bbid|\bcap)", fault.message)
    now = _usd(r"(?:spot|market|current) price", fault.message)
    numbers = cap is not None and now is not None
    told = f"the cap of {cap} USD/h is below the price of now, {now} USD/h"
    return PriceAboveCap(
        f"cannot {doing}: {told if numbers else fault.said}",
        current_usd_per_h=now,
        hint=f"set `vm.max_price` above {now or 'it'}, name more regions, or wait",
    )


def _usd(before: str, text: str) -> float | None:
    """The first amount that follows some words closely."""
    found = re.search(rf"{before}[^\d]{{0,40}}?(\d+(?:\.\d+)?)", text, re.IGNORECASE)
    return float(found[1]) if found else None


def _quota(fault: Fault, doing: str) -> ProviderError:
    told = f"{fault.code} {fault.message}"
    family = re.search(
        r"exceeding (?:approved (.+?) quota|quota limits? of (.+?)[.,])", told, re.IGNORECASE
    )
    return over_quota(fault, doing, (family[1] or family[2]) if family else "")


def over_quota(fault: Fault, doing: str, family: str) -> OverQuota:
    """Quota with its family, its limit and the link under which more can be asked for."""
    limit = _number(r"(?:Current Limit|Maximum allowed): (\d+)", fault.message)
    needed = _number(r"New Limit Required: (\d+)", fault.message)
    place = re.search(r"Location: (\w+)", fault.message)
    reason = "" if family or limit is not None else f" ({fault.said})"  # its words say which
    links = re.findall(r"https?://[^\s'\"]+[^\s'\".,]", fault.message)
    link = next((one for one in links if "ProdportalCRP" in one), QUOTA_PORTAL)
    where = f" in {place[1]}" if place else ""
    have = "none at all" if limit == 0 else f"a limit of {limit}" if limit is not None else "less"
    name = family or "own"
    ask = f"at least {needed}" if needed is not None else "more"
    return OverQuota(
        f"cannot {doing}: the account's {name} quota{where} is too small; it has {have}{reason}; "
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


def _our_bug(fault: Fault, doing: str) -> ProviderError:
    return BadRequest(
        f"cannot {doing}: Azure refused the request ({fault.said or fault.status})",
        hint="this is a bug of qft: please report the line above",
    )


def _api_version(fault: Fault, doing: str) -> ProviderError:
    return Rejected(
        f"cannot {doing}: this cloud does not know what qft asks it with ({fault.said})",
        hint="a newer qft may ask with another api-version; please report the line above",
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


def _image(fault: Fault, doing: str) -> ProviderError:
    return ImageRefusedError(
        f"cannot {doing}: the image is not to be had for this account ({fault.said})",
        hint="`vm: {image: URN}` names another; `az vm image terms show --urn URN` tells whether "
        "its terms are accepted",
    )


_Build = Callable[[Fault, str], ProviderError]
_BUILD: dict[Refusal, _Build] = {
    Refusal.CAPACITY: _no_capacity,
    Refusal.NOT_AS_SPOT: _not_as_spot,
    Refusal.CLOSED_PLACE: _closed_place,
    Refusal.ADDRESSES: _no_address,
    Refusal.QUOTA: _quota,
    Refusal.PRICE: _price,
    Refusal.BAD_CAP: _bad_cap,
    Refusal.FIXED_CAP: _cap_is_fixed,
    Refusal.IMAGE: _image,
    Refusal.OUR_BUG: _our_bug,
    Refusal.API_VERSION: _api_version,
    Refusal.NO_SPOT: _no_spot_for_account,
    Refusal.RIGHTS: _not_allowed,
    Refusal.TOKEN: _bad_token,
    Refusal.SUBSCRIPTION: _no_subscription,
    Refusal.UNREGISTERED: _unregistered,
    Refusal.POLICY: _policy,
    Refusal.TRANSIENT: _transient,
    Refusal.EXISTS: _exists,
    Refusal.GONE: _gone,
}
