"""The errors that providers raise.

They say what to do next, not what went wrong inside a vendor's library:

    ProviderError
    ├── NoCapacity      nothing free there now: try the next offer, come back later
    │   └── NeverStarts this machine never starts again: a new one, in the same place as well
    ├── OverQuota       the account may not: a human must ask for more
    ├── PriceAboveCap   the market is above the cap: wait, or raise the cap
    ├── NotAllowed      credentials or rights are missing: a human must fix them
    │   └── SignedOut   nobody is signed in any more: what is rented goes on all the same
    ├── BadRequest      the provider did not understand us: our bug, never retried
    │   └── Rejected    a refusal that nobody foresaw: try the next offer, then a human reads it
    ├── Transient       a hiccup: the same call may work in a moment
    └── Gone            the machine does not exist any more
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class ErrorKind(StrEnum):
    """The classes of the error tree as values; their names are what journals hold."""

    PROVIDER_ERROR = "ProviderError"
    NO_CAPACITY = "NoCapacity"
    OVER_QUOTA = "OverQuota"
    PRICE_ABOVE_CAP = "PriceAboveCap"
    NOT_ALLOWED = "NotAllowed"
    SIGNED_OUT = "SignedOut"
    BAD_REQUEST = "BadRequest"
    REJECTED = "Rejected"
    TRANSIENT = "Transient"
    GONE = "Gone"

    @classmethod
    def _missing_(cls, value: object) -> ErrorKind | None:
        """Take a class that another version wrote down for the base of the tree."""
        return cls.PROVIDER_ERROR if isinstance(value, str) else None


class ProviderError(Exception):
    """Base of the tree: what happened, and a hint with the command or link that helps.

    `retry_after_s` is the provider's own advice when it gave one. `unfinished` says that what was
    begun could not be cleared away: something may remain, and bill.
    """

    kind: ClassVar[ErrorKind] = ErrorKind.PROVIDER_ERROR
    unfinished = False

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.retry_after_s = retry_after_s


class NoCapacity(ProviderError):  # noqa: N818  (the seam's vocabulary, not a suffix)
    """Nothing of that size is free there now. Next: the next offer; forget this after a while."""

    kind = ErrorKind.NO_CAPACITY


class NeverStarts(NoCapacity):
    """This machine cannot be started again, on any day. Next: remove it and rent another one."""


class OverQuota(ProviderError):  # noqa: N818
    """The account's quota forbids it. Next: other offers; a human raises `family` via the link."""

    kind = ErrorKind.OVER_QUOTA

    def __init__(
        self, message: str, *, family: str = "", limit: int | None = None, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.family = family
        self.limit = limit


class PriceAboveCap(ProviderError):  # noqa: N818
    """The market price exceeds the cap. Next: other offers, wait, or a human raises the cap."""

    kind = ErrorKind.PRICE_ABOVE_CAP

    def __init__(
        self, message: str, *, current_usd_per_h: float | None = None, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.current_usd_per_h = current_usd_per_h


class NotAllowed(ProviderError):  # noqa: N818
    """Credentials or rights are missing. Next: a human; retrying cannot help."""

    kind = ErrorKind.NOT_ALLOWED


class SignedOut(NotAllowed):
    """Nobody is signed in. Next: a human signs in; what was rented goes on working meanwhile."""

    kind = ErrorKind.SIGNED_OUT


class BadRequest(ProviderError):  # noqa: N818
    """The provider did not understand us. Next: report a bug; never retried."""

    kind = ErrorKind.BAD_REQUEST


class Rejected(BadRequest):
    """A refusal that nobody foresaw. Next: another offer; with none left, a human reads it."""

    kind = ErrorKind.REJECTED


class Transient(ProviderError):  # noqa: N818
    """A hiccup of the network or the provider. Next: the same call, after `retry_after_s`."""

    kind = ErrorKind.TRANSIENT


class Gone(ProviderError):  # noqa: N818
    """There is no such machine. Next: a new one, from the newest checkpoint."""

    kind = ErrorKind.GONE


PASSING = (NoCapacity, OverQuota, PriceAboveCap, Rejected)
"""Refusals that another offer, or time, can get around."""
