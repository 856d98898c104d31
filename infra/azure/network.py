"""Creates the network of one machine: only the caller's address reaches it, and only port 22."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.azure.context import AzureContext
from infra.azure.naming import NSG, PUBLIC_IP, VNET, Names
from infra.errors import Gone, Transient
from infra.renting.run_record import RunRecord

if TYPE_CHECKING:
    from infra.azure.sdk import Operation

RULE = "ssh-from-caller"
SUBNET = "qft"
NETWORK_WAIT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class NetworkCreator:
    """Creates the parts of a network, each taken up again where a killed process left it."""

    context: AzureContext

    def create(
        self,
        record: RunRecord,
        names: Names,
        *,
        region: str,
        tags: dict[str, str],
        source: str,
    ) -> None:
        """Create the network that admits `source`; what exists already is made to fit."""
        client = self.context.arm.network
        record.caller, record.caller_at = source, self.context.clock()
        parts = [
            Part(
                key="firewall",
                name=names.nsg,
                client=client.network_security_groups,
                body=nsg(region=region, tags=tags, source=source),
            ),
            Part(
                key="network",
                name=names.vnet,
                client=client.virtual_networks,
                body=vnet(region=region, tags=tags),
            ),
            Part(
                key="address",
                name=names.public_ip,
                client=client.public_ip_addresses,
                body=public_ip(region=region, tags=tags),
            ),
        ]
        waiting = [(part.key, self._begin_part(record, names, part)) for part in parts]
        for key, operation in waiting:
            self._wait(record, key, operation)
        interface = Part(
            key="card",
            name=names.nic,
            client=client.network_interfaces,
            body=nic(
                region=region,
                tags=tags,
                subnet_id=f"{names.id_of(VNET, names.vnet)}/subnets/{SUBNET}",
                public_ip_id=names.id_of(PUBLIC_IP, names.public_ip),
                nsg_id=names.id_of(NSG, names.nsg),
            ),
        )
        self._wait(record, "card", self._begin_part(record, names, interface))

    def _begin_part(self, record: RunRecord, names: Names, part: Part) -> Operation:
        def begin(token: str) -> Operation:
            more = {"continuation_token": token} if token else {}
            return self.context.arm.begin(
                f"make the {part.key}",
                part.client.begin_create_or_update,
                names.group,
                part.name,
                part.body,
                **more,
            )

        return self.context.begin_or_resume(record, part.key, begin)

    def _wait(self, record: RunRecord, key: str, operation: Operation) -> None:
        try:
            done = self.context.wait(record, key, operation, wait_s=NETWORK_WAIT_S)
        except Gone as error:  # the operation's page expired: the PUT is repeated, harmlessly
            self.context.clear_tokens(record, key)
            raise Transient(f"Azure forgot how making the {key} went: it is asked again") from error
        if not done:
            raise Transient(f"Azure has been making the {key} for {NETWORK_WAIT_S:.0f} s")
        self.context.clear_tokens(record, key)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the network: its name, the client that creates it, and the request body."""

    key: str
    name: str
    client: Any
    body: dict[str, Any]


def nsg(*, region: str, tags: dict[str, str], source: str) -> dict[str, Any]:
    """Build the network security group: SSH from `source`, nothing else from outside."""
    return {"location": region, "tags": tags, "properties": {"securityRules": [rule(source)]}}


def rule(source: str) -> dict[str, Any]:
    """Build the one rule that admits the caller."""
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
    """Build a virtual network with one subnet; the security group is at the network interface.

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
    """Build a static Standard address, which survives deallocation (and bills while it exists)."""
    return {
        "location": region,
        "tags": tags,
        "sku": {"name": "Standard"},
        "properties": {"publicIPAllocationMethod": "Static", "publicIPAddressVersion": "IPv4"},
    }


def nic(
    *, region: str, tags: dict[str, str], subnet_id: str, public_ip_id: str, nsg_id: str
) -> dict[str, Any]:
    """Build the network interface; its address is deleted with the machine that has it."""
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
