"""Translates each error of AWS into the class of the seam's tree that says what to do next.

The code of the error decides (`error_codes.py`); only one that is not in the tables takes the class
of its HTTP status. EC2 says "no capacity" with status 500 and "not sold here" with 400, so that the
status alone would be wrong for both.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from infra.aws.error_codes import AwsErrorKind, kind_by_code, kind_by_message
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

SPOT_QUOTA = "L-3819A6DF"
SPOT_QUOTA_NAME = "All G and VT Spot Instance Requests"
ON_DEMAND_QUOTA = "L-DB2E81BA"
CLOCK_CODES = frozenset(
    {"AuthFailure", "RequestExpired", "SignatureDoesNotMatch", "InvalidSignatureException"}
)
"""How AWS refuses a signature whose time is wrong; EC2 says the first of these."""
BUSY_S = 10.0
"""How soon a machine that is stopping is asked again."""


def quota_page(region: str, code: str = SPOT_QUOTA) -> str:
    """The page on which more of a quota can be asked for; quotas are per region."""
    return f"https://{region}.console.aws.amazon.com/servicequotas/home/services/ec2/quotas/{code}"


class NotYetVisibleError(Transient):
    """AWS does not know something by its id: gone, or made seconds ago and not visible yet."""


class DryRunPassedError(ProviderError):
    """A request with `DryRun` would have been carried out."""


class TokenSpentError(Rejected):
    """The machine that this idempotency token made is terminated: the next attempt has another."""


class TokenReusedError(BadRequest):
    """This idempotency token was sent before, with other parameters."""


class AlreadyThereError(Rejected):
    """What was to be made exists already, such as a security group of that name."""


class RegionNotEnabledError(NotAllowed):
    """The account has to enable the region before anything can be rented there."""


class RoleNotTrustedError(Transient):
    """Scheduler may not take the role: it was made seconds ago, or trusts somebody else."""


class NoDefaultVpcError(NotAllowed):
    """The region has no default VPC, and no subnet was named."""


@dataclass(frozen=True, kw_only=True)
class AwsErrorInfo:
    """An error of AWS as plain values, without the SDK's classes."""

    code: str = ""
    message: str = ""
    status: int = 0
    """The HTTP status; 0 if nothing was answered."""
    region: str = ""

    @property
    def text(self) -> str:
        """The code and the message as one line for people, without encoded parts."""
        message, _, _ = self.message.partition("Encoded authorization failure message")
        text = " ".join(message.split()).rstrip(". ")
        return f"{self.code}: {text}" if self.code and text else self.code or text


def translate(info: AwsErrorInfo, *, doing: str) -> ProviderError:
    """Translate what AWS answered while `doing` something into the seam's error; never raises."""
    kind = kind_by_code(info.code, info.message) or kind_by_message(info.message)
    return _build(kind or _by_status(info.status), info, doing)


def _by_status(status: int) -> AwsErrorKind:
    if status in {0, 408, 425, 429} or status >= 500:
        return AwsErrorKind.TRANSIENT
    if status == 401:
        return AwsErrorKind.CREDENTIALS
    if status == 403:
        return AwsErrorKind.PERMISSIONS
    return AwsErrorKind.GONE if status == 404 else AwsErrorKind.UNFORESEEN


def _price(info: AwsErrorInfo, doing: str) -> ProviderError:
    amounts = re.findall(r"\d+\.\d+|\d+", info.message.replace(",", ""))
    now = float(amounts[1]) if len(amounts) > 1 else None
    comparison = (
        f"the cap of {amounts[0]} USD/h is below the price of now, {amounts[1]} USD/h"
        if now is not None
        else info.text
    )
    return PriceAboveCap(
        f"cannot {doing}: {comparison}",
        current_usd_per_h=now,
        hint=f"set `vm.max_price` above {now or 'it'}, name more regions, or wait",
    )


def _quota(info: AwsErrorInfo, doing: str) -> ProviderError:
    spot = info.code == "MaxSpotInstanceCountExceeded"
    name, code = (SPOT_QUOTA_NAME, SPOT_QUOTA) if spot else ("On-Demand G and VT", ON_DEMAND_QUOTA)
    found = re.search(r"current vCPU limit of (\d+)", info.message)
    limit = int(found[1]) if found else None
    page = f"; ask for more at {quota_page(info.region, code)}" if info.region else ""
    where = f" in {info.region}" if info.region else ""
    return OverQuota(
        f"cannot {doing}: the account's quota `{name}`{where} is too small ({info.text}){page}",
        family=name,
        limit=limit,
        hint="quotas count vCPUs per region; a new account has 0, and more takes hours to a day",
    )


def _limit(info: AwsErrorInfo, doing: str) -> ProviderError:
    return OverQuota(
        f"cannot {doing}: a limit of the account is reached ({info.text})",
        family=info.code,
        hint="remove what is not needed in that region, or ask for more under Service Quotas",
    )


def _permissions(info: AwsErrorInfo, doing: str) -> ProviderError:
    found = re.search(r"perform:? ([\w-]+:\w+)", info.message)
    missing = f" `{found[1]}`" if found else ""
    return NotAllowed(
        f"cannot {doing}: the credentials lack the right{missing} ({info.text})",
        hint="docs/aws.md has the policy that is enough; `qft doctor --provider aws` checks it",
    )


