"""The commercial regions of AWS by their codes, and where each GPU is sold; both dated."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

DATE = "2026-08-01"
"""Of the list of what each zone sells: EC2's `DescribeInstanceTypeOfferings`, collected by moto."""
_PUBLIC = """
    af-south-1 ap-east-1 ap-east-2 ap-northeast-1 ap-northeast-2 ap-northeast-3 ap-south-1
    ap-south-2 ap-southeast-1 ap-southeast-2 ap-southeast-3 ap-southeast-4 ap-southeast-5
    ap-southeast-6 ap-southeast-7 ca-central-1 ca-west-1 eu-central-1 eu-central-2 eu-north-1
    eu-south-1 eu-south-2 eu-west-1 eu-west-2 eu-west-3 il-central-1 me-central-1 me-south-1
    mx-central-1 sa-east-1 us-east-1 us-east-2 us-west-1 us-west-2
"""
PUBLIC_REGIONS = tuple(_PUBLIC.split())
"""Those that AWS's SDK lists; China and GovCloud, which have accounts of their own, are left out.
"""
_ENABLED = """
    ap-northeast-1 ap-northeast-2 ap-northeast-3 ap-south-1 ap-southeast-1 ap-southeast-2
    ca-central-1 eu-central-1 eu-north-1 eu-west-1 eu-west-2 eu-west-3 sa-east-1 us-east-1 us-east-2
    us-west-1 us-west-2
"""
ENABLED_REGIONS = frozenset(_ENABLED.split())
"""Those that every account has; the others, opened since March 2019, have to be enabled first."""
GPU_REGIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        gpu: tuple(regions.split())
        for gpu, regions in {
            "T4": """
                af-south-1 ap-east-1 ap-northeast-1 ap-northeast-2 ap-northeast-3 ap-south-1
                ap-southeast-1 ap-southeast-2 ca-central-1 eu-central-1 eu-north-1 eu-south-1
                eu-west-1 eu-west-2 eu-west-3 me-south-1 sa-east-1 us-east-1 us-east-2 us-west-1
                us-west-2
            """,
            "A10G": """
                ap-east-1 ap-northeast-1 ap-northeast-2 ap-south-1 ap-southeast-2 ap-southeast-3
                ca-central-1 eu-central-1 eu-north-1 eu-south-2 eu-west-1 eu-west-2 eu-west-3
                il-central-1 me-central-1 sa-east-1 us-east-1 us-east-2 us-west-2
            """,
            "L4": """
                ap-northeast-1 ap-northeast-2 ap-south-1 ap-south-2 ap-southeast-2 ap-southeast-5
                ca-central-1 eu-central-1 eu-central-2 eu-north-1 eu-south-2 eu-west-2 eu-west-3
                me-central-1 sa-east-1 us-east-1 us-east-2 us-west-2
            """,
        }.items()
    }
)
"""Regions of which at least one zone sells a size with one card."""
