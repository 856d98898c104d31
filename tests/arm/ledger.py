"""The bill of the simulated cloud: what runs up cost, since when, and what has been run up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

DISK_USD_PER_GB_H = 9.6 / 128 / 730
ADDRESS_USD_PER_H = 0.005


@dataclass(kw_only=True)
class Meter:
    """One thing that bills."""

    kind: str
    id: str
    usd_per_h: float
    since_s: float


@dataclass(frozen=True, kw_only=True)
class Charge:
    """A closed stretch of billing."""

    kind: str
    id: str
    hours: float
    usd: float


@dataclass
class Ledger:
    """Meters that run and charges that are over."""

    now: Callable[[], float]
    meters: dict[tuple[str, str], Meter] = field(default_factory=dict)
    charges: list[Charge] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def start(self, kind: str, id_: str, usd_per_h: float) -> None:
        """Let a meter run, at a new price if it ran already."""
        with self._lock:
            self.stop(kind, id_)
            self.meters[kind, id_.lower()] = Meter(
                kind=kind, id=id_, usd_per_h=usd_per_h, since_s=self.now()
            )

    def stop(self, kind: str, id_: str) -> None:
        """Stop a meter and write its charge; nothing if it does not run."""
        with self._lock:
            meter = self.meters.pop((kind, id_.lower()), None)
            if meter is not None:
                self.charges.append(self._charge(meter))

    def forget(self, kind: str, id_: str) -> None:
        """Stop a meter without a charge: what it metered was never granted."""
        with self._lock:
            self.meters.pop((kind, id_.lower()), None)

    def billing(self, kind: str = "") -> list[str]:
        """What bills now: `kind id` lines, of one kind if named."""
        with self._lock:
            return sorted(
                f"{meter.kind} {meter.id}"
                for meter in self.meters.values()
                if not kind or meter.kind == kind
            )

    def usd(self, kind: str = "") -> float:
        """All that has been run up until now, of one kind if named."""
        with self._lock:
            running = [self._charge(meter) for meter in self.meters.values()]
            return sum(one.usd for one in (*self.charges, *running) if not kind or one.kind == kind)

    def _charge(self, meter: Meter) -> Charge:
        hours = (self.now() - meter.since_s) / 3600
        return Charge(kind=meter.kind, id=meter.id, hours=hours, usd=hours * meter.usd_per_h)
