"""The pages of the web that need no account: the caller's address, the advisor's rates."""

from __future__ import annotations

import json
from typing import Any

from ec2.market import Market
from ec2.regions import REGIONS, SIZES
from ec2.replies import HttpReply

RANGES = ("<5%", "5-10%", "10-15%", "15-20%", ">20%")
SAVED_PERCENT = 60


def advisor_page(market: Market) -> HttpReply:
    """The Spot Advisor's data: the band of interruptions in the trailing month, and the saving."""
    rows: dict[str, Any] = {}
    for region in REGIONS.values():
        sold = [name for name in SIZES if any(region.sells(name, zone) for zone in region.zones)]
        rates = {
            name: {"r": market.bands.get((name, region.name), 2), "s": SAVED_PERCENT}
            for name in sold
        }
        rows[region.name] = {"Linux": rates, "Windows": {}}
    maxima = (5, 11, 16, 22, 100)
    page = {
        "global_rate": "<10%",
        "instance_types": {
            name: {"cores": size.vcpus, "emr": True, "ram_gb": size.memory_mib / 1024}
            for name, size in SIZES.items()
        },
        "ranges": [
            {"index": i, "dots": i, "label": label, "max": maxima[i]}
            for i, label in enumerate(RANGES)
        ],
        "spot_advisor": rows,
    }
    return HttpReply(body=json.dumps(page), headers={"Content-Type": "application/json"})
