"""Which part of the simulated cloud answers which path, and with which api-version."""

from __future__ import annotations

import re

from arm import facts, groups, longrunning, machines, networks, roles
from arm.replies import ArmError, Reply, Request, Route, route_of
from arm.world import SUBSCRIPTION, World

COMPUTE = {"2026-04-01", "2024-07-01"}
NETWORK = {"2026-03-01", "2024-05-01"}
RESOURCES = {"2025-04-01"}
VERSIONS = {
    "microsoft.compute/virtualmachines": COMPUTE,
    "microsoft.compute/disks": {"2026-03-02", "2024-07-01"},
    "microsoft.compute/locations/usages": {"2026-04-01"},
    "microsoft.compute/skus": {"2021-07-01"},
    "microsoft.insights/eventtypes/values": {"2015-04-01"},
    "microsoft.resourcegraph/resources": {"2022-10-01", "2021-03-01"},
    "microsoft.devtestlab/schedules": {"2018-09-15"},
    "microsoft.authorization/roledefinitions": {"2022-04-01"},
    "microsoft.authorization/roleassignments": {"2022-04-01"},
}


def dispatch(world: World, base: str, request: Request) -> Reply:
    """Answer one authenticated request to ARM; raises `ArmError` for a refusal."""
    if request.path.lower() == "/providers/microsoft.resourcegraph/resources":
        _check_version(request, VERSIONS["microsoft.resourcegraph/resources"])
        return facts.graph(world, request)
    found = re.fullmatch(
        r"(?i)(?P<scope>/subscriptions/.+?)?/providers/Microsoft\.Authorization"
        r"/(?P<type>role(?:definitions|assignments))/(?P<name>[^/]+)",
        request.path,
    )
    if found:
        type_ = found["type"].lower()
        _check_version(request, VERSIONS[f"microsoft.authorization/{type_}"])
        return roles.authorization(world, request, type_, found["scope"] or "", found["name"])
    operation = re.fullmatch(
        rf"(?i)/subscriptions/{SUBSCRIPTION}/(?:providers/.+/operations|operationresults)/([0-9a-f-]+)",
        request.path,
    )
    if operation:
        return longrunning.poll(world, request, operation[1])
    route = route_of(request.path)
    if route.subscription.lower() != SUBSCRIPTION:
        raise ArmError(
            404,
            "SubscriptionNotFound",
            f"The subscription '{route.subscription}' could not be found.",
        )
    return _route(world, base, request, route)


def _route(world: World, base: str, request: Request, route: Route) -> Reply:
    lower = request.path.lower().rstrip("/")
    if not route.namespace:
        if re.fullmatch(r"/subscriptions/[^/]+", lower):
            _check_version(request, {"2022-12-01"})
            return Reply(body=world.subscription)
        _check_version(request, RESOURCES)
        if lower.endswith("/resources"):
            return groups.list_resources(world, request, route)
        return groups.handle(world, base, request, route)
    if re.fullmatch(r"/subscriptions/[^/]+/providers/[^/]+(/register)?", lower):
        _check_version(request, RESOURCES)
        return groups.provider(world, request, route)
    if lower.endswith("/providers/microsoft.authorization/permissions"):
        _check_version(request, {"2022-04-01"})
        return roles.permissions(world)
    _check_registered(world, route)
    if route.namespace == "microsoft.network":
        _check_version(request, NETWORK)
        return networks.handle(world, base, request, route)
    if lower.endswith("/eventtypes/management/values"):
        _check_version(request, VERSIONS["microsoft.insights/eventtypes/values"])
        return facts.activity(world, request)
    if lower.endswith("/usages"):
        _check_version(request, VERSIONS["microsoft.compute/locations/usages"])
        return facts.usages(world, base, request, route)
    if lower.endswith("/placementscores/spot/generate"):
        _check_version(request, {"2025-06-05"})
        return facts.placement(world, request)
    _check_version(request, VERSIONS.get(route.type, set()))
    match route.type:
        case "microsoft.compute/virtualmachines":
            return machines.handle(world, base, request, route)
        case "microsoft.compute/skus":
            return facts.skus(world, request)
        case "microsoft.devtestlab/schedules":
            return roles.schedule(world, request, route)
        case "microsoft.compute/disks":
            return _disk(world, request)
    raise ArmError(404, "InvalidResourceType", f"There is nothing at '{request.path}'.")


def _disk(world: World, request: Request) -> Reply:
    if request.method != "DELETE":
        return Reply(body=world.need(request.path).view())
    found = world.find(request.path)
    if found is None:
        return Reply(status=204)
    if world.find(str(found.more.get("managedBy", ""))):
        raise ArmError(409, "OperationNotAllowed", f"Disk {found.name} is attached to VM.")
    world.drop(found)
    return Reply(status=200)


def _check_version(request: Request, known: set[str]) -> None:
    if not request.version:
        raise ArmError(400, "MissingApiVersionParameter", "The api-version query is required.")
    if request.version not in known:
        raise ArmError(
            400,
            "InvalidApiVersionParameter",
            f"The api-version '{request.version}' is invalid here.",
        )


def _check_registered(world: World, route: Route) -> None:
    needed = {"microsoft.compute", "microsoft.network", "microsoft.devtestlab"}
    if route.namespace in needed and world.providers.get(route.namespace) != "Registered":
        names = {"microsoft.compute": "Microsoft.Compute", "microsoft.network": "Microsoft.Network"}
        name = names.get(route.namespace, "Microsoft.DevTestLab")
        raise ArmError(
            409,
            "MissingSubscriptionRegistration",
            f"The subscription is not registered to use namespace '{name}'. See "
            "https://aka.ms/rps-not-found for how to register subscriptions.",
        )
