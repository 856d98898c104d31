"""What the simulated cloud tells about itself: quota, sizes, eviction bands, events, prices."""

from __future__ import annotations

import re
from typing import Any

from azure.mgmt.computerecommender import models as recommender_models
from azure.mgmt.resourcegraph import models as graph_models

from arm import machines
from arm.bodies import check
from arm.mapped import check_mapped
from arm.market import REGIONS, SIZES, Size
from arm.replies import ArmError, Reply, Request, Route
from arm.world import SUBSCRIPTION, World

LOG_LAG_S = 120.0
PAGE = 3
PRICES_PAGE = 20


def usages(world: World, base: str, request: Request, route: Route) -> Reply:
    """Quota of one region, over several pages, family names spelt unlike the list of sizes."""
    region = route.names[0].lower()
    used = machines.spot_cores_used(world, region)
    rows = [
        ("cores", "Total Regional vCPUs", 0, 100),
        ("virtualMachines", "Virtual Machines", 0, 25000),
        ("Standard NCASv3_T4 Family", "Standard NCASv3_T4 Family vCPUs", 0, 0),
        ("StandardNVADSA10v5Family ", "Standard NVADSA10v5 Family vCPUs", 0, 0),
        (
            "lowPriorityCores",
            "Total Regional Low-priority vCPUs",
            used,
            world.market.cores_max(region),
        ),
    ]
    start = int(request.query.get("$skiptoken", "0"))
    body: dict[str, Any] = {
        "value": [
            {
                "unit": "Count",
                "currentValue": current,
                "limit": limit,
                "name": {"value": name, "localizedValue": words},
            }
            for name, words, current, limit in rows[start : start + PAGE]
        ]
    }
    if start + PAGE < len(rows):
        body["nextLink"] = (
            f"{base}{request.path}?api-version={request.version}&$skiptoken={start + PAGE}"
        )
    return Reply(body=body)


def skus(world: World, request: Request) -> Reply:
    """The sizes of one region with what restricts them."""
    found = re.fullmatch(r"location eq '(\w+)'", request.query.get("$filter", ""))
    regions = [found[1]] if found else REGIONS
    return Reply(body={"value": [_sku(world, size, r) for r in regions for size in SIZES.values()]})


def _sku(world: World, size: Size, region: str) -> dict[str, Any]:
    restrictions: list[dict[str, Any]] = [
        {
            "type": "Zone",
            "values": [region],
            "restrictionInfo": {"locations": [region], "zones": ["3"]},
            "reasonCode": "NotAvailableForSubscription",
        }
    ]
    if (size.name.lower(), region) in world.market.restricted:
        restrictions.append(
            {
                "type": "Location",
                "values": [region],
                "restrictionInfo": {"locations": [region]},
                "reasonCode": "NotAvailableForSubscription",
            }
        )
    capabilities = {
        "vCPUs": str(size.vcpus),
        "MemoryGB": str(size.memory_gb),
        "GPUs": str(size.gpus),
        "LowPriorityCapable": str(size.spot),
        "HyperVGenerations": "V1,V2",
    }
    return {
        "resourceType": "virtualMachines",
        "name": size.name,
        "tier": "Standard",
        "size": size.name.removeprefix("Standard_"),
        "family": size.family,
        "locations": [region],
        "locationInfo": [{"location": region, "zones": ["1", "2", "3"]}],
        "capabilities": [{"name": k, "value": v} for k, v in capabilities.items()],
        "restrictions": restrictions,
    }


def graph(world: World, request: Request) -> Reply:
    """Resource Graph: the one table that is asked for, with its missing rows."""
    check_mapped(request.body, "QueryRequest", graph_models)
    text = str(request.body.get("query", "")).lower()
    if request.body.get("subscriptions") != [SUBSCRIPTION]:
        raise ArmError(400, "BadRequest", "Subscriptions must be given.")
    if "spotresources" not in text or "skuspotevictionrate/location" not in text:
        raise ArmError(400, "InvalidQuery", "Query is invalid.")
    rows = [
        {"skuName": size, "location": region, "spotEvictionRate": band}
        for (size, region), band in world.market.bands.items()
        if f"'{size}'" in text and f"'{region}'" in text
    ]
    return Reply(body={"totalRecords": len(rows), "count": len(rows), "data": rows})


