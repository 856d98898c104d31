"""The bill of the simulated AWS: by the second, with the least and the first hour that EC2 has."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from arm.ledger import Charge, Ledger, Meter

DISK_USD_PER_GB_H = 0.08 / 730
ADDRESS_USD_PER_H = 0.005
LEAST_S = 60.0
"""What one start of compute costs at least."""
FREE_S = 3600.0
"""A machine that EC2 interrupts sooner after its launch has cost nothing."""


@dataclass
class Ec2Ledger(Ledger):
    """Compute by the second from `running` to `stopping`; disks and addresses by time."""

    _launched: dict[str, float] = field(default_factory=dict)
    """Since when a machine runs whose price may have changed meanwhile."""

    def start_compute(self, id_: str, usd_per_h: float) -> None:
        """A machine begins to run, or its price changes while it does."""
        with self._lock:
            self._launched.setdefault(id_, self.now())
            self.start("compute", id_, usd_per_h)

    def stop_compute(self, id_: str, *, interrupted: bool = False) -> None:
        """A machine runs no longer; one that EC2 interrupts in its first hour was free."""
        with self._lock:
            since_s = self._launched.pop(id_, None)
            self.stop("compute", id_)
            if since_s is None:
                return
            seconds = self.now() - since_s
            if interrupted and seconds < FREE_S:
                self._waive(id_, since_s)
            elif seconds < LEAST_S:
                self._raise_to_least(id_, LEAST_S - seconds)

    def _waive(self, id_: str, since_s: float) -> None:
        self.charges = [
            one
            for one in self.charges
            if not (isinstance(one, TimedCharge) and one.id == id_ and one.since_s >= since_s)
        ]

    def _raise_to_least(self, id_: str, missing_s: float) -> None:
        last = next(one for one in reversed(self.charges) if one.id == id_)
        usd_per_h = last.usd_per_h if isinstance(last, TimedCharge) else 0.0
        hours = missing_s / 3600
        self.charges.append(Charge(kind="compute", id=id_, hours=hours, usd=hours * usd_per_h))

    def _charge(self, meter: Meter) -> Charge:
        if meter.kind != "compute":
            return super()._charge(meter)
        # A hair below a whole second is rounding of the clock, no second begun.
        hours = math.ceil(self.now() - meter.since_s - 1e-3) / 3600
        return TimedCharge(
            kind=meter.kind,
            id=meter.id,
            hours=hours,
            usd=hours * meter.usd_per_h,
            since_s=meter.since_s,
            usd_per_h=meter.usd_per_h,
        )


@dataclass(frozen=True, kw_only=True)
class TimedCharge(Charge):
    """A stretch of compute, with when it began."""

    since_s: float
    usd_per_h: float
