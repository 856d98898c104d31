"""The network of one machine: only the caller's address reaches it, and only on port 22."""

from __future__ import annotations

from typing import Any

RULE = "ssh-from-caller"
SUBNET = "qft"


def nsg(*, region: str, tags: dict[str, str], source: str) -> dict[str, Any]:
    """The network security group: SSH from `source`, nothing else from outside."""
    return {"location": region, "tags": tags, "properties": {"securityRules": [rule(source)]}}


def rule(source: str) -> dict[str, Any]:
    """The one rule that admits the caller."""
    return {
        "name": RULE,
        "properties": {
            "description": "SSH from the computer that rented this machine",
            "protocol": "Tcp",
            "direction": "Inbound",
            "access": "Allow",
            "priority": 1000,
            "sourceAddressPrefix": source,
            "sourcePortRange": "*",
            "destinationAddressPrefix": "*",
            "destinationPortRange": "22",
        },
    }


def vnet(*, region: str, tags: dict[str, str]) -> dict[str, Any]:
    """A virtual network with one subnet; the firewall stands at the network card.

    Subnets made with this API version have no way out of their own: the public address is not a
    convenience but what lets the machine install anything.
    """
    return {
        "location": region,
        "tags": tags,
        "properties": {
            "addressSpace": {"addressPrefixes": ["10.42.0.0/24"]},
            "subnets": [{"name": SUBNET, "properties": {"addressPrefix": "10.42.0.0/24"}}],
        },
    }


def public_ip(*, region: str, tags: dict[str, str]) -> dict[str, Any]:
    """A static Standard address, so that it survives deallocation (and bills while it exists)."""
    return {
        "location": region,
        "tags": tags,
        "sku": {"name": "Standard"},
        "properties": {"publicIPAllocationMethod": "Static", "publicIPAddressVersion": "IPv4"},
    }


def nic(
    *, region: str, tags: dict[str, str], subnet_id: str, public_ip_id: str, nsg_id: str
) -> dict[str, Any]:
    """The network card; its address is deleted with the machine that carries it."""
    return {
        "location": region,
        "tags": tags,
        "properties": {
            "networkSecurityGroup": {"id": nsg_id},
            "ipConfigurations": [
                {
                    "name": "main",
                    "properties": {
                        "primary": True,
                        "subnet": {"id": subnet_id},
                        "publicIPAddress": {
                            "id": public_ip_id,
                            "properties": {"deleteOption": "Delete"},
                        },
                    },
                }
            ],
        },
    }
