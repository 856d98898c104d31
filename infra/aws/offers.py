"""Lists what could be rented now, zone by zone: price, interruption rate, quota, obstacles."""

from __future__ import annotations

from dataclasses import dataclass

from infra.aws.context import AwsContext
from infra.provider import Offer, Want
from infra.renting.refusal_cache import RefusalCache


@dataclass(frozen=True, kw_only=True)
class Offers:
    """Offers of sizes in zones, with what could be learnt of each in a few seconds."""

    context: AwsContext
    refusal_cache: RefusalCache

    def list(self, want: Want) -> list[Offer]:
        """List machines with one card of `want.gpu`; creates nothing, waits seconds at most."""
        raise NotImplementedError

    def price_now(self, size: str, region: str, zone: str) -> float | None:
        """The spot price now, USD per hour; None if nobody answers."""
        raise NotImplementedError
