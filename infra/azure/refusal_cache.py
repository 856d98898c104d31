"""What Azure refused lately, so that no run tries again and again where there is nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.azure.availability import SPOT_QUOTA
from infra.catalog.gpus import folded, quota_covers
from infra.durable import read_json, write_json
from infra.provider import NoCapacity, Offer, OverQuota, PriceAboveCap, ProviderError
from infra.timestamps import format_utc

TTL_S: dict[type[ProviderError], float] = {
    NoCapacity: 3600.0,  # karpenter backs off as long: what Azure lists as free often is not
    PriceAboveCap: 300.0,
    OverQuota: 3600.0,  # unless the usage list can be read: then it decides
}


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One refusal and until when it is believed."""

    size: str
    region: str
    zone: str = ""
    error: str
    why: str
    at_s: float
    until_s: float

    @property
    def told(self) -> str:
        """The refusal in words, with its time."""
        refused, again = format_utc(self.at_s), format_utc(self.until_s)
        return f"refused at {refused}, asked again at {again}: {self.why}"

    @property
    def clears(self) -> bool:
        """Whether it passes by itself; quota needs a human."""
        return self.error != OverQuota.__name__

    @property
    def of_spot_pool(self) -> bool:
        """Whether it speaks of the quota on which all spot machines of the region draw."""
        return folded(SPOT_QUOTA) in folded(self.why)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Refusals of this account, shared by all runs of this computer; losing it costs a retry."""

    path: Path
    clock: Callable[[], float]

    def note(self, offer: Offer, error: ProviderError) -> None:
        """Remember a refusal that another offer may get around; ignores all other errors."""
        ttl_s = TTL_S.get(type(error))
        if ttl_s is None:
            return
        now = self.clock()
        fresh = Refusal(
            size=offer.size,
            region=offer.region,
            zone=offer.zone,
            error=type(error).__name__,
            why=str(error),
            at_s=now,
            until_s=now + ttl_s,
        )
        place = (fresh.size, fresh.region, fresh.zone)
        others = [one for one in self.refusals() if (one.size, one.region, one.zone) != place]
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(self.path, [asdict(one) for one in (*others, fresh)])

    def refusals(self) -> list[Refusal]:
        """The refusals that are still believed; none from a clock that was ahead of this one."""
        try:
            rows = read_json(self.path) or []
            known = [Refusal(**row) for row in rows]
        except (ValueError, TypeError):  # damaged or of another version: forgotten
            return []
        return [one for one in known if one.at_s <= self.clock() < one.until_s]

    def against(
        self, size: str, region: str, *, zone: str = "", quota_known: bool
    ) -> Refusal | None:
        """The refusal for which that place is not worth asking now; None if it is.

        The spot quota is one pool for a whole region, so its refusal counts for every size there;
        with `quota_known` the usage list decides. Of other pools that list does not speak here.
        """
        for one in self.refusals():
            if one.region != region:
                continue
            if one.clears:
                if (one.size.lower(), one.zone) == (size.lower(), zone):
                    return one
            elif not (quota_known and one.of_spot_pool) and quota_covers(
                one.why, refused=one.size, size=size
            ):
                return one
        return None
