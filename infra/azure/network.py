"""Creates the network of a run: only the caller's address reaches it, and only port 22.

Several machines of a run share it, and reach each other by the rule that Azure gives every firewall
of its own (`AllowVnetInBound`): no port of theirs is open to anybody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.azure.context import AzureContext
from infra.azure.naming import NSG, PUBLIC_IP, VNET, Names
from infra.catalog.vendor import folded
from infra.errors import BadRequest, Gone, Transient
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
        self._make(record, names, parts)
        self._create_card(record, names, region=region, tags=tags)

    def create_shared(
        self,
        record: RunRecord,
        names: Names,
        *,
        region: str,
        tags: dict[str, str],
        source: str,
    ) -> None:
        """Create what several machines share, where it is not there; the firewall admits `source`.

        What is there is not written again: it may have machines. Raises `BadRequest` for a network
        of another region.
        """
        client = self.context.arm.network
        record.caller, record.caller_at = source, self.context.clock()
        firewall = Part(
            key="firewall",
            name=names.nsg,
            client=client.network_security_groups,
            body=nsg(region=region, tags=tags, source=source),
        )
        network = Part(
            key="network",
            name=names.vnet,
            client=client.virtual_networks,
            body=vnet(region=region, tags=tags),
        )
        found = {part.key: self._made(record, names, part) for part in (firewall, network)}
        self._make(record, names, [one for one in (firewall, network) if not found[one.key]])
        rules = (found["firewall"].get("properties") or {}).get("securityRules") or []
        admitted = [
            (one.get("properties") or {}).get("sourceAddressPrefix")
            for one in rules
            if one.get("name") == RULE
        ]
        if found["firewall"] and admitted != [source]:
            open_for(self.context, names.group, names.nsg, source)

    def create_own(
        self, record: RunRecord, names: Names, *, region: str, tags: dict[str, str]
    ) -> None:
        """Create the address and the card of one machine in the network that is there."""
        address = Part(
            key="address",
            name=names.public_ip,
            client=self.context.arm.network.public_ip_addresses,
            body=public_ip(region=region, tags=tags),
        )
        self._make(record, names, [address])
        self._create_card(record, names, region=region, tags=tags)

    def _create_card(
        self, record: RunRecord, names: Names, *, region: str, tags: dict[str, str]
    ) -> None:
        interface = Part(
            key="card",
            name=names.nic,
            client=self.context.arm.network.network_interfaces,
            body=nic(
                region=region,
                tags=tags,
                subnet_id=f"{names.id_of(VNET, names.vnet)}/subnets/{SUBNET}",
                public_ip_id=names.id_of(PUBLIC_IP, names.public_ip),
                nsg_id=names.id_of(NSG, names.nsg),
            ),
        )
        self._make(record, names, [interface])

    def _make(self, record: RunRecord, names: Names, parts: Sequence[Part]) -> None:
        """Create parts at once, and wait for all of them."""
        waiting = [(part.key, self._begin_part(record, names, part)) for part in parts]
        for key, operation in waiting:
            self._wait(record, key, operation)

    def _made(self, record: RunRecord, names: Names, part: Part) -> dict[str, Any]:
        """A shared part that is there, once nobody is making it any more; empty if it is to be."""
        if part.key in record.tokens:
            return {}  # this machine's own create was making it
        deadline = self.context.clock() + NETWORK_WAIT_S
        while True:
            try:
                found = self.context.arm.call(
                    f"look at the {part.key}", part.client.get, names.group, part.name
                )
            except Gone:
                return {}
            if folded(str(found.get("location") or "")) != folded(part.body["location"]):
                raise BadRequest(
                    f"the machines of `{names.run_id}` are in {found.get('location')}: another one "
                    f"in {part.body['location']} could not reach them",
                    hint="all machines of a run are rented in one region",
                )
            state = str((found.get("properties") or {}).get("provisioningState") or "").lower()
            if state in {"succeeded", ""}:
                return dict(found)
            if state in {"failed", "canceled"}:
                return {}
            if self.context.clock() >= deadline:
                raise Transient(f"Azure has been making the {part.key} for {NETWORK_WAIT_S:.0f} s")
            self.context.sleep(self.context.settings.polling_s)

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


def open_for(context: AzureContext, group: str, firewall: str, source: str) -> None:
    """Let `source`, and nobody else, through a firewall that is there."""
    rules = context.arm.network.security_rules
    operation = context.arm.begin(
        f"let {source} through the firewall",
        rules.begin_create_or_update,
        group,
        firewall,
        RULE,
        {"properties": rule(source)["properties"]},
    )
    if not operation.wait(wait_s=context.settings.accept_wait_s):
        raise Transient("Azure is still changing the firewall")


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
