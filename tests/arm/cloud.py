"""The simulated Azure as a test holds it: one object with the cloud's state and its environment."""

from __future__ import annotations

import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from arm import facts, roles, vm_power
from arm.clock import EPOCH_S, SimClock
from arm.dispatch import dispatch
from arm.disruptions import Disruptions
from arm.hypervisor import LocalHypervisor
from arm.ledger import Ledger
from arm.login import CLIENT, TENANT, Login
from arm.market import Market
from arm.replies import ArmError, Reply, Request
from arm.server import Server
from arm.world import SUBSCRIPTION, Resource, World
from infra.azure import permissions
from infra.renting.gather import GATHER_THREAD

CALLER = "203.0.113.7"
LATE_S_MAX = 30.0


@dataclass
class Cloud:
    """An Azure of one's own: `with Cloud() as cloud: …`.

    With `pace` 0 time stands still unless somebody calls `cloud.clock.sleep`; with another pace
    it runs that much faster than outside, for clients that really sleep.
    """

    pace: float = 0.0
    registered: bool = True
    """False plays a subscription on which nothing was ever used."""
    market: Market = field(default_factory=Market)
    disruptions: Disruptions = field(default_factory=Disruptions)
    login: Login = field(default_factory=Login)
    hypervisor: vm_power.Hypervisor = field(default_factory=vm_power.NoHypervisor)
    caller: str = CALLER
    """What the address page answers."""

    def __enter__(self) -> Self:
        start_s = time.time() if self.pace else EPOCH_S
        self.clock = SimClock(pace=self.pace, start_s=start_s)
        self.world = World(self.clock, self.market)
        self.world.hypervisor = self.hypervisor
        for namespace in ("microsoft.compute", "microsoft.network", "microsoft.devtestlab"):
            self.world.providers[namespace] = "Registered" if self.registered else "NotRegistered"
        self._directory = tempfile.TemporaryDirectory(prefix="sim-azure-")
        home = Path(self._directory.name)
        self.server = Server(self._answer, self.disruptions, directory=home, now=self.clock.now)
        self.server.open()
        if isinstance(self.hypervisor, LocalHypervisor):
            self.hypervisor.identity = self._identity
            self.hypervisor.on_power_off = self._powered_off
            self.hypervisor.environ = {"SSL_CERT_FILE": str(self.server.ca_file)}
        return self

    def __exit__(self, *_: object) -> None:
        # A late question that meets the closing is reset between `connect` and the TLS handshake:
        # Python 3.11 then forgets to close its socket, and warns of it in some later test.
        for thread in threading.enumerate():
            if thread.name in {GATHER_THREAD, permissions.THREAD}:
                thread.join(LATE_S_MAX)
        self.server.close()
        if isinstance(self.hypervisor, LocalHypervisor):
            self.hypervisor.close()
        self._directory.cleanup()

    # ---- what a test reads ----

    @property
    def ledger(self) -> Ledger:
        """What bills and what has been run up."""
        self.world.run_due()
        return self.world.ledger

    @property
    def requests(self) -> list[Request]:
        """Every request so far, in order."""
        return [request for request, _ in self.server.recorded]

    def leftovers(self) -> list[str]:
        """The id of everything that exists, groups included."""
        self.world.run_due()
        return sorted(
            [one.id for one in self.world.resources.values()]
            + [one.id for one in self.world.groups.values()]
        )

    def machines(self) -> list[Resource]:
        """The machines that exist."""
        self.world.run_due()
        return [r for r in self.world.resources.values() if r.type.endswith("/virtualMachines")]

    def set_price(self, size: str, region: str, usd_per_h: float) -> None:
        """Move a spot price; machines whose cap it exceeds are taken away."""
        self.market.prices[size.lower(), region] = usd_per_h
        for vm in self.machines():
            sold = vm.properties["hardwareProfile"]["vmSize"].lower() == size.lower()
            cap = float((vm.properties.get("billingProfile") or {}).get("maxPrice", -1))
            if sold and vm.location == region and vm.properties["priority"] == "Spot":
                vm_power.bill(self.world, vm)
                if cap != -1 and usd_per_h > cap:
                    self.evict(vm, words="The spot price is above the max price.")

    def evict(
        self, vm: Resource, *, notice_s: float = 30.0, leaving_s: float = 0.0, words: str = ""
    ) -> None:
        """Take a machine away as the market does."""
        vm_power.evict(self.world, vm, notice_s=notice_s, leaving_s=leaving_s, words=words)

    def environment(self) -> dict[str, str]:
        """What a qft process needs in its environment to live in this cloud."""
        inside = {}
        if isinstance(self.hypervisor, LocalHypervisor):
            inside["QFT_AZURE_SSH_PORT"] = str(self.hypervisor.ssh_port)
            inside["QFT_IMDS_ENDPOINT"] = self.hypervisor.metadata_url
        return inside | {
            "QFT_ARM_ENDPOINT": self.server.base,
            "QFT_AZURE_PRICES_ENDPOINT": self.server.base,
            "QFT_ADDRESS_ENDPOINT": f"{self.server.base}/address",
            "QFT_AZURE_POLLING_S": "0.05",
            "QFT_AZURE_OFFERS_WAIT_S": "60",  # a busy computer takes what it takes
            "REQUESTS_CA_BUNDLE": str(self.server.ca_file),
            "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION,
            "AZURE_TOKEN_CREDENTIALS": "EnvironmentCredential",
            "AZURE_AUTHORITY_HOST": self.server.base,
            "AZURE_TENANT_ID": TENANT,
            "AZURE_CLIENT_ID": CLIENT,
            "AZURE_CLIENT_SECRET": self.login.client_secret,
        }

    # ---- the front ----

    def _identity(self, request: Request, vm_id: str) -> Reply:
        """A token of a machine's own identity, if it has one."""
        with self.world.lock:
            return self.login.identity(request, roles.principal_of(self.world, vm_id))

    def _powered_off(self, vm_id: str) -> None:
        """A machine has shut itself down: it is `stopped`, and goes on billing."""
        with self.world.lock:
            vm = self.world.find(vm_id)
            if vm is not None and vm.hidden["power"] == "running":
                vm_power.set_power(self.world, vm, "stopped")

    def _answer(self, request: Request) -> Reply:
        with self.world.lock:
            self.world.run_due()
            try:
                return self._page(request)
            except ArmError as error:
                return error.reply()

    def _page(self, request: Request) -> Reply:
        base = self.server.base
        if request.path == "/address":
            return Reply(body=self.caller)
        if request.path == "/api/retail/prices":
            return facts.prices(self.world, base, request)
        if request.path.startswith(f"/{TENANT}/"):
            return self.login.handle(base, request)
        if request.path == "/metadata/identity/oauth2/token":
            (latest,) = self.world.machines_made[-1:] or [""]
            return self.login.identity(request, roles.principal_of(self.world, latest))
        if request.path == "/metadata/instance/compute":
            return Reply(body={"resourceId": self.world.machines_made[-1]})
        self.login.check(request)
        token = request.header("authorization").removeprefix("Bearer ")
        if token in self.login.own_tokens:
            self.world.caller = self.login.own_tokens[token]
            roles.check_own(self.world, request, self.world.caller)
        else:
            self.world.caller = "a@b.example"
        return dispatch(self.world, base, request)
