"""Permissions and safeguards of the simulated cloud: roles, assignments, auto-shutdown."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from azure.mgmt.authorization.v2022_04_01 import models as authorization_models
from azure.mgmt.devtestlabs import models as devtestlabs_models

from arm import vm_power
from arm.mapped import check_mapped
from arm.replies import ArmError, Reply, Request, Route
from arm.world import SUBSCRIPTION, Resource, World


def permissions(world: World) -> Reply:
    """What the account may do: everything, or what a Contributor may."""
    refused = [] if world.may_define else ["Microsoft.Authorization/roleDefinitions/*"]
    refused += [] if world.may_assign else ["Microsoft.Authorization/*/Write"]
    return Reply(body={"value": [{"actions": ["*"], "notActions": refused}]})


def principal_of(world: World, vm_id: str) -> str:
    """The principal of a machine's own identity; empty if it has none."""
    vm = world.find(vm_id)
    return str(((vm.more.get("identity") if vm else None) or {}).get("principalId") or "")


def check_own(world: World, request: Request, principal: str) -> None:
    """A machine's own identity may do what a role assignment to it grants, no more."""
    for key, made in world.roles.items():
        if not key.startswith("roleassignments/"):
            continue
        properties = made["properties"]
        if properties["principalId"] != principal:
            continue
        name = properties["roleDefinitionId"].rpartition("/")[2].lower()
        actions = world.roles[f"roledefinitions/{name}"]["properties"]["permissions"][0]["actions"]
        wanted = f"{properties['scope']}/deallocate".lower()
        if request.path.lower() == wanted and any(
            a.endswith("/deallocate/action") for a in actions
        ):
            return
    raise ArmError(
        403,
        "AuthorizationFailed",
        f"The client 'a machine' does not have authorization over scope '{request.path}'.",
    )


def authorization(world: World, request: Request, type_: str, scope: str, name: str) -> Reply:
    """Role definitions and assignments; both need rights that a Contributor lacks."""
    key = f"{type_}/{name}".lower()
    if request.method == "GET" and not name:
        return _listed(world, request, type_, scope)
    if request.method == "GET":
        if key not in world.roles:
            raise ArmError(404, "RoleDefinitionDoesNotExist", f"'{name}' does not exist.")
        return Reply(body=world.roles[key])
    if not (world.may_assign and (world.may_define or type_ != "roledefinitions")):
        verb = "write" if request.method == "PUT" else "delete"
        raise ArmError(
            403,
            "AuthorizationFailed",
            f"The client 'someone' does not have authorization to perform action "
            f"'Microsoft.Authorization/{type_}/{verb}' over scope '{scope}' or the scope is "
            "invalid.",
        )
    if request.method == "DELETE":
        gone = world.roles.pop(key, None)
        return Reply(status=200, body=gone) if gone else Reply(status=204)
    model = "RoleAssignmentCreateParameters" if type_ == "roleassignments" else "RoleDefinition"
    check_mapped(request.body, model, authorization_models)
    properties = request.body["properties"]
    if type_ == "roleassignments":
        _check_assignment(world, properties)
    else:
        _check_definition(properties)
    made = {"id": f"{scope}/providers/Microsoft.Authorization/{type_}/{name}", "name": name}
    world.roles[key] = {**made, "properties": {**properties, "scope": scope}}
    return Reply(status=201, body=world.roles[key])


def _listed(world: World, request: Request, type_: str, scope: str) -> Reply:
    """What is granted at a scope, above it and below it, or to one principal; one to a page."""
    group = re.match(r"(?i)/subscriptions/[^/]+/resourcegroups/([^/]+)", scope)
    if group:
        world.group(group[1])
    text = request.query.get("$filter", "")
    found = re.fullmatch(r"principalId eq '([^']+)'", text)
    if text and not found:
        raise ArmError(400, "UnsupportedQuery", "The filter is not supported.")
    rows = [
        one
        for key, one in world.roles.items()
        if key.startswith(f"{type_}/")
        and _related(str(one["properties"]["scope"]), scope)
        and (not found or one["properties"].get("principalId") == found[1])
    ]
    start = int(request.query.get("$skiptoken", "0"))
    body: dict[str, Any] = {"value": rows[start : start + 1]}
    if start + 1 < len(rows):
        query = "&".join(
            f"{key}={value}" for key, value in request.query.items() if key[:5] != "$skip"
        )
        body["nextLink"] = f"{request.path}?{query}&$skiptoken={start + 1}".replace(" ", "%20")
    return Reply(body=body)


