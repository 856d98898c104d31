"""What exists in the simulated subscription, and what is due to happen when."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from arm.clock import SimClock
from arm.ledger import Ledger
from arm.market import Market
from arm.replies import ArmError

SUBSCRIPTION = "00000000-1111-2222-3333-444444444444"
LIST_LAG_S = 20.0
OPERATION_TTL_S = 3600.0


@dataclass(kw_only=True)
class Resource:
    """One resource; `hidden` is what the service knows and never tells."""

    id: str
    type: str
    """As ARM spells it, such as `Microsoft.Compute/disks`."""
    group: str
    location: str
    tags: dict[str, str]
    properties: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)
    """Top-level members beside properties: sku, zones, identity, managedBy."""
    hidden: dict[str, Any] = field(default_factory=dict)
    born_s: float = 0.0

    @property
    def name(self) -> str:
        """The last part of the id."""
        return self.id.rpartition("/")[2]

    @property
    def state(self) -> str:
        """The provisioning state."""
        return str(self.properties.get("provisioningState", ""))

    def view(self) -> dict[str, Any]:
        """What a GET answers."""
        head = {"id": self.id, "name": self.name, "type": self.type, "location": self.location}
        return {**head, "tags": self.tags, **self.more, "properties": self.properties}


@dataclass(kw_only=True)
class Group:
    """A resource group."""

    id: str
    name: str
    location: str
    tags: dict[str, str]
    state: str = "Succeeded"

    def view(self) -> dict[str, Any]:
        """What a GET answers."""
        return {
            "id": self.id,
            "name": self.name,
            "type": "Microsoft.Resources/resourceGroups",
            "location": self.location,
            "tags": self.tags,
            "properties": {"provisioningState": self.state},
        }


@dataclass(kw_only=True)
class Operation:
    """A long-running operation as its status page shows it."""

    id: str
    kind: str
    """`vm`, `network`, `post` or `group`: each has its own pattern of headers."""
    started_s: float
    status: str = "InProgress"
    error: ArmError | None = None
    ended_s: float | None = None
    polls: int = 0

    def end(self, now_s: float, error: ArmError | None = None) -> None:
        """Close it, well or badly."""
        self.status = "Failed" if error else "Succeeded"
        self.error = error
        self.ended_s = now_s


class World:
    """The state of everything, changed under one lock, one due event at a time."""

    def __init__(self, clock: SimClock, market: Market, *, seed: int = 0) -> None:
        self.clock = clock
        self.market = market
        self._at: float | None = None
        """The time at which a due event happens, while it does."""
        self.ledger = Ledger(self.now)
        self.lock = threading.RLock()
        self.random = random.Random(seed)  # noqa: S311  (shuffles lists, keeps no secret)
        self.groups: dict[str, Group] = {}
        self.resources: dict[str, Resource] = {}
        self.operations: dict[str, Operation] = {}
        self.providers: dict[str, str] = {}
        self.log: list[dict[str, Any]] = []
        self.hypervisor: Any = None
        """What runs inside the machines; see `vm_power.Hypervisor`."""
        self.roles: dict[str, dict[str, Any]] = {}
        """Role definitions and assignments by type and name."""
        self.caller = "a@b.example"
        """Who makes the request that is being answered, as the activity log names them."""
        self.report_lag_s = 0.0
        """How late the page of an operation tells its end; the times in it are right all the
        same."""
        self.busy_code = "OperationNotAllowed"
        """What a second order on a busy machine is answered with, status 409."""
        self.shows_starting = True
        """Whether a machine whose start will be refused is shown as starting until then."""
        self.hangs_groups = False
        """Whether deletions of resource groups, once accepted, do not come to an end."""
        self._hanging: list[Callable[[], None]] = []
        self.loses_priority = False
        """Whether machines come out as Regular although Spot was asked for."""
        self.may_assign = True
        """Whether the account may write role assignments; a mere Contributor may not."""
        self.may_define = True
        """Whether it may define roles, too; a mere administrator of assignments may not."""
        self.subscription: dict[str, Any] = {
            "id": f"/subscriptions/{SUBSCRIPTION}",
            "subscriptionId": SUBSCRIPTION,
            "displayName": "Simulated",
            "state": "Enabled",
            "subscriptionPolicies": {"quotaId": "PayAsYouGo_2014-09-01", "spendingLimit": "Off"},
        }
        self.hosts_given = 0
        self.machines_made: list[str] = []
        """The id of every machine that was ever accepted, in order."""
        self._ghosts: list[tuple[float, Resource]] = []
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        """Simulated seconds since 1970."""
        return self.clock.now() if self._at is None else self._at

    def iso(self) -> str:
        """The simulated time as Azure writes it."""
        return self.clock.iso(self.now())

    def after(self, seconds: float, happen: Callable[[], None]) -> None:
        """Let something happen later."""
        heapq.heappush(self._due, (self.now() + seconds, next(self._order), happen))

    def delete_later(self, seconds: float, happen: Callable[[], None]) -> None:
        """Let the deletion of a group end later, or hang."""
        if self.hangs_groups:
            self._hanging.append(happen)
        else:
            self.after(seconds, happen)

    def unhang(self) -> None:
        """Let every deletion that hangs come to its end now."""
        self.hangs_groups = False
        while self._hanging:
            self.after(0.0, self._hanging.pop(0))

    def run_due(self) -> None:
        """Let everything that is due happen, in order."""
        with self.lock:
            while self._due and self._due[0][0] <= self.clock.now():
                self._at, _, happen = heapq.heappop(self._due)
                try:
                    happen()
                finally:
                    self._at = None

    # ---- operations ----

    def operation(self, kind: str) -> Operation:
        """A new operation under way."""
        made = Operation(id=str(uuid.uuid4()), kind=kind, started_s=self.now())
        self.operations[made.id] = made
        return made

    # ---- groups and resources ----

    def group(self, name: str) -> Group:
        """The group, or ARM's 404."""
        found = self.groups.get(name.lower())
        if found is None:
            raise ArmError(
                404, "ResourceGroupNotFound", f"Resource group '{name}' could not be found."
            )
        return found

    def writable_group(self, name: str) -> Group:
        """The group if something may be made in it."""
        found = self.group(name)
        if found.state == "Deleting":
            raise ArmError(
                409,
                "ResourceGroupBeingDeleted",
                f"The resource group '{name}' is in deprovisioning state and cannot perform this "
                "operation.",
            )
        return found

    def find(self, id_: str) -> Resource | None:
        """The resource of that id, in any case."""
        return self.resources.get(id_.lower())

    def need(self, id_: str) -> Resource:
        """The resource of that id, or one of ARM's two kinds of 404."""
        found = self.find(id_)
        if found is None:
            code = self.random.choice(("ResourceNotFound", "NotFound"))
            raise ArmError(
                404, code, f"The Resource '{id_.partition('/providers/')[2]}' was not found."
            )
        return found

    def add(self, resource: Resource) -> Resource:
        """Let a resource exist."""
        resource.born_s = self.now()
        self.resources[resource.id.lower()] = resource
        return resource

    def drop(self, resource: Resource) -> None:
        """Let a resource cease to exist; lists go on showing it for a while."""
        if self.resources.pop(resource.id.lower(), None) is not None:
            self._ghosts.append((self.now(), resource))
        for kind in ("compute", "disk", "address"):
            self.ledger.stop(kind, resource.id)

    def in_group(self, name: str) -> list[Resource]:
        """Everything that really is in a group."""
        return [one for one in self.resources.values() if one.group.lower() == name.lower()]

    def listed(self) -> Iterator[Resource]:
        """What list endpoints show: late for the new, and long for the deleted."""
        now = self.now()
        for one in self.resources.values():
            if now - one.born_s >= LIST_LAG_S:
                yield one
        for gone_s, one in self._ghosts:
            if now - gone_s < LIST_LAG_S and one.group.lower() in self.groups:
                yield one

    def event(
        self,
        resource: Resource,
        operation: str,
        *,
        caller: str,
        words: str = "",
        status: str = "Succeeded",
    ) -> None:
        """Write the activity log."""
        self.log.append(
            {
                "at_s": self.now(),
                "resourceId": resource.id,
                "operationName": {"value": operation, "localizedValue": operation},
                "status": {"value": status},
                "caller": caller,
                "properties": {"statusMessage": words} if words else {},
                "eventTimestamp": self.iso(),
            }
        )
