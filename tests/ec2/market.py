"""The simulated spot market of one account: prices, capacity and quota, which tests may turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ec2.regions import REGIONS, SIZES, SPOT_SHARE, ZONE_STEP, region_of_zone
from ec2.replies import AwsError

HISTORY_S = 90 * 86400.0


@dataclass
class Market:
    """Prices and capacity by size and zone, quota by region."""

    spot_vcpus: int = 64
    """`L-3819A6DF` of each region unless `quotas` says otherwise; new accounts have 0."""
    quotas: dict[tuple[str, str], float] = field(default_factory=dict)
    """Quota by (region, code) where it differs."""
    on_demand_vcpus: int = 0
    """`L-DB2E81BA` of each region."""
    full: set[tuple[str, str]] = field(default_factory=set)
    """(size, zone) without capacity; `*` as the size stands for every one."""
    limits: dict[str, int] = field(default_factory=dict)
    """How many machines a zone has room for, by its name; any number in the others."""
    in_use: Callable[[str], int] = field(default=lambda _zone: 0, repr=False)
    """A zone in, how many machines start or run there out."""
    changes: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=dict)
    """What the price of (size, zone) became and since when, in order."""
    may_score: bool = False
    """Whether the account may read placement scores; not so by default on AWS."""
    scores: dict[tuple[str, str], int] = field(default_factory=dict)
    """Placement score from 1 to 10 by (region, zone); others have 5."""
    bands: dict[tuple[str, str], int] = field(default_factory=dict)
    """Band 0 to 4 of interruptions by (size, region), as the advisor's page has it; others 2."""

    def price(self, size: str, zone: str, at_s: float | None = None) -> float:
        """The spot price in USD per hour, now or at a time."""
        reference = self._reference(size, zone)
        for since_s, usd in self.changes.get((size, zone), []):
            if at_s is None or since_s <= at_s:
                reference = usd
        return reference

    def set_price(self, size: str, zone: str, usd_per_h: float, *, at_s: float) -> None:
        """Move a price."""
        self.changes.setdefault((size, zone), []).append((at_s, usd_per_h))

    def has_room(self, size: str, zone: str) -> bool:
        """Whether a zone has capacity for a size."""
        if {(size, zone), ("*", zone)} & self.full:
            return False
        return zone not in self.limits or self.in_use(zone) < self.limits[zone]

    def fill(self, zone: str, *, size: str = "*") -> None:
        """Let a zone have no capacity."""
        self.full.add((size, zone))

    def limit(self, zone: str, machines: int) -> None:
        """Let a zone have room for so many machines at a time."""
        self.limits[zone] = machines

    def empty(self, zone: str) -> None:
        """Let a zone have capacity for everything that it sells."""
        self.limits.pop(zone, None)
        self.full = {one for one in self.full if one[1] != zone}

    def quota(self, region: str, code: str) -> float | None:
        """A quota in vCPUs; None if there is none of that code."""
        usual = {"L-3819A6DF": self.spot_vcpus, "L-DB2E81BA": self.on_demand_vcpus}
        if code not in usual:
            return None
        return float(self.quotas.get((region, code), usual[code]))

    # ---- refusals, in the words of EC2 ----

    def check_sold(self, size: str, zone: str) -> None:
        """Refuse a size that the zone does not sell."""
        region = region_of_zone(zone)
        if region.sells(size, zone):
            return
        others = ", ".join(one for one in region.zones if region.sells(size, one))
        choice = f" by not specifying an Availability Zone or choosing {others}" if others else ""
        raise AwsError(
            "Unsupported",
            f"Your requested instance type ({size}) is not supported in your requested "
            f"Availability Zone ({zone}). Please retry your request{choice}.",
        )

    def check_price(self, size: str, zone: str, cap: float | None) -> None:
        """Refuse a cap below the price of now; None is on demand's price, the highest there is."""
        now = self.price(size, zone)
        highest = SIZES[size].on_demand_usd_per_h if cap is None else cap
        if highest < now:
            raise AwsError(
                "SpotMaxPriceTooLow",
                f"Your Spot request price of {highest:g} is lower than the minimum required Spot "
                f"request fulfillment price of {now:g}.",
            )

    def check_room(self, size: str, zone: str) -> None:
        """Refuse what the zone has no capacity for: a server's error, says EC2."""
        if not self.has_room(size, zone):
            raise AwsError(
                "InsufficientInstanceCapacity",
                f"We currently do not have sufficient {size} capacity in the Availability Zone "
                f"you requested ({zone}). Our system will be working on provisioning additional "
                "capacity. You can currently get this size by not specifying an Availability Zone "
                "in your request or choosing another one.",
                status=500,
            )

    def check_quota(self, size: str, region: str, used: int) -> None:
        """Refuse what would exceed the quota of spot vCPUs; EC2 names no number."""
        limit = self.quota(region, "L-3819A6DF") or 0.0
        if size.startswith("g") and used + SIZES[size].vcpus > limit:
            raise AwsError("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")

    def _reference(self, size: str, zone: str) -> float:
        index = list(region_of_zone(zone).zones).index(zone)
        usd = SIZES[size].on_demand_usd_per_h * SPOT_SHARE * (1 + ZONE_STEP * index)
        return round(usd, 6)


def zones_of(region: str, matches: Callable[[str], bool] = lambda _zone: True) -> list[str]:
    """The zones of a region, or some of them."""
    return [zone for zone in REGIONS[region].zones if matches(zone)]
