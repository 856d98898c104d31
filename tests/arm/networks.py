"""Security groups, networks, addresses and interfaces of the simulated cloud."""

from __future__ import annotations

from typing import Any

from azure.mgmt.network import models

from arm import private
from arm.bodies import check
from arm.ledger import ADDRESS_USD_PER_H
from arm.longrunning import accepted
from arm.replies import ArmError, Reply, Request, Route
from arm.world import SUBSCRIPTION, Resource, World

MAKE_S = 4.0
DELETE_S = 3.0
RESERVED_S = 180.0
_TYPES: dict[str, tuple[str, type]] = {
    "networksecuritygroups": ("networkSecurityGroups", models.NetworkSecurityGroup),
    "virtualnetworks": ("virtualNetworks", models.VirtualNetwork),
    "publicipaddresses": ("publicIPAddresses", models.PublicIPAddress),
    "networkinterfaces": ("networkInterfaces", models.NetworkInterface),
}


def handle(world: World, base: str, request: Request, route: Route) -> Reply:
    """Everything under `providers/Microsoft.Network`."""
    if route.types == ("networksecuritygroups", "securityrules"):
        return _rule(world, base, request, route)
    type_, model = _TYPES[route.types[0]]
    id_ = id_of(route.group, type_, route.name)
    if request.method == "GET":
        world.group(route.group)
        return Reply(body=world.need(id_).view())
    if request.method == "DELETE":
        return _delete(world, base, route, id_)
    check(request.body, model, models)
    world.writable_group(route.group)
    return _put(world, base, request, route, type_)


def id_of(group: str, type_: str, name: str) -> str:
    """The full id of a network resource."""
    return (
        f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{group}/providers/Microsoft.Network"
        f"/{type_}/{name}"
    )


def _put(world: World, base: str, request: Request, route: Route, type_: str) -> Reply:
    id_ = id_of(route.group, type_, route.name)
    body: dict[str, Any] = request.body
    if not body.get("location"):
        raise ArmError(400, "LocationRequired", "The location property is required.")
    found = world.find(id_)
    if found is not None and found.location != body["location"]:
        raise ArmError(
            409,
            "InvalidResourceLocation",
            f"The resource '{route.name}' already exists in location '{found.location}'.",
        )
    _check_rules(body, type_)
    _check_parents(world, body, type_)
    kept = found.hidden if found else {}
    properties = private.completed(world, body, type_, id_, found)
    resource = world.add(
        Resource(
            id=id_,
            type=f"Microsoft.Network/{type_}",
            group=route.group,
            location=body["location"],
            tags=dict(body.get("tags") or {}),
            properties={**properties, "provisioningState": "Updating"},
            more={"sku": body["sku"]} if "sku" in body else {},
            hidden=kept,
        )
    )
    if type_ == "publicIPAddresses":
        resource.hidden.setdefault("address", _new_address(world))
        world.ledger.start("address", id_, ADDRESS_USD_PER_H)
    operation = world.operation("network")

    def finish() -> None:
        resource.properties["provisioningState"] = "Succeeded"
        if type_ == "publicIPAddresses":
            resource.properties["ipAddress"] = resource.hidden["address"]
        operation.end(world.now())

    world.after(MAKE_S, finish)
    return accepted(world, operation, base, resource.view(), status=200 if found else 201)


def _new_address(world: World) -> str:
    """A fresh public address; on loopback, so that a guest can really listen there."""
    world.hosts_given += 1
    return f"127.0.{10 + world.hosts_given // 250}.{1 + world.hosts_given % 250}"


def _check_rules(body: dict[str, Any], type_: str) -> None:
    properties = body.get("properties") or {}
    standard = type_ == "publicIPAddresses" and (body.get("sku") or {}).get("name") == "Standard"
    if standard and properties.get("publicIPAllocationMethod") != "Static":
        raise ArmError(
            400,
            "StandardSkuPublicIPAddressesMustBeStatic",
            "Standard sku publicIp must have AllocationMethod set to Static.",
        )
    for rule in properties.get("securityRules") or []:
        _check_rule(rule.get("properties") or {}, str(rule.get("name")))


def _check_rule(rule: dict[str, Any], name: str) -> None:
    for member in ("protocol", "direction", "access", "priority"):
        if member not in rule:
            raise ArmError(
                400, "SecurityRuleParameterMissing", f"Security rule {name} lacks {member}."
            )


