"""Remembers what a provider refused lately, so that no run tries again and again in vain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.durable import read_json, write_json
from infra.errors import OverQuota, ProviderError
from infra.offer import Offer
from infra.timestamps import format_utc


@dataclass(frozen=True, kw_only=True)
class CachedRefusal:
    """One refusal, and until when it counts."""

    size: str
    region: str
    zone: str = ""
    error: str
    why: str
    at_s: float
    until_s: float

    @property
    def detail(self) -> str:
        """The refusal in words, with its time."""
        refused, again = format_utc(self.at_s), format_utc(self.until_s)
        return f"refused at {refused}, asked again at {again}: {self.why}"

    @property
    def clears(self) -> bool:
        """Whether it passes by itself; quota needs a human."""
        return self.error != OverQuota.__name__


@dataclass(frozen=True, kw_only=True)
class RefusalCache:
    """Refusals of this account, shared by all runs of this computer; losing it costs a retry."""

    path: Path
    clock: Callable[[], float]
    ttl_s: Mapping[type[ProviderError], float]
    """How long each kind of refusal is believed; kinds that are not listed are not remembered."""
    quota_covers: Callable[[CachedRefusal, str, bool], bool]
    """Whether a refusal for quota still counts for a size of its region; the last argument says
    whether the region's usage list could be read."""

    def note(self, offer: Offer, error: ProviderError) -> None:
        """Remember a refusal that another offer may get around; ignores all other errors."""
        ttl_s = self.ttl_s.get(type(error))
        if ttl_s is None:
            return
        now = self.clock()
        fresh = CachedRefusal(
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

    def refusals(self) -> list[CachedRefusal]:
        """The refusals that are still believed; none from a clock that was ahead of this one."""
        try:
            rows = read_json(self.path) or []
            kept = [CachedRefusal(**row) for row in rows]
        except (ValueError, TypeError):  # damaged or of another version: forgotten
            return []
        return [one for one in kept if one.at_s <= self.clock() < one.until_s]

    def against(
        self, size: str, region: str, *, zone: str = "", quota_is_listed: bool
    ) -> CachedRefusal | None:
        """The refusal for which that place is not worth asking now; None if it is.

        A refusal for capacity or price counts for its size and zone, one for quota for every size
        of the region for which `quota_covers` says so.
        """
        for one in self.refusals():
            if one.region != region:
                continue
            if one.clears:
                if (one.size.lower(), one.zone) == (size.lower(), zone):
                    return one
            elif self.quota_covers(one, size, quota_is_listed):
                return one
        return None