def _credentials(info: AwsErrorInfo, doing: str) -> ProviderError:
    clock = (
        "; or this computer's clock is more than 15 minutes off" if info.code in CLOCK_CODES else ""
    )
    return SignedOut(
        f"cannot {doing}: AWS does not accept the credentials ({info.text or info.status}){clock}",
        hint="`aws sso login`, `aws login` or `aws configure`, then the same command",
    )


def _transient(info: AwsErrorInfo, doing: str) -> ProviderError:
    silence = f"AWS answered {info.status} and no word" if info.status else "AWS did not answer"
    return Transient(
        f"cannot {doing} just now: {info.text or silence}",
        hint="the same call is safe to repeat",
    )


def _busy(info: AwsErrorInfo, doing: str) -> ProviderError:
    return Transient(
        f"cannot {doing} just now: {info.text}",
        hint="the same call is safe to repeat",
        retry_after_s=BUSY_S,
    )


def _opt_in(info: AwsErrorInfo, doing: str) -> ProviderError:
    return region_not_enabled(info.region or "REGION", doing=doing, words=info.text)


def region_not_enabled(region: str, *, doing: str, words: str) -> RegionNotEnabledError:
    """The error for a region that the account has to enable; `words` are AWS's own."""
    return RegionNotEnabledError(
        f"cannot {doing}: the account has not enabled the region {region} ({words})",
        hint=f"`aws account enable-region --region-name {region}`, or take another region",
    )


def _no_vpc(info: AwsErrorInfo, doing: str) -> ProviderError:
    return NoDefaultVpcError(
        f"cannot {doing}: the region {info.region} has no default VPC ({info.text})",
        hint=f"`aws ec2 create-default-vpc --region {info.region or 'REGION'}` (free), or name a"
        " subnet with a route to the internet under `vm.aws.subnet`",
    )


_PLAIN: dict[AwsErrorKind, tuple[type[ProviderError], str, str]] = {
    AwsErrorKind.CAPACITY: (
        NoCapacity,
        "no spot capacity there now",
        "more regions under `vm.regions` help most; the same zone is tried again in minutes",
    ),
    AwsErrorKind.NOT_SOLD: (
        NoCapacity,
        "that zone does not rent out this size",
        "the next zone is tried; more regions under `vm.regions` help",
    ),
    AwsErrorKind.SERVICE_ROLE: (
        NotAllowed,
        "the account has never used spot machines, and the role for them cannot be made",
        "`aws iam create-service-linked-role --aws-service-name spot.amazonaws.com`, once",
    ),
    AwsErrorKind.ACCOUNT: (
        NotAllowed,
        "AWS has not opened the account for this, or has closed it",
        "a new account is verified within minutes to a day; else AWS support has to say why",
    ),
    AwsErrorKind.POLICY: (
        NotAllowed,
        "a policy of your organisation forbids it",
        "its administrator can allow what carries the tag `qft-run`",
    ),
    AwsErrorKind.OUR_BUG: (
        BadRequest,
        "AWS refused the request",
        "this is a bug of qft: please report the line above",
    ),
    AwsErrorKind.IMAGE: (
        NotAllowed,
        "the image is not to be had there",
        "`vm.aws.image` names another one of that region; without it qft takes AWS's own",
    ),
    AwsErrorKind.TOKEN_SPENT: (TokenSpentError, "that attempt is over", ""),
    AwsErrorKind.TOKEN_REUSED: (TokenReusedError, "it was asked for before, otherwise", ""),
    AwsErrorKind.NOT_FOUND: (NotYetVisibleError, "AWS does not know it (yet)", ""),
    AwsErrorKind.GONE: (Gone, "it does not exist", ""),
    AwsErrorKind.EXISTS: (AlreadyThereError, "it exists already", ""),
    AwsErrorKind.NOT_TRUSTED: (
        RoleNotTrustedError,
        "the role does not exist, does not trust EventBridge Scheduler, or was made just now",
        "`qft doctor --provider aws` prints the commands that make it",
    ),
    AwsErrorKind.DRY_RUN: (DryRunPassedError, "it would have been done", ""),
    AwsErrorKind.UNFORESEEN: (
        Rejected,
        "AWS refused the request",
        "if its words do not say what to change, please report the line above",
    ),
}
"""The errors that say no more than what AWS said: their class, what it means, and the hint."""
_SPECIAL: dict[AwsErrorKind, Callable[[AwsErrorInfo, str], ProviderError]] = {
    AwsErrorKind.PRICE: _price,
    AwsErrorKind.QUOTA: _quota,
    AwsErrorKind.LIMIT: _limit,
    AwsErrorKind.PERMISSIONS: _permissions,
    AwsErrorKind.CREDENTIALS: _credentials,
    AwsErrorKind.TRANSIENT: _transient,
    AwsErrorKind.BUSY: _busy,
    AwsErrorKind.OPT_IN: _opt_in,
    AwsErrorKind.NO_VPC: _no_vpc,
}


def _build(kind: AwsErrorKind, info: AwsErrorInfo, doing: str) -> ProviderError:
    """The error of the seam for one kind of error."""
    if kind in _SPECIAL:
        return _SPECIAL[kind](info, doing)
    error, meaning, hint = _PLAIN[kind]
    return error(f"cannot {doing}: {meaning} ({info.text or info.status})", hint=hint)