def _check_parents(world: World, body: dict[str, Any], type_: str) -> None:
    """What a card refers to must exist, in its region."""
    if type_ != "networkInterfaces":
        return
    properties = body.get("properties") or {}
    wanted = []
    if properties.get("networkSecurityGroup"):
        wanted.append(properties["networkSecurityGroup"]["id"])
    for one in properties.get("ipConfigurations") or []:
        inner = one.get("properties") or {}
        if inner.get("subnet"):
            network, _, subnet = inner["subnet"]["id"].partition("/subnets/")
            wanted.append(network)
            found = world.find(network)
            names = [s["name"] for s in found.properties.get("subnets", [])] if found else []
            if found is not None and subnet not in names:
                raise ArmError(404, "NotFound", f"Subnet '{subnet}' was not found.")
        if inner.get("publicIPAddress"):
            wanted.append(inner["publicIPAddress"]["id"])
    for id_ in wanted:
        found = world.find(id_)
        if found is None or found.location != body["location"]:
            raise ArmError(
                400,
                "InvalidResourceReference",
                f"Resource {id_} referenced by the resource was not found. Please make sure that "
                "the referenced resource exists, and that both resources are in the same region.",
            )
        if found.state == "Updating":
            raise private.not_provisioned(found)


def _delete(world: World, base: str, route: Route, id_: str) -> Reply:
    found = world.find(id_)
    if found is None:
        return Reply(status=204)
    if reserved(found, world):
        raise reserved_error(id_, world)
    user = user_of(world, found)
    if user is not None:
        raise _in_use(found, user)
    operation = world.operation("network")

    def finish() -> None:
        world.drop(found)
        operation.end(world.now())

    world.after(DELETE_S, finish)
    del route
    return accepted(world, operation, base, status=202)


def user_of(world: World, resource: Resource) -> Resource | None:
    """What keeps a network resource from being deleted."""
    if resource.type.endswith("/networkInterfaces"):
        return world.find(resource.hidden.get("vm", ""))
    for one in world.resources.values():
        if (
            one.type.endswith("/networkInterfaces")
            and resource.id.lower() in str(one.properties).lower()
        ):
            return one
    return None


def _in_use(resource: Resource, user: Resource) -> ArmError:
    kind = resource.type.rpartition("/")[2]
    code, text = _IN_USE[kind]
    return ArmError(400, code, text.format(resource.id, user.id))


_IN_USE = {
    "publicIPAddresses": (
        "PublicIPAddressCannotBeDeleted",
        """Public IP address {0} can not be deleted since it is still allocated to resource \
{1}/ipConfigurations/main. In order to delete the public IP, disassociate/detach the \
Public IP address from the resource.""",
    ),
    "networkSecurityGroups": (
        "InUseNetworkSecurityGroupCannotBeDeleted",
        "Network security group {0} cannot be deleted because it is in use by {1}.",
    ),
    "virtualNetworks": (
        "InUseSubnetCannotBeDeleted",
        "Subnet qft is in use by {1} and cannot be deleted. ({0})",
    ),
    "networkInterfaces": (
        "NicInUse",
        "Network Interface {0} is used by existing resource {1}.",
    ),
}


def reserved(resource: Resource, world: World) -> bool:
    """Whether a card is still held for a machine that failed or went."""
    return float(resource.hidden.get("reserved_until", 0)) > world.now()


def reserved_error(id_: str, world: World) -> ArmError:
    """ARM's words for it."""
    found = world.find(id_)
    owner = found.hidden.get("reserved_for", "") if found else ""
    return ArmError(
        400,
        "NicReservedForAnotherVm",
        "Nic(s) in request is reserved for another Virtual Machine for 180 seconds. Please provide "
        f"another nic(s) or retry after 180 seconds. Reserved VM: {owner}",
    )


def _rule(world: World, base: str, request: Request, route: Route) -> Reply:
    """One rule of a firewall, read or replaced."""
    firewall = world.need(id_of(route.group, "networkSecurityGroups", route.names[0]))
    rules: list[dict[str, Any]] = firewall.properties.setdefault("securityRules", [])
    name = route.names[1]
    found = next((one for one in rules if one["name"].lower() == name.lower()), None)
    if request.method == "GET":
        if found is None:
            raise ArmError(404, "NotFound", f"Security rule '{name}' was not found.")
        return Reply(body=found)
    check(request.body, models.SecurityRule, models)
    _check_rule(request.body.get("properties") or {}, name)
    made = {
        "id": f"{firewall.id}/securityRules/{name}",
        "name": name,
        "properties": {**request.body["properties"], "provisioningState": "Succeeded"},
    }
    firewall.properties["securityRules"] = [one for one in rules if one is not found] + [made]
    operation = world.operation("network")
    world.after(MAKE_S, lambda: operation.end(world.now()))
    return accepted(world, operation, base, made, status=200 if found else 201)
