"""One finding of `qft doctor` about an account: whether it is in order, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infra.errors import ProviderError, SignedOut


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    """The command or link that mends it; empty if nothing needs mending."""
    required: bool = True
    """Whether nothing can be done while this is not ok."""


def checked(name: str, check: Callable[[], Check], *, required: bool = True) -> Check:
    """Make a check; one that could not be made is a finding, not a crash."""
    try:
        return check()
    except ProviderError as error:
        name = "credentials" if isinstance(error, SignedOut) else name
        return Check(name=name, ok=False, detail=str(error), fix=error.hint, required=required)
