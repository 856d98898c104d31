"""Which part of the simulated cloud answers which path."""

from __future__ import annotations

import re

from arm import facts, groups, longrunning, machines, networks, roles
from arm.operations import check_version
from arm.replies import ArmError, Reply, Request, Route, route_of
from arm.world import SUBSCRIPTION, World


def dispatch(world: World, base: str, request: Request) -> Reply:
    """Answer one authenticated request to ARM; raises `ArmError` for a refusal."""
    operation = re.fullmatch(
        rf"(?i)/subscriptions/{SUBSCRIPTION}/(?:providers/.+/operations|operationresults)/([0-9a-f-]+)",
        request.path,
    )
    if operation:
        return longrunning.poll(world, request, operation[1])
    check_version(request, _location(world, request))
    if request.path.lower() == "/providers/microsoft.resourcegraph/resources":
        return facts.graph(world, request)
    found = re.fullmatch(
        r"(?i)(?P<scope>/subscriptions/.+?)?/providers/Microsoft\.Authorization"
        r"/(?P<type>role(?:definitions|assignments))(?:/(?P<name>[^/]+))?",
        request.path,
    )
    if found:
        type_ = found["type"].lower()
        return roles.authorization(world, request, type_, found["scope"] or "", found["name"] or "")
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
            return Reply(body=world.subscription)
        if lower.endswith("/resources"):
            return groups.list_resources(world, request, route)
        return groups.handle(world, base, request, route)
    if re.fullmatch(r"/subscriptions/[^/]+/providers/[^/]+(/register)?", lower):
        return groups.provider(world, request, route)
    if lower.endswith("/providers/microsoft.authorization/permissions"):
        return roles.permissions(world)
    _check_registered(world, route)
    if route.namespace == "microsoft.network":
        return networks.handle(world, base, request, route)
    if lower.endswith("/eventtypes/management/values"):
        return facts.activity(world, request)
    if lower.endswith("/usages"):
        return facts.usages(world, base, request, route)
    if lower.endswith("/placementscores/spot/generate"):
        return facts.placement(world, request)
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


def _location(world: World, request: Request) -> str:
    """Where a request would have something done, as ARM names it in its refusals."""
    body = request.body if isinstance(request.body, dict) else {}
    found = world.find(request.path)
    return str(body.get("location") or (found.location if found else ""))


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