def _related(one: str, other: str) -> bool:
    """Whether one scope holds the other."""
    first, second = f"{one}/".lower(), f"{other}/".lower()
    return first.startswith(second) or second.startswith(first)


def _check_assignment(world: World, properties: dict[str, Any]) -> None:
    principals = {
        (one.more.get("identity") or {}).get("principalId") for one in world.resources.values()
    }
    if properties["principalId"] not in principals:
        raise ArmError(400, "PrincipalNotFound", "Principal does not exist in the directory.")
    name = properties["roleDefinitionId"].rpartition("/")[2].lower()
    if f"roledefinitions/{name}" not in world.roles:
        raise ArmError(404, "RoleDefinitionDoesNotExist", "The role definition does not exist.")


def _check_definition(properties: dict[str, Any]) -> None:
    """What every definition needs, though no model of the SDK says so."""
    if not {"roleName", "permissions", "assignableScopes"} <= set(properties):
        raise ArmError(400, "InvalidRequestContent", "A role needs a name, rights and scopes.")


def schedule(world: World, request: Request, route: Route) -> Reply:
    """`Microsoft.DevTestLab/schedules`: deallocates a machine at a time of day."""
    id_ = (
        f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{route.group}"
        f"/providers/Microsoft.DevTestLab/schedules/{route.name}"
    )
    if request.method == "DELETE":
        found = world.find(id_)
        if found is not None:
            world.drop(found)
        return Reply(status=200 if found else 204)
    if request.method == "GET":
        return Reply(body=world.need(id_).view())
    world.writable_group(route.group)
    body = request.body or {}
    check_mapped(body, "Schedule", devtestlabs_models)
    properties = body.get("properties") or {}
    _check_schedule(world, route, body, properties)
    made = world.add(
        Resource(
            id=id_,
            type="Microsoft.DevTestLab/schedules",
            group=route.group,
            location=body["location"],
            tags=dict(body.get("tags") or {}),
            properties={**properties, "provisioningState": "Succeeded"},
        )
    )
    _arm(world, made)
    return Reply(status=201, body=made.view())


def _check_schedule(
    world: World, route: Route, body: dict[str, Any], properties: dict[str, Any]
) -> None:
    target = world.need(str(properties.get("targetResourceId", "")))
    time = str((properties.get("dailyRecurrence") or {}).get("time", ""))
    if (
        properties.get("taskType") != "ComputeVmShutdownTask"
        or not re.fullmatch(r"([01]\d|2[0-3])[0-5]\d", time)
        or route.name.lower() != f"shutdown-computevm-{target.name.lower()}"
        or body.get("location") != target.location
    ):
        raise ArmError(400, "InvalidSchedule", "The schedule is not valid.")


def _arm(world: World, made: Resource) -> None:
    """Deallocate the target at the next occurrence, and every day after it."""
    time = made.properties["dailyRecurrence"]["time"]
    now = datetime.fromtimestamp(world.now(), tz=UTC)
    seconds = (
        (int(time[:2]) - now.hour) * 3600 + (int(time[2:]) - now.minute) * 60 - now.second
    ) % 86_400

    def strike() -> None:
        if world.find(made.id) is not made:
            return  # replaced or removed meanwhile
        target = world.find(made.properties["targetResourceId"])
        if made.properties.get("status") == "Enabled" and target is not None:
            vm_power.hypervisor_of(world).halt(target)
            vm_power.set_power(world, target, "deallocated")
            world.event(
                target,
                "Microsoft.Compute/virtualMachines/deallocate/action",
                caller="Microsoft.DevTestLab",
            )
        world.after(86_400, strike)

    world.after(seconds or 86_400, strike)
