"""One AWS provider in a simulated account, as the contract suite and the other tests hold it."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import botocore.session
from botocore.client import ClientCreator
from botocore.config import Config
from botocore.model import ServiceModel

from ec2.cloud import Ec2Cloud
from ec2.killing import Killer
from ec2.models import LOADER, named_model
from ec2.regions import REGIONS
from infra.aws.provider import AwsProvider
from infra.aws.sdk import AwsClients
from infra.aws.settings import AwsSettings
from infra.offer import Offer
from infra.provider import VmSpec

T4 = "g4dn.xlarge"
A10G = "g5.xlarge"
ZONE = "us-east-1a"
HOST_PRIVATE = (
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEthrowaway\n"
    "-----END OPENSSH PRIVATE KEY-----\n"
)
HOST_PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHosthosthosthosthosthosthosthosthosthost qft"
USER_PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIUseruseruseruseruseruseruseruseruseruser me"


_make_class = ClientCreator._create_client_class
_classes: dict[str, type] = {}
"""The class of each service's clients, with a method for each of its hundreds of operations."""


def _client_class(creator: ClientCreator, service: str, model: ServiceModel) -> type:
    """The class that botocore makes anew for every client: 14 ms of CPU for EC2, always alike."""
    if service not in _classes:
        _classes[service] = _make_class(creator, service, model)
    return _classes[service]


def _service_model(_creator: ClientCreator, service: str, _version: str | None = None) -> Any:
    """The model of a service, which botocore also makes anew for every client."""
    return named_model(service)


class AwsHarness:
    """Makes providers that share an account, a clock and a computer's memory."""

    regions = ("us-east-1", "us-west-2")

    def __init__(self, cloud: Ec2Cloud, state_dir: Path) -> None:
        self.cloud = cloud
        self.state_dir = state_dir
        self.clock = cloud.clock
        self.clock_ahead_s = 0.0
        """How wrong the clock of the computer is on which qft runs."""
        self.made: list[AwsProvider] = []
        self._shared: dict[tuple[Any, ...], Any] = {}
        self.killer: Killer | None = None
        """What kills the providers made from now on."""
        self.changes: dict[str, Any] = {}
        """Settings of providers made from now on."""

    def settings(self, **changes: Any) -> AwsSettings:
        """The account's settings, with simulated time where the SDK's would be real."""
        base = AwsSettings.from_environment(self.cloud.environment())
        return dataclasses.replace(base, **{"polling_s": 5.0, **changes})

    def clients(self, *, killer: Killer | None = None, **changes: Any) -> AwsClients:
        """The calls of one process; one that a `killer` watches dies where it says."""

        def open_session() -> botocore.session.Session:
            session = botocore.session.Session()
            session.register_component("data_loader", LOADER)
            if killer is not None:
                killer.watch(session)
            else:
                session.create_client = partial(self._shared_client, session.create_client)
            return session

        return AwsClients(self.settings(**changes), open_session=open_session)

    def _shared_client(
        self, make: Callable[..., Any], service: str, *, region_name: str, config: Config
    ) -> Any:
        """A client that all sessions of the same keys share: making one costs CPU."""
        keys = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_PROFILE")
        key = (service, region_name, config.retries["total_max_attempts"], *keys)
        if key not in self._shared:
            self._shared[key] = make(service, region_name=region_name, config=config)
        return self._shared[key]

    def provider(
        self, *, state_dir: Path | None = None, killer: Killer | None = None
    ) -> AwsProvider:
        """A new provider; of another computer if given another `state_dir`."""
        made = AwsProvider(
            self.settings(**self.changes),
            state_dir or self.state_dir,
            clock=self.now,
            sleep=self.advance,
            clients=self.clients(killer=killer or self.killer, **self.changes),
        )
        self.made.append(made)
        return made

    def now(self) -> float:
        """The time as the computer knows it on which qft runs."""
        return self.clock.now() + self.clock_ahead_s

    def advance(self, seconds: float) -> None:
        """Let simulated time pass, and happen what is due meanwhile."""
        self.clock.sleep(seconds)
        self.cloud.world.run_due()

    def set_capacity(self, region: str, *, free: bool) -> None:
        """Fill a region up, or empty it."""
        for zone in REGIONS[region].zones:
            if free:
                self.cloud.market.empty(zone)
            else:
                self.cloud.market.fill(zone)

    def set_price(self, region: str, usd_per_h: float) -> None:
        """Move the spot price of every size in a region."""
        self.cloud.set_region_price(region, usd_per_h)

    def foreign_rules(self) -> list[tuple[str, dict[str, Any]]]:
        """The rules that let in anybody but this computer by SSH and machines of the same group.

        Each with the name of its group, as EC2 keeps them; there should be none.
        """
        caller = str(ipaddress.ip_network(self.cloud.caller))
        ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIp": caller}
        return [
            (one.name, rule)
            for one in self.cloud.world.groups.values()
            for rule in one.ingress
            if {**rule, "Description": ""} != {**ssh, "Description": ""}
            and (rule["IpProtocol"], rule.get("GroupId")) != ("-1", one.id)
        ]

    def shared_rules(self) -> list[str]:
        """The names of the groups whose machines reach each other, one for each such rule."""
        return [
            one.name
            for one in self.cloud.world.groups.values()
            for rule in one.ingress
            if rule.get("GroupId") == one.id
        ]

    def close(self) -> None:
        """Let go of connections."""
        for one in self.made:
            one.close()


@contextmanager
def aws(state_dir: Path, **options: Any) -> Iterator[AwsHarness]:
    """A fresh account with a harness around it, and its environment in this process.

    The pauses of the SDK between its own attempts pass in simulated time.
    """
    with Ec2Cloud(**options) as cloud, mock.patch.dict(os.environ, cloud.environment()):
        os.environ.pop("AWS_PROFILE", None)
        os.environ.pop("AWS_SESSION_TOKEN", None)
        harness = AwsHarness(cloud, state_dir)
        paused = SimpleNamespace(sleep=harness.advance)
        with (
            mock.patch("botocore.endpoint.time", paused),
            mock.patch.object(ClientCreator, "_create_client_class", _client_class),
            mock.patch.object(ClientCreator, "_load_service_model", _service_model),
        ):
            try:
                yield harness
            finally:
                harness.close()


def spec(**changes: Any) -> VmSpec:
    """A request for one T4 in a zone of us-east-1 under a cap of 0.30 USD/h."""
    zone = changes.pop("zone", ZONE)
    offer = Offer(
        provider="aws",
        region=changes.pop("region", zone[:-1]),
        size=changes.pop("size", T4),
        zone=zone,
        spot_usd_per_h=0.18936,
    )
    base = VmSpec(
        run_id="run-a",
        generation=1,
        offer=offer,
        max_price_usd_per_h=0.30,
        public_key=USER_PUBLIC,
        host_private_key=HOST_PRIVATE,
        host_public_key=HOST_PUBLIC,
        labels={"name": "toxic phi"},
    )
    return dataclasses.replace(base, **changes)
