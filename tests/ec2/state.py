"""What exists in the simulated account, and what is due to happen when."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from arm.clock import SimClock

from ec2.hypervisor import Hypervisor, NoHypervisor
from ec2.ledger import Ec2Ledger
from ec2.market import Market
from ec2.regions import REGIONS
from ec2.replies import ApiCall, AwsError
from ec2.resources import (
    Ec2Resource,
    Image,
    Instance,
    NetworkInterface,
    RouteTable,
    SecurityGroup,
    SpotRequest,
    Subnet,
    Volume,
    Vpc,
)

ACCOUNT = "111122223333"
KEY_ID = "AKIAQFTSIMULATEDUSER"
SECRET_KEY = "simulated/secret/key/of/nobody/at/all/0000"
R = TypeVar("R", bound=Ec2Resource)


@dataclass(kw_only=True)
class Timing:
    """How long things take, in simulated seconds, as seen on real EC2 unless a test says else."""

    pending_s: float = 9.0
    """From acceptance to `running`."""
    stop_s: float = 60.0
    """In `stopping`; the deep-learning image has been seen to take 450."""
    terminate_s: float = 40.0
    """In `shutting-down`, from `running`."""
    lag_s: float = 5.0
    """How long what was made is neither known by its id nor listed."""
    group_lag_s: float = 0.0
    """The same for security groups."""
    marked_s: float = 40.0
    """How long a request stays `marked-for-stop` after the machine has stopped."""
    cancel_s: float = 30.0
    """After how long a stopped machine goes whose request was cancelled."""
    restart_s: float = 180.0
    """After how long EC2 looks whether a machine that it interrupted can run again."""
    relaunch_s: float = 60.0
    """After how long an open request is looked at again."""
    linger_s: float = 3600.0
    """How long a terminated machine stays listed, with its tags."""
    token_s: float = 86400.0
    """For how long after that its client token launches nothing new."""
    interface_s: float = 0.0
    """How long the network interface of a terminated machine stays, and keeps its group busy."""


@dataclass
class State:
    """Everything that exists, changed under one lock, one due event at a time."""

    clock: SimClock
    market: Market
    hypervisor: Hypervisor = field(default_factory=NoHypervisor)
    timing: Timing = field(default_factory=Timing)
    instances: dict[str, Instance] = field(default_factory=dict)
    requests: dict[str, SpotRequest] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    interfaces: dict[str, NetworkInterface] = field(default_factory=dict)
    groups: dict[str, SecurityGroup] = field(default_factory=dict)
    vpcs: dict[str, Vpc] = field(default_factory=dict)
    subnets: dict[str, Subnet] = field(default_factory=dict)
    tables: dict[str, RouteTable] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    parameters: dict[tuple[str, str], str] = field(default_factory=dict)
    """What Systems Manager holds, by (region, name)."""
    tokens: dict[tuple[str, str, str], tuple[str, str]] = field(default_factory=dict)
    """Fingerprint and instance by (region, zone, client token)."""
    machines_made: list[str] = field(default_factory=list)
    """The id of every machine that was ever launched, by anybody, in order."""
    denied: set[str] = field(default_factory=set)
    """Actions that the user may not do, such as `ec2:RunInstances`; `*` stands for any letters."""
    policies: list[dict[str, Any]] = field(default_factory=list)
    """All that the user may do, as policies of IAM; with none, everything that is not denied."""
    keys: set[str] = field(default_factory=lambda: {KEY_ID})
    """The access keys that are valid now."""
    expired_keys: set[str] = field(default_factory=set)
    """Those whose session is over."""
    opted_in: set[str] = field(default_factory=set)
    """The regions that the account has enabled beside those that need no enabling."""
    opt_in_code: str = "AuthFailure"
    """What EC2 answers in a region that is not enabled; documented is `OptInRequired`, too."""
    has_spot_role: bool = True
    """Whether the service-linked role of spot machines exists."""
    pending_verification: bool = False
    """Whether AWS still verifies the account."""
    restarts: bool = True
    """Whether EC2 restarts what it interrupted when there is room again."""
    relaunches: bool = True
    """Whether EC2 launches a new machine for a live request whose machine was terminated."""
    relaunch_tagged: bool = False
    """Whether that machine carries the tags of the first one; nobody has shown it either way."""
    expiry_terminates: bool = False
    """Whether a stopped machine goes when its request expires; nobody has shown it either way."""
    start_refusal: str = "InsufficientInstanceCapacity"
    """The code that refuses to start what EC2 interrupted: seen are this one, `Unsupported` and
    `IncorrectSpotRequestState`."""
    leaves_requests: bool = False
    """Whether a launch refused for price or capacity leaves its persistent request open."""
    pending_death: tuple[str, str] | None = None
    """Code and message with which launched machines die before they run."""
    permissions: dict[str, Callable[[ApiCall], bool]] = field(default_factory=dict)
    """What callers other than the user may do, by their ARN."""
    state_listeners: list[Callable[[Instance], None]] = field(default_factory=list)
    """Called with every machine whose state has changed."""
    data: dict[str, Any] = field(default_factory=dict)
    """What further services keep here, by their name."""

    def __post_init__(self) -> None:
        self.ledger = Ec2Ledger(self.now)
        self.market.in_use = self._in_use
        self.lock = threading.RLock()
        self.hosts_given = 0
        self._at: float | None = None
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._numbers = itertools.count(1)

    # ---- time ----

    def now(self) -> float:
        """Simulated seconds since 1970: those of a due event while it happens."""
        return self.clock.now() if self._at is None else self._at

    def moment(self, at_s: float | None = None) -> datetime:
        """A time, by default now, in whole seconds as EC2 tells times."""
        return datetime.fromtimestamp(int(self.now() if at_s is None else at_s), tz=UTC)

    def after(self, seconds: float, happen: Callable[[], None]) -> None:
        """Let something happen later."""
        heapq.heappush(self._due, (self.now() + seconds, next(self._order), happen))

    def run_due(self) -> None:
        """Let everything that is due happen, in order."""
        with self.lock:
            while self._due and self._due[0][0] <= self.clock.now():
                self._at, _, happen = heapq.heappop(self._due)
                try:
                    happen()
                finally:
                    self._at = None

    def _in_use(self, zone: str) -> int:
        """How many machines start or run in a zone: what is stopped takes no room."""
        up = {"pending", "running"}
        return sum(one.zone == zone and one.state in up for one in self.instances.values())

    # ---- names ----

    def new_id(self, kind: str) -> str:
        """A new id, such as `i-` and 17 hexadecimal digits."""
        number = next(self._numbers) * 0x9E3779B97F4A7C15 % (1 << 64)
        return f"{kind}-0{number:016x}"

    def new_host(self) -> str:
        """A public address that no machine had before: one of the loopback network."""
        self.hosts_given += 1
        return f"127.0.{110 + self.hosts_given // 250}.{1 + self.hosts_given % 250}"

    def arn(self, kind: str, id_: str, region: str) -> str:
        """The ARN of something of EC2."""
        return f"arn:aws:ec2:{region}:{ACCOUNT}:{kind}/{id_}"

    def is_enabled(self, region: str) -> bool:
        """Whether the account can use a region."""
        found = REGIONS.get(region)
        return found is not None and (not found.opt_in or region in self.opted_in)

    # ---- looking things up ----

    def is_visible(self, resource: Ec2Resource) -> bool:
        """Whether EC2 shows it already: what is new takes a few seconds."""
        lag_s = (
            self.timing.group_lag_s
            if isinstance(resource, SecurityGroup)
            else self.timing.lag_s
            if isinstance(resource, (Instance, SpotRequest, Volume))
            else 0.0
        )
        return self.now() - resource.born_s >= lag_s

    def need(self, store: dict[str, R], id_: str, region: str, missing: str, words: str) -> R:
        """The resource of that id in a region, or the error with that code."""
        found = store.get(id_)
        if found is None or found.region != region or not self.is_visible(found):
            raise AwsError(missing, f"The {words} '{id_}' does not exist")
        return found

    def instance(self, id_: str, region: str) -> Instance:
        """A machine by its id."""
        if not id_.startswith("i-"):
            raise AwsError("InvalidInstanceID.Malformed", f'Invalid id: "{id_}"')
        missing = "InvalidInstanceID.NotFound"
        return self.need(self.instances, id_, region, missing, "instance ID")

    def visible(self, store: dict[str, R], region: str) -> list[R]:
        """Everything of a region that EC2 lists now, oldest first."""
        return [one for one in store.values() if one.region == region and self.is_visible(one)]

    def request_of(self, instance: Instance) -> SpotRequest | None:
        """The spot request that launched a machine."""
        return self.requests.get(instance.request_id)

    def table_of(self, subnet_id: str) -> RouteTable | None:
        """The route table of a subnet: its own, or the main one of its network."""
        vpc_id = self.subnets[subnet_id].vpc_id
        tables = [one for one in self.tables.values() if one.vpc_id == vpc_id]
        own = [one for one in tables if subnet_id in one.subnet_ids]
        main = [one for one in tables if one.is_main]
        return next(iter((*own, *main)), None)

    def has_route(self, subnet_id: str) -> bool:
        """Whether a subnet reaches the internet."""
        table = self.table_of(subnet_id)
        return table is not None and table.gateway_id.startswith("igw-")
