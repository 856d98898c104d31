"""The calls of EC2 about spot requests, spot prices and placement scores."""

from __future__ import annotations

from typing import Any

from ec2.listing import Fields, chosen, filtered, page
from ec2.market import HISTORY_S
from ec2.regions import REGIONS, SIZES
from ec2.replies import ApiCall, AwsError
from ec2.spot_lifecycle import cancel
from ec2.views import request_view
from ec2.world import World

REQUEST_FIELDS: Fields = {
    "spot-instance-request-id": lambda one: [one.id],
    "state": lambda one: [one.state],
    "status-code": lambda one: [one.status],
    "instance-id": lambda one: [one.instance_id] if one.instance_id else [],
    "type": lambda one: [one.type],
    "launched-availability-zone": lambda one: [one.zone] if one.instance_id else [],
    "spot-price": lambda one: [one.cap],
}
PRICE_FIELDS: Fields = {
    "availability-zone": lambda row: [row["AvailabilityZone"]],
    "instance-type": lambda row: [row["InstanceType"]],
    "product-description": lambda row: [row["ProductDescription"]],
}
SCORE_TYPES_MIN = 3
"""With fewer sizes to choose from, a score says little: it is always low."""


def describe_spot_instance_requests(world: World, call: ApiCall) -> dict[str, Any]:
    """`DescribeSpotInstanceRequests`, cancelled ones included for as long as they are listed."""
    rows = chosen(
        world.visible(world.requests, call.region),
        call.parameters,
        "SpotInstanceRequestIds",
        missing="InvalidSpotInstanceRequestID.NotFound",
        words="spot instance request ID",
    )
    found = filtered(rows, call.parameters, REQUEST_FIELDS)
    answer = page(found, call.parameters, "SpotInstanceRequests")
    views = [request_view(world, one) for one in answer["SpotInstanceRequests"]]
    return {**answer, "SpotInstanceRequests": views}


def cancel_spot_instance_requests(world: World, call: ApiCall) -> dict[str, Any]:
    """`CancelSpotInstanceRequests`: silent for what is cancelled already."""
    missing = "InvalidSpotInstanceRequestID.NotFound"
    rows = [
        world.need(world.requests, id_, call.region, missing, "spot instance request ID")
        for id_ in call.parameters["SpotInstanceRequestIds"]
    ]
    for request in rows:
        cancel(world, request)
    return {
        "CancelledSpotInstanceRequests": [
            {"SpotInstanceRequestId": one.id, "State": one.state} for one in rows
        ]
    }


def describe_spot_price_history(world: World, call: ApiCall) -> dict[str, Any]:
    """`DescribeSpotPriceHistory`: the price in force at the start, and every change since."""
    parameters = call.parameters
    start, end = parameters.get("StartTime"), parameters.get("EndTime")
    now_s = world.now()
    begin_s = start.timestamp() if start else now_s - HISTORY_S
    end_s = min(end.timestamp() if end else now_s, now_s)
    products = parameters.get("ProductDescriptions") or ["Linux/UNIX"]
    rows: list[dict[str, Any]] = []
    for size in parameters.get("InstanceTypes") or list(SIZES):
        for zone, zone_id in REGIONS[call.region].zones.items():
            if not REGIONS[call.region].sells(size, zone) or "Linux/UNIX" not in products:
                continue
            wanted_zone = parameters.get("AvailabilityZone") or zone
            if zone not in {wanted_zone, parameters.get("AvailabilityZoneId")}:
                continue
            rows += [
                {
                    "AvailabilityZone": zone,
                    "AvailabilityZoneId": zone_id,
                    "InstanceType": size,
                    "ProductDescription": "Linux/UNIX",
                    "SpotPrice": f"{usd:.6f}",
                    "Timestamp": world.moment(at_s),
                }
                for at_s, usd in _prices(world, size, zone, begin_s, end_s)
            ]
    rows = filtered(rows, parameters, PRICE_FIELDS)
    answer = page(rows, parameters, "SpotPriceHistory", least=1)
    return {"NextToken": "", **answer}


def _prices(
    world: World, size: str, zone: str, begin_s: float, end_s: float
) -> list[tuple[float, float]]:
    """When the price became what, newest first: the last change before the start included."""
    changes = world.market.changes.get((size, zone), [])
    since_s = max((at_s for at_s, _ in changes if at_s <= begin_s), default=begin_s - 3600.0)
    first = (since_s, world.market.price(size, zone, begin_s))
    later = [(at_s, usd) for at_s, usd in changes if begin_s < at_s <= end_s]
    return list(reversed([first, *later]))


def get_spot_placement_scores(world: World, call: ApiCall) -> dict[str, Any]:
    """`GetSpotPlacementScores`: the ten best places, zones by their id."""
    if not world.market.may_score:
        raise AwsError(
            "UnauthorizedOperation", "You are not authorized to perform this operation.", status=403
        )
    parameters = call.parameters
    regions = parameters.get("RegionNames") or [call.region]
    types = parameters.get("InstanceTypes") or []
    low = len(types) < SCORE_TYPES_MIN
    rows = []
    for region in regions:
        scores = {
            zone: 1 if low else world.market.scores.get((region, zone), 5)
            for zone in REGIONS[region].zones
            if any(REGIONS[region].sells(size, zone) for size in types)
        }
        if parameters.get("SingleAvailabilityZone"):
            rows += [
                {
                    "Region": region,
                    "AvailabilityZoneId": REGIONS[region].zones[zone],
                    "Score": score,
                }
                for zone, score in scores.items()
            ]
        elif scores:
            rows.append({"Region": region, "Score": max(scores.values())})
    rows.sort(key=lambda row: -row["Score"])
    return {"SpotPlacementScores": rows[:10]}


OPERATIONS = {
    "DescribeSpotInstanceRequests": describe_spot_instance_requests,
    "CancelSpotInstanceRequests": cancel_spot_instance_requests,
    "DescribeSpotPriceHistory": describe_spot_price_history,
    "GetSpotPlacementScores": get_spot_placement_scores,
}
