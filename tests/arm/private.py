"""The private side of simulated networks: addresses in a subnet, and what a firewall admits.

From the SDK's models and Microsoft's pages on private addresses and on network security groups: the
first four addresses of a subnet are Azure's and the last is for broadcasts; a dynamic address stays
with its interface until that is deleted; every security group has default rules of its own.
"""

from __future__ import annotations

import copy
import ipaddress
from typing import Any

from arm.replies import ArmError
from arm.world import Resource, World

FIRST_FREE = 4
INSIDE = "VirtualNetwork"
PRIORITY_MAX = 65500


def _default(name: str, priority: int, access: str, source: str, target: str) -> dict[str, Any]:
    return {
        "name": name,
        "properties": {
            "protocol": "*",
            "direction": "Inbound",
            "access": access,
            "priority": priority,
            "sourceAddressPrefix": source,
            "sourcePortRange": "*",
            "destinationAddressPrefix": target,
            "destinationPortRange": "*",
        },
    }


DEFAULT_RULES = (
    _default("AllowVnetInBound", 65000, "Allow", INSIDE, INSIDE),
    _default("AllowAzureLoadBalancerInBound", 65001, "Allow", "AzureLoadBalancer", "*"),
    _default("DenyAllInBound", PRIORITY_MAX, "Deny", "*", "*"),
)


def completed(
    world: World, body: dict[str, Any], type_: str, id_: str, found: Resource | None
) -> dict[str, Any]:
    """The properties of a network resource with what Azure adds to those that were sent."""
    properties: dict[str, Any] = copy.deepcopy(body.get("properties") or {})
    if type_ == "networkSecurityGroups":
        return properties | {"defaultSecurityRules": list(DEFAULT_RULES)}
    if type_ == "virtualNetworks" and found is not None:
        _check_subnets(world, properties, found)
    if type_ == "networkInterfaces":
        held = addresses_of(found) if found is not None else []
        for index, one in enumerate(properties.get("ipConfigurations") or []):
            inner = one["properties"]
            inner.setdefault("privateIPAllocationMethod", "Dynamic")
            kept = held[index] if index < len(held) else ""
            inner["privateIPAddress"] = kept or _next_free(world, inner["subnet"]["id"], id_)
    return properties


def addresses_of(card: Resource) -> list[str]:
    """The private addresses of an interface."""
    configurations = card.properties.get("ipConfigurations") or []
    return [str(one["properties"].get("privateIPAddress") or "") for one in configurations]


def cards_in(world: World, network: str) -> list[Resource]:
    """The interfaces in a network, or in one of its subnets."""
    return [
        one
        for one in world.resources.values()
        if one.type.endswith("/networkInterfaces")
        and any(
            f"{inner['properties']['subnet']['id']}/".lower().startswith(f"{network}/".lower())
            for inner in one.properties.get("ipConfigurations") or []
        )
    ]


def _next_free(world: World, subnet_id: str, id_: str) -> str:
    """The next address of a subnet that no interface has."""
    network_id, _, name = subnet_id.partition("/subnets/")
    network = world.need(network_id)
    (subnet,) = [one for one in network.properties["subnets"] if one["name"] == name]
    taken = {address for one in cards_in(world, subnet_id) for address in addresses_of(one)}
    prefix = ipaddress.ip_network(subnet["properties"]["addressPrefix"])
    for address in list(prefix)[FIRST_FREE:-1]:
        if str(address) not in taken:
            return str(address)
    raise ArmError(
        400,
        "SubnetIsFull",
        f"Subnet {name} does not have enough capacity for 1 IP addresses: {id_}",
    )


def _check_subnets(world: World, properties: dict[str, Any], found: Resource) -> None:
    """A network that is written again keeps the subnets in which interfaces are."""
    named = {one["name"] for one in properties.get("subnets") or []}
    for one in found.properties.get("subnets") or []:
        users = cards_in(world, f"{found.id}/subnets/{one['name']}")
        if users and one["name"] not in named:
            raise ArmError(
                400,
                "InUseSubnetCannotBeDeleted",
                f"Subnet {one['name']} is in use by {users[0].id} and cannot be deleted.",
            )


def not_provisioned(resource: Resource) -> ArmError:
    """What an interface gets whose network is being written at that moment."""
    message = (
        f"Cannot proceed with operation because resource {resource.id} is not in Succeeded state. "
        "Resource is in Updating state and the last operation that updated/is updating the "
        "resource is PutVirtualNetworkOperation."
    )
    return ArmError(
        429,
        "RetryableError",
        "A retryable error occured.",
        details=[{"code": "ReferencedResourceNotProvisioned", "message": message}],
    )


def admits(world: World, card: Resource, *, source: str, port: int) -> bool:
    """Whether a packet from that address reaches that port of an interface, by its firewall.

    The rule with the lowest priority that fits decides. A source is inside if it is an address of
    the interface's network.
    """
    (first, *_) = card.properties["ipConfigurations"]
    network = first["properties"]["subnet"]["id"].partition("/subnets/")[0]
    inside = any(source in addresses_of(one) for one in cards_in(world, network))
    firewall = world.need(card.properties["networkSecurityGroup"]["id"])
    rules = [
        one["properties"]
        for key in ("securityRules", "defaultSecurityRules")
        for one in firewall.properties.get(key) or []
        if one["properties"]["direction"] == "Inbound"
    ]
    for rule in sorted(rules, key=lambda one: int(one["priority"])):
        if _is_from(rule["sourceAddressPrefix"], source, inside=inside) and _is_port(
            rule["destinationPortRange"], port
        ):
            return bool(rule["access"] == "Allow")
    return False


def _is_from(prefix: str, source: str, *, inside: bool) -> bool:
    if prefix in {"*", "Internet"}:
        return prefix == "*" or not inside
    if prefix in {INSIDE, "AzureLoadBalancer"}:
        return prefix == INSIDE and inside
    return ipaddress.ip_address(source) in ipaddress.ip_network(prefix)


def _is_port(ports: str, port: int) -> bool:
    first, _, last = ports.partition("-")
    return ports == "*" or int(first) <= port <= int(last or first)
