"""One Azure provider in a simulated cloud, as the contract suite and the other tests hold it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from azure.core.credentials import SupportsTokenInfo

from arm import private
from arm.cloud import Cloud
from arm.market import SIZES
from infra.azure import AzureProvider, AzureSettings
from infra.azure.credentials import chain
from infra.azure.sdk import Arm
from infra.offer import Offer
from infra.provider import Vm, VmSpec

T4 = "Standard_NC4as_T4_v3"
HOST_PRIVATE = (
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEthrowaway\n"
    "-----END OPENSSH PRIVATE KEY-----\n"
)
HOST_PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHosthosthosthosthosthosthosthosthosthost qft"
USER_PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIUseruseruseruseruseruseruseruseruseruser me"


class AzureHarness:
    """Makes providers that share a cloud, a clock and a computer's memory."""

    regions = ("eastus", "westus2")

    def __init__(self, cloud: Cloud, state_dir: Path) -> None:
        self.cloud = cloud
        self.state_dir = state_dir
        self.credential = chain()
        self.clock_ahead_s = 0.0
        """How wrong the clock of the computer is on which qft runs."""
        self.made: list[AzureProvider] = []
        self.changes: dict[str, Any] = {}
        """Settings of providers made from now on."""

    def settings(self, **changes: Any) -> AzureSettings:
        """The cloud's settings, with small patience where real time is waited for."""
        base = AzureSettings.from_environment(self.cloud.environment())
        return dataclasses.replace(base, polling_s=5.0, **changes)

    def provider(self, *, state_dir: Path | None = None, transport: Any = None) -> AzureProvider:
        """A new provider; of another computer if given another `state_dir`."""
        settings = self.settings(**self.changes)
        arm = Arm(
            settings,
            sleep=self.advance,
            clock=self.now,
            credential=lambda: Shared(self.credential),
            transport=transport,
        )
        made = AzureProvider(
            settings,
            state_dir or self.state_dir,
            clock=self.now,
            sleep=self.advance,
            arm=arm,
        )
        self.made.append(made)
        return made

    def now(self) -> float:
        """The time as the computer knows it on which qft runs."""
        return self.cloud.clock.now() + self.clock_ahead_s

    def advance(self, seconds: float) -> None:
        """Let simulated time pass."""
        self.cloud.clock.sleep(seconds)

    def set_capacity(self, region: str, *, free: bool) -> None:
        """Fill a region up, or empty it."""
        for size in SIZES:
            if free:
                self.cloud.market.sold_out.pop((size, region), None)
            else:
                self.cloud.market.sold_out[size, region] = "AllocationFailed"

    def set_price(self, region: str, usd_per_h: float) -> None:
        """Move the spot price of every size in a region."""
        for size in SIZES.values():
            self.cloud.set_price(size.name, region, usd_per_h)

    def inbound_rules(self) -> list[tuple[str, str]]:
        """Source and port of every rule that anybody has added to a firewall of this cloud."""
        return [
            (one["properties"]["sourceAddressPrefix"], one["properties"]["destinationPortRange"])
            for firewall in self.cloud.world.resources.values()
            if firewall.type.endswith("/networkSecurityGroups")
            for one in firewall.properties["securityRules"]
        ]

    def admits(self, vm: Vm, *, source: str, port: int) -> bool:
        """Whether a packet from an address reaches a port of a machine."""
        (card,) = [
            one
            for one in self.cloud.world.resources.values()
            if one.hidden.get("vm", "").lower() == vm.id.lower()
        ]
        return private.admits(self.cloud.world, card, source=source, port=port)

    def close(self) -> None:
        """Let go of connections."""
        for one in self.made:
            one.close()
        self.credential.close()


class Shared:
    """A sign-in that outlives whichever provider is closed: making one takes a while."""

    def __init__(self, credential: SupportsTokenInfo) -> None:
        self.get_token_info = credential.get_token_info


@contextmanager
def azure(state_dir: Path, **options: Any) -> Iterator[AzureHarness]:
    """A fresh cloud with a harness around it, and its environment in this process."""
    with Cloud(**options) as cloud, mock.patch.dict(os.environ, cloud.environment()):
        harness = AzureHarness(cloud, state_dir)
        try:
            yield harness
        finally:
            harness.close()


def spec(**changes: Any) -> VmSpec:
    """A request for one T4 in eastus under a cap of 0.25 USD/h."""
    offer = Offer(
        provider="azure",
        region=changes.pop("region", "eastus"),
        size=changes.pop("size", T4),
        zone=changes.pop("zone", ""),
        spot_usd_per_h=0.149174,
    )
    base = VmSpec(
        run_id="run-a",
        generation=1,
        offer=offer,
        max_price_usd_per_h=0.25,
        public_key=USER_PUBLIC,
        host_private_key=HOST_PRIVATE,
        host_public_key=HOST_PUBLIC,
        labels={"name": "toxic phi"},
    )
    return dataclasses.replace(base, **changes)
