"""The public regions of Azure by their codes, and where each GPU has a price; both dated."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

DATE = "2026-06-18"
"""Of the prices: public price lists collected by karpenter's Azure provider."""
_PUBLIC = """
    australiacentral australiacentral2 australiaeast australiasoutheast austriaeast belgiumcentral
    brazilsouth brazilsoutheast canadacentral canadaeast centralindia centralus chilecentral
    denmarkeast eastasia eastus eastus2 francecentral francesouth germanynorth germanywestcentral
    indiasouthcentral indonesiacentral israelcentral israelnorthwest italynorth japaneast japanwest
    jioindiacentral jioindiawest koreacentral koreasouth malaysiawest mexicocentral newzealandnorth
    northcentralus northeurope norwayeast norwaywest polandcentral qatarcentral southafricanorth
    southafricawest southcentralus southeastasia southindia spaincentral swedencentral swedensouth
    switzerlandnorth switzerlandwest taiwannorth uaecentral uaenorth uksouth ukwest westcentralus
    westeurope westindia westus westus2 westus3
"""
PUBLIC_REGIONS = tuple(_PUBLIC.split())
"""Those with a price list, and those that Microsoft's list of regions names besides."""
GPU_REGIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        gpu: tuple(regions.split())
        for gpu, regions in {
            "T4": """
                australiacentral australiacentral2 australiaeast brazilsouth canadacentral
                centralindia centralus eastus eastus2 francecentral germanywestcentral
                israelcentral italynorth japaneast japanwest koreacentral malaysiawest
                northcentralus northeurope polandcentral southcentralus southeastasia southindia
                swedencentral uksouth westeurope westus westus2 westus3
            """,
            "A10": """
                australiaeast brazilsouth canadacentral centralindia centralus eastasia eastus
                eastus2 francecentral germanywestcentral indonesiacentral israelcentral italynorth
                japaneast jioindiacentral jioindiawest koreacentral koreasouth malaysiawest
                mexicocentral northcentralus northeurope polandcentral qatarcentral
                southafricanorth southcentralus southeastasia spaincentral swedencentral
                switzerlandnorth uaenorth uksouth westeurope westus westus2 westus3
            """,
            "A100": """
                australiaeast brazilsouth canadacentral centralindia centralus eastus eastus2
                francecentral germanywestcentral italynorth japaneast jioindiacentral jioindiawest
                koreacentral northcentralus northeurope polandcentral southcentralus southeastasia
                spaincentral swedencentral switzerlandnorth uksouth westeurope westus westus2
                westus3
            """,
            "H100": """
                australiaeast canadacentral centralindia centralus eastus eastus2
                germanywestcentral indonesiacentral japaneast jioindiacentral jioindiawest
                koreacentral koreasouth malaysiawest northcentralus northeurope southcentralus
                southeastasia spaincentral swedencentral switzerlandnorth uaenorth uksouth
                westeurope westus westus2 westus3
            """,
        }.items()
    }
)
"""Regions with a price for a size with one whole card; a price does not mean capacity."""
