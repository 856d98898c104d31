"""Computes what a rented machine can cost when only its safeguards are left to end the bill.

Each vendor sets safeguards of its own; what is here is the same for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from infra.errors import NotAllowed, ProviderError
from infra.provider import Safeguard
from infra.timestamps import format_utc


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """The most that a machine can cost if nobody ever looks at it again."""

    compute_usd: float
    """Until the surest safeguard that names a time takes effect; infinite if none is set."""
    idle_usd_per_day: float
    """Disk and address, from then on, until `qft down --delete`."""
    why: str
    usd_per_day: float
    """Of compute and all else, while it runs."""

    @property
    def detail(self) -> str:
        """The sum in words."""
        if math.isinf(self.compute_usd):
            return f"if this computer dies, {self.why}: ${self.usd_per_day:.2f} a day, no end"
        return (
            f"at most ${self.compute_usd:.2f} of compute ({self.why}), then "
            f"${self.idle_usd_per_day:.2f} a day for disk and address until `qft down --delete`"
        )


def try_set(
    name: str, set_safeguard: Callable[[], Safeguard], *, permission_hint: str = ""
) -> Safeguard:
    """Set a safeguard; one that cannot be set is a finding with its reason, not an error."""
    try:
        return set_safeguard()
    except ProviderError as error:
        lacks_right = permission_hint and isinstance(error, NotAllowed)
        hint = permission_hint if lacks_right else error.hint
        return Safeguard(name=name, is_set=False, detail=str(error), hint=hint)


@dataclass(frozen=True, kw_only=True)
class HourlyRates:
    """What a machine costs at most, in USD per hour."""

    price_max: float
    """Of its compute: the highest price that it can come to; 0 if unknown."""
    idle: float
    """Of its disk, and of what else bills while it is stopped."""
    address: float = 0.0
    """Of an address that bills only while the machine runs."""


def with_worst_case(
    found: list[Safeguard], *, now_s: float, rates: HourlyRates, main: str
) -> list[Safeguard]:
    """Safeguards in order of trust, the first that names a time with the bill it leaves possible.

    With none that names a time, the one called `main` says what its lack can cost.
    """
    if rates.price_max <= 0:
        return found
    worst = worst_case(found, now_s=now_s, rates=rates)
    timed = [one.name for one in found if one.is_set and one.stops_at_s is not None]
    first = timed[0] if timed else main
    return [
        replace(one, detail=f"{one.detail}: {worst.detail}") if one.name == first else one
        for one in found
    ]


def worst_case(safeguards: list[Safeguard], *, now_s: float, rates: HourlyRates) -> WorstCase:
    """The bill of a machine at its highest price until the first safeguard that names a time.

    They come in the order of trust: what the cloud does itself stands before the machine's own.
    """
    times = [p.stops_at_s for p in safeguards if p.is_set and p.stops_at_s is not None]
    per_day, running_usd_per_h = rates.idle * 24, rates.price_max + rates.address
    if not times:
        return WorstCase(
            compute_usd=math.inf,
            idle_usd_per_day=per_day,
            why="nothing stops it by itself",
            usd_per_day=running_usd_per_h * 24 + per_day,
        )
    address = f" and {rates.address} for the address" if rates.address else ""
    hours = max(times[0] - now_s, 0.0) / 3600
    return WorstCase(
        compute_usd=hours * running_usd_per_h,
        idle_usd_per_day=per_day,
        usd_per_day=running_usd_per_h * 24 + per_day,
        why=f"{hours:.1f} h at {rates.price_max} USD/h{address} until {format_utc(times[0])}",
    )
