"""Resource groups, provider registration and lists of the simulated cloud."""

from __future__ import annotations

import re
from typing import Any

from azure.mgmt.resource.resources import models

from arm import machines, networks
from arm.bodies import check
from arm.longrunning import accepted
from arm.replies import ArmError, Reply, Request, Route
from arm.world import SUBSCRIPTION, Group, World

GROUP_DELETE_S = 90.0
REGISTER_S = 25.0


def handle(world: World, base: str, request: Request, route: Route) -> Reply:
    """Everything under `/resourcegroups` that is not a resource of a provider."""
    if not route.group:
        return _list(world, request)
    match request.method:
        case "PUT":
            return _put(world, request, route)
        case "HEAD":
            return Reply(status=204 if route.group.lower() in world.groups else 404)
        case "DELETE":
            return _delete(world, base, route)
    return Reply(body=world.group(route.group).view())


def _put(world: World, request: Request, route: Route) -> Reply:
    check(request.body, models.ResourceGroup, models)
    found = world.groups.get(route.group.lower())
    tags = dict(request.body.get("tags") or {})
    for name, value in tags.items():
        if len(value) > 256 or len(name) > 512 or re.search(r"[<>%&\\?/]", name):
            raise ArmError(400, "InvalidTagNameCharacters", f"The tag '{name}' is not valid.")
    if found is None:
        if not re.fullmatch(r"[\w.()-]{1,90}", route.group):
            raise ArmError(400, "InvalidResourceGroup", f"The name '{route.group}' is invalid.")
        made = Group(
            id=f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{route.group}",
            name=route.group,
            location=request.body["location"],
            tags=tags,
        )
        world.groups[route.group.lower()] = made
        return Reply(status=201, body=made.view())
    world.writable_group(route.group)
    if found.location != request.body["location"]:
        raise ArmError(
            409,
            "InvalidResourceGroupLocation",
            f"Invalid resource group location '{request.body['location']}'. The Resource group "
            f"already exists in location '{found.location}'.",
        )
    found.tags = tags
    return Reply(status=200, body=found.view())


def _list(world: World, request: Request) -> Reply:
    groups = [one for one in world.groups.values() if _matches(one.tags, request)]
    return Reply(body={"value": [one.view() for one in groups]})


def _matches(tags: dict[str, str], request: Request) -> bool:
    """Whether tags satisfy `$filter`, of which two forms are understood."""
    text = request.query.get("$filter", "")
    if not text:
        return True
    found = re.fullmatch(r"tagName eq '([^']+)'(?: and tagValue eq '([^']*)')?", text)
    if not found:
        raise ArmError(400, "InvalidFilterInQueryString", f"Invalid $filter '{text}'.")
    # Names of tags have no case; their values do.
    named = {name.lower(): value for name, value in tags.items()}
    name = found[1].lower()
    return name in named and (found[2] is None or named[name] == found[2])


def list_resources(world: World, request: Request, route: Route) -> Reply:
    """What a group or the subscription holds, with the lag that real lists have."""
    if route.group:
        world.group(route.group)
    found = [
        one
        for one in world.listed()
        if (not route.group or one.group.lower() == route.group.lower())
        and _matches(one.tags, request)
    ]
    world.random.shuffle(found)
    heads = [{k: v for k, v in one.view().items() if k != "properties"} for one in found]
    return Reply(body={"value": heads})


def _delete(world: World, base: str, route: Route) -> Reply:
    group = world.group(route.group)
    operation = world.operation("group")
    group.state = "Deleting"

    def finish() -> None:
        stuck = _sweep(world, group)
        if not stuck:
            world.groups.pop(group.name.lower(), None)
            operation.end(world.now())
            return
        group.state = "Succeeded"
        operation.end(
            world.now(),
            ArmError(
                409,
                "ResourceGroupDeletionBlocked",
                f"Deletion of resource group '{group.name}' failed as resources with identifiers "
                f"'{', '.join(stuck)}' could not be deleted. The provisioning state of the "
                "resource group will be rolled back.",
                details=[networks.reserved_error(stuck[0], world).body["error"]],
            ),
        )

    world.delete_later(GROUP_DELETE_S, finish)
    return accepted(world, operation, base, status=202)


def _sweep(world: World, group: Group) -> list[str]:
    """Delete what a group holds, machines first; the ids of what cannot go yet."""
    stuck = []
    rank = {"microsoft.compute/virtualmachines": 0, "microsoft.network/networkinterfaces": 1}
    for one in sorted(world.in_group(group.name), key=lambda r: rank.get(r.type.lower(), 2)):
        if world.find(one.id) is None:
            continue  # went with its machine
        if one.type.lower() == "microsoft.compute/virtualmachines":
            machines.vanish(world, one)
        elif networks.reserved(one, world):
            stuck.append(one.id)
        elif not (stuck and one.type.lower().startswith("microsoft.network/")):
            world.drop(one)
    return stuck


def provider(world: World, request: Request, route: Route) -> Reply:
    """`GET providers/{namespace}` and `POST …/register`."""
    namespace = route.namespace
    if request.method == "POST":
        if world.providers.get(namespace) != "Registered":
            world.providers[namespace] = "Registering"
            world.after(REGISTER_S, lambda: world.providers.update({namespace: "Registered"}))
        return Reply(body=_provider_view(world, namespace))
    return Reply(body=_provider_view(world, namespace))


def _provider_view(world: World, namespace: str) -> dict[str, Any]:
    return {
        "id": f"/subscriptions/{SUBSCRIPTION}/providers/{namespace}",
        "namespace": namespace,
        "registrationState": world.providers.get(namespace, "NotRegistered"),
        "registrationPolicy": "RegistrationRequired",
        "resourceTypes": [],
    }