def placement(world: World, request: Request) -> Reply:
    """Spot placement scores, for those who have the role."""
    body = request.body or {}
    places, sizes = body.get("desiredLocations") or [], body.get("desiredSizes") or []
    check(body, recommender_models.SpotPlacementScoresInput, recommender_models)
    if not 0 < len(places) <= 8 or not 0 < len(sizes) <= 5:
        raise ArmError(400, "InvalidParameter", "At most 8 locations and 5 sizes.")
    if not world.market.may_score:
        raise ArmError(403, "AuthorizationFailed", "No right to generate placement scores.")
    rows = [
        {
            "sku": size["sku"],
            "region": place,
            "availabilityZone": None,
            "score": world.market.scores.get((size["sku"].lower(), place), "DataNotFoundOrStale"),
            "isQuotaAvailable": True,
        }
        for place in places
        for size in sizes
    ]
    return Reply(body={**body, "placementScores": rows})


def activity(world: World, request: Request) -> Reply:
    """The activity log, minutes late."""
    found = re.fullmatch(
        r"eventTimestamp ge '([^']+)' and resourceUri eq '([^']+)'",
        request.query.get("$filter", ""),
    )
    if not found:
        raise ArmError(400, "BadRequest", "The filter must name a start and a resource.")
    events = [
        {key: value for key, value in one.items() if key != "at_s"}
        for one in world.log
        if one["resourceId"].lower() == found[2].lower() and world.now() - one["at_s"] >= LOG_LAG_S
    ]
    return Reply(body={"value": events})


def prices(world: World, base: str, request: Request) -> Reply:
    """The public price list: case-sensitive, paged, mixed with what nobody asked for."""
    text = request.query.get("$filter", "")
    items = []
    for size in SIZES.values():
        if f"armSkuName eq '{size.name}'" not in text:
            continue
        for region in REGIONS:
            if f"armRegionName eq '{region}'" in text:
                items += _items(world, size, region)
    start = int(request.query.get("$skip", "0"))
    rest = start + PRICES_PAGE < len(items)
    query = "&".join(f"{key}={value}" for key, value in request.query.items() if key != "$skip")
    connection = f"{base}{request.path}?{query}&$skip={start + PRICES_PAGE}".replace(" ", "%20")
    return Reply(
        body={
            "BillingCurrency": "USD",
            "CustomerEntityId": "Default",
            "CustomerEntityType": "Retail",
            "Items": items[start : start + PRICES_PAGE],
            "NextPageLink": connection if rest else None,
            "Count": len(items[start : start + PRICES_PAGE]),
        }
    )


def _items(world: World, size: Size, region: str) -> list[dict[str, Any]]:
    short = size.name.removeprefix("Standard_").replace("_", " ")
    product = "Virtual Machines NCasT4 v3 Series"
    spot = world.market.price(size.name, region)
    rows = [
        (short, short, product, size.on_demand_usd_per_h),
        (f"{short} Spot", f"{short} Spot", product, spot),
        (f"{short} Low Priority", f"{short} Low Priority", product, spot / 2),
        (short, short, f"{product} Windows", size.on_demand_usd_per_h * 1.4),
        (f"{short} Spot", f"{short} Spot", f"{product} Windows", spot * 1.4),
    ]
    return [
        {
            "currencyCode": "USD",
            "tierMinimumUnits": 0.0,
            "retailPrice": price,
            "unitPrice": price,
            "armRegionName": region,
            "location": region,
            "effectiveStartDate": "2026-09-01T00:00:00Z",
            "meterName": meter,
            "productName": product_name,
            "skuName": sku,
            "serviceName": "Virtual Machines",
            "serviceFamily": "Compute",
            "unitOfMeasure": "1 Hour",
            "type": "Consumption",
            "isPrimaryMeterRegion": True,
            "armSkuName": size.name,
        }
        for meter, sku, product_name, price in rows
    ]
