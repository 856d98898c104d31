"""The simulated spot market: prices, capacity and quota, each of which a test may turn."""

from __future__ import annotations

from dataclasses import dataclass, field

from arm.replies import ArmError

QUOTA_URL = "https://aka.ms/ProdportalCRP/#blade/Microsoft_Azure_Capacity/UsageAndQuota.ReactView"


@dataclass(frozen=True, kw_only=True)
class Size:
    """One size that the cloud sells."""

    name: str
    family: str
    """As the list of sizes spells it; the usage list spells it differently on purpose."""
    vcpus: int
    gpus: int
    memory_gb: int
    spot_usd_per_h: float
    on_demand_usd_per_h: float
    spot: bool = True


SIZES = {
    size.name.lower(): size
    for size in (
        Size(
            name="Standard_NC4as_T4_v3",
            family="standardNCASv3_T4Family",
            vcpus=4,
            gpus=1,
            memory_gb=28,
            spot_usd_per_h=0.149174,
            on_demand_usd_per_h=0.526,
        ),
        Size(
            name="Standard_NC8as_T4_v3",
            family="standardNCASv3_T4Family",
            vcpus=8,
            gpus=1,
            memory_gb=56,
            spot_usd_per_h=0.213267,
            on_demand_usd_per_h=0.752,
        ),
        Size(
            name="Standard_NC16as_T4_v3",
            family="standardNCASv3_T4Family",
            vcpus=16,
            gpus=1,
            memory_gb=110,
            spot_usd_per_h=0.341,
            on_demand_usd_per_h=1.204,
        ),
        Size(
            name="Standard_NC64as_T4_v3",
            family="standardNCASv3_T4Family",
            vcpus=64,
            gpus=4,
            memory_gb=440,
            spot_usd_per_h=1.3056,
            on_demand_usd_per_h=4.352,
        ),
        Size(
            name="Standard_NV36ads_A10_v5",
            family="StandardNVADSA10v5Family",
            vcpus=36,
            gpus=1,
            memory_gb=440,
            spot_usd_per_h=0.59136,
            on_demand_usd_per_h=3.2,
        ),
        Size(
            name="Standard_B1s",
            family="standardBSFamily",
            vcpus=1,
            gpus=0,
            memory_gb=1,
            spot_usd_per_h=0.01,
            on_demand_usd_per_h=0.0104,
            spot=False,
        ),
    )
}
REGIONS = (
    *("westus2", "eastus", "southcentralus", "eastus2", "westus3", "northeurope", "westeurope"),
    *("swedencentral", "uksouth", "francecentral", "germanywestcentral", "japaneast"),
    *("koreacentral", "centralindia", "australiaeast"),
)


