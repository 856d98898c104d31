"""The simulated AWS as a test holds it: one object with the account's state and its environment."""

from __future__ import annotations

import threading
import time
import traceback
from dataclasses import dataclass, field
from typing import Self

from arm.clock import EPOCH_S, SimClock
from arm.disruptions import Disruptions

from ec2 import alarms, schedules, spot_lifecycle
from ec2.access import check_caller
from ec2.dispatch import perform
from ec2.furnishing import furnish
from ec2.guests import Ec2Guests
from ec2.hypervisor import Hypervisor, NoHypervisor
from ec2.ledger import Ec2Ledger
from ec2.market import Market
from ec2.pages import advisor_page
from ec2.protocols import Signature, decode, encode, encode_error, operation_of, read_signature
from ec2.regions import REGIONS, SIZES
from ec2.replies import ApiCall, AwsError, HttpReply, HttpRequest
from ec2.resources import Instance, SpotRequest
from ec2.server import Server
from ec2.spot_lifecycle import BY_PRICE, NO_CAPACITY
from ec2.state import KEY_ID, SECRET_KEY, Timing
from ec2.world import World
from infra.renting.gather import GATHER_THREAD

CALLER = "203.0.113.7"
LATE_S_MAX = 30.0


@dataclass
class Ec2Cloud:
    """An AWS of one's own: `with Ec2Cloud() as cloud: …`.

    With `pace` 0 time stands still unless somebody calls `cloud.clock.sleep`; with another pace
    it runs that much faster than outside, for clients that really sleep. A defect of the
    simulator itself, such as an answer that botocore's model does not have, raises when it closes.
    """

    pace: float = 0.0
    default_vpc: bool = True
    """False plays an account that deleted its default networks."""
    market: Market = field(default_factory=Market)
    timing: Timing = field(default_factory=Timing)
    disruptions: Disruptions = field(default_factory=Disruptions)
    hypervisor: Hypervisor = field(default_factory=NoHypervisor)
    caller: str = CALLER
    """What the address page answers."""

    def __enter__(self) -> Self:
        start_s = time.time() if self.pace else EPOCH_S
        self.clock = SimClock(pace=self.pace, start_s=start_s)
        self.world = World(
            clock=self.clock, market=self.market, timing=self.timing, hypervisor=self.hypervisor
        )
        furnish(self.world, default_vpc=self.default_vpc)
        spot_lifecycle.attach(self.world)
        schedules.attach(self.world, perform)
        if isinstance(self.hypervisor, Ec2Guests):
            self.hypervisor.attach(self.world)
        self.requests: list[ApiCall] = []
        """Every call that was understood so far, in order."""
        self.defects: list[str] = []
        """What went wrong in the simulator itself."""
        self.server = Server(self._answer, _route, self.disruptions, now=self.clock.now)
        self.server.open()
        return self

    def __exit__(self, *_: object) -> None:
        # A late question that meets the closing would find nobody, and say so in some later test.
        for thread in threading.enumerate():
            if thread.name == GATHER_THREAD:
                thread.join(LATE_S_MAX)
        self.server.close()
        if isinstance(self.hypervisor, Ec2Guests):
            self.hypervisor.close()
        if self.defects:
            raise AssertionError("the simulated AWS failed: " + "\n".join(self.defects))

    # ---- what a test reads ----

    @property
    def ledger(self) -> Ec2Ledger:
        """What bills and what has been run up."""
        self.world.run_due()
        return self.world.ledger

    def machines(self) -> list[Instance]:
        """The machines that exist: those not terminated, oldest first."""
        self.world.run_due()
        found = self.world.instances.values()
        return [one for one in found if one.state != "terminated"]

    def spot_requests(self) -> list[SpotRequest]:
        """The spot requests that can still launch something."""
        self.world.run_due()
        return [one for one in self.world.requests.values() if one.is_live]

    def leftovers(self) -> list[str]:
        """The id of everything that a user made and that still exists, free or not."""
        self.world.run_due()
        world = self.world
        groups = [one.id for one in world.groups.values() if one.name != "default"]
        ids = [one.id for one in (*self.machines(), *self.spot_requests())]
        watching = [*schedules.names(world), *alarms.names(world)]
        return sorted([*ids, *world.volumes, *world.interfaces, *groups, *watching])

    def calls(self, operation: str) -> list[ApiCall]:
        """The calls of one operation so far."""
        return [one for one in self.requests if one.operation == operation]

    # ---- what a test turns ----

    def set_price(self, size: str, zone: str, usd_per_h: float, *, notice_s: float = 120.0) -> None:
        """Move a spot price; machines whose cap it exceeds are interrupted."""
        with self.world.lock:
            self.world.run_due()
            self.market.set_price(size, zone, usd_per_h, at_s=self.world.now())
            for one in self.machines():
                request = self.world.request_of(one)
                if (one.size, one.zone) != (size, zone) or request is None:
                    continue
                if one.state == "running":
                    self.world.ledger.start_compute(one.id, usd_per_h)
                if request.cap is not None and usd_per_h > request.cap:
                    spot_lifecycle.interrupt(self.world, one, kind=BY_PRICE, notice_s=notice_s)

    def set_region_price(self, region: str, usd_per_h: float) -> None:
        """Move the spot price of every size in every zone of a region."""
        for zone in REGIONS[region].zones:
            for size in SIZES:
                if REGIONS[region].sells(size, zone):
                    self.set_price(size, zone, usd_per_h)

    def interrupt(
        self, machine: Instance, *, notice_s: float = 120.0, kind: str = NO_CAPACITY
    ) -> None:
        """Take a machine away as EC2 does; `kind` is `no-capacity`, `by-price`, `by-experiment`."""
        with self.world.lock:
            self.world.run_due()
            spot_lifecycle.interrupt(self.world, machine, kind=kind, notice_s=notice_s)

    def rebalance(self, machine: Instance) -> None:
        """Recommend to a machine to rebalance: it may be interrupted before long."""
        with self.world.lock:
            machine.rebalance_s = self.world.now()

    def shut_down_inside(self, machine: Instance) -> None:
        """Switch a machine off from within, as its program `shutdown` does."""
        with self.world.lock:
            self.world.run_due()
            self.world.shut_down_inside(machine.id)

    def terminate_behind(self, machine: Instance) -> None:
        """Terminate a machine without cancelling its request, as somebody in the console does."""
        with self.world.lock:
            self.world.run_due()
            self.world.terminate_instance(machine.id, reason_code="Client.UserInitiatedShutdown")

    def deny(self, *actions: str) -> None:
        """Take rights from the user, such as `ec2:RunInstances` or `scheduler:*`."""
        self.world.denied |= set(actions)

    def allow(self, *actions: str) -> None:
        """Give back rights that `deny` took."""
        self.world.denied -= set(actions)

    def forget_spot_role(self) -> None:
        """Play an account that never used spot machines, for a user who may not make their role."""
        self.world.has_spot_role = False
        self.deny("iam:CreateServiceLinkedRole")

    def expire_credentials(self) -> None:
        """End the session whose keys are in the environment."""
        self.world.expired_keys.add(KEY_ID)

    def renew_credentials(self) -> None:
        """Let the keys in the environment be valid again."""
        self.world.expired_keys.discard(KEY_ID)

    def environment(self) -> dict[str, str]:
        """What a qft process needs in its environment to live in this cloud."""
        inside = {}
        if isinstance(self.hypervisor, Ec2Guests):
            inside["QFT_AWS_SSH_PORT"] = str(self.hypervisor.ssh_port)
            inside["QFT_AWS_IMDS_ENDPOINT"] = self.hypervisor.metadata_url
        return inside | {
            "AWS_ENDPOINT_URL": self.server.base,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/nonexistent/config",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent/credentials",
            "QFT_AWS_ADVISOR_ENDPOINT": f"{self.server.base}/spot-advisor-data.json",
            "QFT_ADDRESS_ENDPOINT": f"{self.server.base}/address",
            "QFT_AWS_POLLING_S": "0.05",
            "QFT_AWS_OFFERS_WAIT_S": "60",  # a busy computer takes what it takes
        }

    # ---- the front ----

    def _answer(self, request: HttpRequest) -> HttpReply:
        with self.world.lock:
            try:
                self.world.run_due()
                return self._page(request)
            except Exception:  # noqa: BLE001  (a defect of the simulator must fail the test)
                self.defects.append(traceback.format_exc())
                return HttpReply(status=500, body="the simulator failed")

    def _page(self, request: HttpRequest) -> HttpReply:
        if request.path == "/address":
            return HttpReply(body=self.caller, headers={"Content-Type": "text/plain"})
        if request.path == "/spot-advisor-data.json":
            return advisor_page(self.market)
        signature: Signature | None = None
        try:
            signature = read_signature(request)
            caller = check_caller(self.world, request, signature)
            call = decode(request, caller)
            self.requests.append(call)
            return encode(caller, call.operation, perform(self.world, call))
        except AwsError as error:
            return encode_error(signature, error)


def _route(request: HttpRequest) -> str:
    """What a request asks for, such as `/ec2/us-east-1/RunInstances`; its path for a page."""
    try:
        signature = read_signature(request)
        if signature is None:
            return request.path
        name, _ = operation_of(request, signature)
    except AwsError:
        return request.path
    return f"/{signature.service}/{signature.region}/{name}"