@dataclass
class Market:
    """Prices, capacity, restrictions and quota of one subscription."""

    spot_cores: int = 100
    """`lowPriorityCores` of each region unless `cores` says otherwise; new accounts have 3."""
    cores: dict[str, int] = field(default_factory=dict)
    """`lowPriorityCores` by region."""
    others: dict[str, int] = field(default_factory=dict)
    """Spot cores by region that other deployments of the subscription use."""
    prices: dict[tuple[str, str], float] = field(default_factory=dict)
    """Spot price by (size in lower case, region) where it differs from the reference."""
    sold_out: dict[tuple[str, str], str] = field(default_factory=dict)
    """What fails by (size, region): `SkuNotAvailable` at once, any other code after acceptance."""
    fail_s: float = 0.0
    """After how many seconds an accepted allocation fails; 0 takes what is usual."""
    restricted: set[tuple[str, str]] = field(default_factory=set)
    """(size, region) that this subscription may not use at all."""
    spot_allowed: bool = True
    """False plays a free trial."""
    bands: dict[tuple[str, str], str] = field(default_factory=dict)
    """Eviction band by (size, region); the rows of others are missing, as they can be."""

    scores: dict[tuple[str, str], str] = field(default_factory=dict)
    """Placement score by (size, region); others have none."""
    may_score: bool = True
    """Whether the account has the role that reads placement scores."""
    admits: dict[str, int] = field(default_factory=dict)
    """How many machines a region has room for at a time; others have room for any number."""
    free_zones: set[tuple[str, str]] = field(default_factory=set)
    """(region, zone) with room for what is sold out in the region as a whole."""

    def full(self, size: str, region: str, zone: str = "") -> str | None:
        """The code with which that place refuses; None if it has room."""
        if (region, zone) in self.free_zones:
            return None
        return self.sold_out.get((size.lower(), region))

    def price(self, size: str, region: str) -> float:
        """The spot price now, USD per hour."""
        return self.prices.get((size.lower(), region), SIZES[size.lower()].spot_usd_per_h)

    def cores_max(self, region: str) -> int:
        """The spot quota of a region."""
        return self.cores.get(region, self.spot_cores)

    def check(self, size: str, region: str, *, zone: str = "", cap: float, doing: str) -> None:
        """Refuse a cap below the price of now, or what is sold out at once."""
        self.check_price(size, region, cap=cap, doing=doing)
        code = self.full(size, region, zone)
        if code == "SkuNotAvailable" or (size.lower(), region) in self.restricted:
            raise ArmError(
                409,
                "SkuNotAvailable",
                "The requested VM size for resource 'Following SKUs have failed for Capacity "
                f"Restrictions: {size}' is currently not available in location '{region}'. "
                "Please try another size or deploy to a different location or different zone. "
                "See https://aka.ms/azureskunotavailable for details.",
            )

    def check_price(self, size: str, region: str, *, cap: float, doing: str) -> None:
        """Refuse a cap that is none, or below the price of now."""
        price = self.price(size, region)
        if cap != -1 and not 0 < cap <= 1e6:
            raise ArmError(
                400,
                "MaxPriceValueInvalid",
                "The max price value provided is invalid. It should be -1 or greater than 0.",
            )
        if cap != -1 and cap < price:
            raise ArmError(
                409,
                "SpotPriceGreaterThanProvidedMaxPrice",
                f"Unable to perform operation '{doing}' since the provided max price "
                f"'{cap} USD' is lower than the current spot price '{price} USD' for "
                f"Azure Spot Virtual Machine size '{size}'.",
            )

    def later_failure(
        self, size: str, region: str, zone: str = "", *, allocated: int = 0
    ) -> tuple[str, str] | None:
        """Code and message with which an accepted allocation will fail; None if it will not.

        `allocated` is how many other machines hold compute in the region.
        """
        code = self.full(size, region, zone)
        if code is None and allocated >= self.admits.get(region, allocated + 1):
            code = "AllocationFailed"
        if code is None or code == "SkuNotAvailable":
            return None
        return code, LATE_TEXTS[code].format(size, "1")

    def check_quota(self, size: str, region: str, used: int) -> None:
        """Refuse what would exceed `lowPriorityCores`."""
        limit, wanted = self.cores_max(region), SIZES[size.lower()].vcpus
        if used + wanted > limit:
            raise ArmError(
                409,
                "OperationNotAllowed",
                "Operation could not be completed as it results in exceeding approved "
                "LowPriorityCores quota. Additional details - Deployment Model: Resource Manager, "
                f"Location: {region}, Current Limit: {limit}, Current Usage: {used}, Additional "
                f"Required: {wanted}, (Minimum) New Limit Required: {used + wanted}. Submit a "
                f"request for Quota increase at {QUOTA_URL} by specifying parameters listed in "
                "the 'Details' section for deployment to succeed. Please read more about quota "
                "limits at https://docs.microsoft.com/en-us/azure/azure-portal/supportability/"
                "low-priority-quota",
            )


ALLOCATION_TEXTS = {
    "AllocationFailed": (
        "Allocation failed. We do not have sufficient capacity for the requested VM size in this "
        "region. Read more about improving likelihood of allocation success at "
        "http://aka.ms/allocation-guidance"
    ),
    "ZonalAllocationFailed": (
        "Allocation failed. We do not have sufficient capacity for the requested VM size {0} in "
        "zone {1}. Read more about improving likelihood of allocation success at "
        "http://aka.ms/allocation-guidance"
    ),
    "OverconstrainedAllocationRequest": (
        "Allocation failed. VM(s) with the following constraints cannot be allocated, because the "
        "condition is too restrictive. Please remove some constraints and try again. Constraints "
        "applied are:\n  - Low Priority VMs\n  - Networking Constraints (such as Accelerated "
        "Networking or IPv6)\n  - VM Size\n"
    ),
    "OverconstrainedZonalAllocationRequest": (
        "Allocation failed. VM(s) with the following constraints cannot be allocated, because the "
        "condition is too restrictive. Please remove some constraints and try again. Constraints "
        "applied are:\n  - Availability Zone\n  - Low Priority VMs\n  - VM Size\n"
    ),
}
LATE_TEXTS = ALLOCATION_TEXTS | {
    "OperationNotAllowed": (
        "Operation could not be completed as it results in exceeding approved LowPriorityCores "
        "quota. Additional details - Deployment Model: Resource Manager, Location: eastus, Current "
        "Limit: 3, Current Usage: 0, Additional Required: 4, (Minimum) New Limit Required: 4."
    ),
    "SpotPriceGreaterThanProvidedMaxPrice": (
        "Unable to perform operation 'Start' since the provided max price '0.25 USD' is lower than "
        "the current spot price '0.31 USD' for Azure Spot Virtual Machine size '{0}'."
    ),
    "SomethingNobodyHasSeenYet": "The allocation came to nothing.",
}
