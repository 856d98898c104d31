"""The seam between qft and whoever rents out machines: the promises that every provider keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from infra.errors import ProviderError
from infra.offer import Offer, Want

OnMessage = Callable[[str], None]
"""Takes one line for people about something that lasts."""


def ignore_message(message: str) -> None:
    """Drop a message that nobody waits for."""
    del message


class Provider(ABC):
    """Rents machines. Every method is safe to call again after a crash at any point.

    Methods raise only the classes of `infra/errors.py`; a foreign error is translated once, inside
    the provider. No method prints. None waits longer than its promise says: waiting, with a
    clock and a budget, is the supervisor's work. The methods that have a body are optional: what
    they do here is right for a provider that lacks what they are about.
    """

    name: str
    """The value of `vm.provider` that selects this provider, such as `local`, `azure` or `aws`."""
    traits: Traits
    """How this provider differs from others, as data, so that nobody asks for its class."""

    @abstractmethod
    def offers(self, want: Want) -> list[Offer]:
        """List what could be rented now, best first, including what is blocked and why.

        Creates nothing and never waits long: a source that does not answer in seconds is replaced
        by the dated table of `gpus.py`, which the offer's `price_source` then names.
        """

    @abstractmethod
    def create(self, spec: VmSpec) -> Vm:
        """Ask for machine `spec.node` of `spec.run_id`, or return the one that already exists.

        Returns as soon as the provider has accepted, often before the machine has an address, and
        tags everything it makes with the run id before anything bills. A create that fails leaves
        nothing behind that bills.
        """

    @abstractmethod
    def observe(self, vm: Vm) -> Observation:
        """Look at the machine once. A machine that is gone is an observation, not an error."""

    @abstractmethod
    def start(self, vm: Vm) -> None:
        """Start a deallocated machine under its old cap; silent if it runs or is starting.

        Raises `NoCapacity`, `OverQuota` or `PriceAboveCap` as `create` does, `Gone` if it is gone.
        Like `create` it may return before the machine answers.
        """

    @abstractmethod
    def deallocate(self, vm: Vm) -> None:
        """Stop the machine so that its compute no longer bills, keeping its disk.

        Returns when the provider says that the compute is released. Silent if already deallocated;
        raises `Gone` if there is no such machine.
        """

    @abstractmethod
    def delete(self, run_id: str, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Remove everything that carries `run_id`, and return when the provider says it is gone.

        Silent (an empty list) if nothing is left. Never touches what lacks our tag. Where it takes
        minutes, `on_message` gets a line at each stage and about once a minute.
        """

    @abstractmethod
    def list_all(self) -> list[Vm]:
        """List every machine of this account that carries our tag, from any computer, newest first.

        A run of which only remnants exist (a disk, an address) is listed with `power` `REMNANTS`.
        """

    @abstractmethod
    def evict(self, vm: Vm) -> None:
        """Ask the provider to rehearse an eviction of this machine, notice included."""

    # ---- optional ----

    def traits_of(self, vm: Vm) -> Traits:  # noqa: ARG002
        """Return the traits of whoever rents out that machine; asks nothing."""
        return self.traits

    def capacity_ttls_s(self) -> Mapping[str, float]:
        """Return for how long a place without capacity is passed over, by provider that says so."""
        ttl_s = self.traits.capacity_ttl_s
        return {} if ttl_s is None else {self.name: ttl_s}

    def remove(self, vm: Vm, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Remove one machine with its disk and address, and leave the others of its run alone.

        Silent (an empty list) if nothing of it is left. What the machines of a run share, such as
        their network, stays until `delete`. Right as it is where a run has one machine at most.
        """
        return self.delete(vm.run_id, on_message)

    def list_run(self, run_id: str) -> list[Vm]:
        """List what there is of one run, as `list_all` would."""
        return [vm for vm in self.list_all() if vm.run_id == run_id]

    def unanswered(self) -> Mapping[str, ProviderError]:
        """Return which providers could not be asked at the last `offers`, and why; asks nothing."""
        return {}

    def set_safeguards(
        self,
        vm: Vm,  # noqa: ARG002
        *,
        until_s: float,  # noqa: ARG002
        disk_days: float | None = None,  # noqa: ARG002
    ) -> list[Safeguard]:
        """Set every safeguard that may be set, to end compute soon after `until_s` (since 1970).

        With `disk_days`, the machine and its disk are removed that long after the limit, where the
        vendor can do so by itself. Never raises for one that cannot be set. Call again within 23
        hours for a later limit.
        """
        return []

    def preview_safeguards(
        self,
        want: Want,  # noqa: ARG002
        *,
        until_s: float,  # noqa: ARG002
        disk_days: float | None = None,  # noqa: ARG002
    ) -> list[Safeguard]:
        """Predict what `set_safeguards` can set for such a machine; never raises."""
        return []

    def account_problem(self) -> ProviderError | None:
        """Return why this account can rent nothing now, None if that is not known; never raises.

        Asks nothing: it is what `offers` and `preview_safeguards` have met.
        """
        return None

    def cancel_refused(self, run_id: str) -> None:
        """Cancel what refused creates of a run left open; waits seconds until the vendor shows it.

        For the end of a run: `create`, `observe` and `delete` do it by the way.
        """
        del run_id

    def allow_caller_ip(self, vm: Vm) -> bool:  # noqa: ARG002
        """Let this computer's present address through the firewall; return whether that was new."""
        return False

    def update_max_price(self, vm: Vm, max_price_usd_per_h: float | None) -> float | None:  # noqa: ARG002
        """Change the price cap where the vendor allows it now; return the cap that is in force.

        Silent, and without effect, for a machine whose cap cannot change now because it runs: the
        answer then differs from what was asked. Raises `Gone` if there is no such machine,
        `NeverStarts` for one that is down for good.
        """
        return max_price_usd_per_h

    def stop_reason_from_log(
        self,
        vm: Vm,  # noqa: ARG002
        *,
        after_s: float,  # noqa: ARG002
        before_s: float,  # noqa: ARG002
    ) -> Observation | None:
        """Read from the vendor's log why the machine stopped between two times (since 1970).

        None if nothing is on record (yet). Only reason, `since` and `detail` of the answer mean
        something.
        """
        return None

    def billed_until_s(self, vm: Vm) -> float | None:  # noqa: ARG002
        """Return when a machine that `deallocate` released ceased to bill compute (since 1970).

        By this computer's clock, however late the provider reported it; None if it is not known.
        Asks nobody.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Safeguard:
    """Something outside this computer that ends compute billing: is it set, and what does it do."""

    name: str
    is_set: bool
    detail: str
    """What it does, or why it could not be set."""
    hint: str = ""
    """How to get one that could not be set; empty if it is set or nobody knows."""
    stops_at_s: float | None = None
    """When it ends compute billing at the latest, in seconds since 1970; None if it names none."""
    latest_limit_s: float | None = None
    """The latest limit to which this machine can be held, in seconds since 1970: for a later one it
    takes another machine. None: any."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """How one provider differs from another."""

    rents: bool
    """Whether `create` costs money and `delete` ends something; false for a machine of the user."""
    evicts: bool
    """Whether machines can be taken away, and `evict` works."""
    simulated_prices: bool = False
    """Whether dollars are a rehearsal: counted like real ones, marked as not charged."""
    has_safeguards: bool = False
    """Whether `set_safeguards` can set anything: it is then called at each start, and renewed."""
    keeps_disk: bool = True
    """Whether a deallocated machine keeps its disk, so that `start` finds the last checkpoint."""
    cap_changes: bool = True
    """Whether the price cap of a machine that is deallocated can change; else another cap means
    another machine."""
    restarts_itself: bool = False
    """Whether the provider starts a machine again by itself after it has taken it away."""
    capacity_ttl_s: float | None = None
    """For how long a place without capacity is passed over; None leaves it to the policy."""
    several_machines: bool = False
    """Whether a run can have several machines, which reach each other over a private network."""


@dataclass(frozen=True, kw_only=True)
class VmSpec:
    """Everything `create` needs: one value instead of a dozen arguments."""

    run_id: str
    """Unique for the run, stable over its restarts; `[a-z0-9-]`, at most 40 characters."""
    generation: int
    """The number of this machine in its run, from 1; a new one gets a new host key."""
    node: int = 0
    """Which of the machines that the run has at a time, from 0; each has generations of its own.
    `create` is idempotent for each of them: two specs that differ in it are two machines, in one
    private network. Names and bodies of node 0 are those of a run with one machine."""
    nodes: int = 1
    """How many machines the run is to have at a time."""
    offer: Offer
    max_price_usd_per_h: float | None
    """The cap that goes to the provider; None leaves price evictions to the vendor's default."""
    user: str = "qft"
    public_key: str
    """One `authorized_keys` line: the only way into the machine."""
    host_private_key: str = field(repr=False)
    """OpenSSH PEM of the host key that the machine must present; throwaway, never logged."""
    host_public_key: str
    """The matching public line, pinned before the first connection."""
    disk_gb: int = 128
    until_s: float | None = None
    """When the budget ends at this price, in seconds since 1970: safeguards that end the bill
    without us are set for it as soon as there is a machine, not only when it answers. None sets
    none."""
    disk_days: float | None = None
    """How long after that limit the disk may be removed, too; None keeps it."""
    labels: dict[str, str] = field(default_factory=dict)
    """Further tags for people, such as the run's name; no secrets."""


class PowerState(StrEnum):
    """The state of a machine. Compute bills in all but the last four."""

    CREATING = "creating"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    """Switched off from inside and still billed: the trap of `shutdown -h`."""
    FAILED = "failed"
    """The provider could not make it; treated as billing until it is deleted."""
    DEALLOCATED = "deallocated"
    """Compute released, disk kept."""
    REMNANTS = "remnants"
    """No machine, but something of the run remains, such as a disk or an address."""
    GONE = "gone"

    @property
    def bills_compute(self) -> bool:
        """Whether the hourly compute price runs in this state."""
        return self not in {PowerState.DEALLOCATED, PowerState.REMNANTS, PowerState.GONE}


class StopReason(StrEnum):
    """Why a machine does not run, as far as the provider lets anyone know."""

    EVICTED = "evicted"
    PRICE = "price"
    USER = "user"
    """A person ordered it."""
    RETURNED = "returned"
    """The machine gave itself back: its limit was reached, or nobody needed it."""
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Vm:
    """One machine as the provider names it; JSON-safe, so that the journal can hold it."""

    provider: str
    run_id: str
    id: str
    """The provider's own name for it: enough to find it again."""
    region: str
    size: str
    zone: str = ""
    generation: int = 1
    node: int = 0
    """Which of the machines of its run it is, from 0."""
    user: str = "qft"
    host: str = ""
    """Address for SSH; empty until the provider has assigned one."""
    port: int = 22
    private_host: str = ""
    """Its address in the private network of its run's machines; empty until it is known, and for
    the machine of a run that has one only."""
    host_public_key: str = ""
    """The pinned key line it must present."""
    next_host_public_key: str = ""
    """The line that is about to replace it: while that is not empty, either is accepted."""
    host_key_is_readable: bool = False
    """Whether others can read the host key that it was made with, as the user data of EC2 can be
    read: a new one is then made there over the first connection."""
    metadata_url: str = ""
    """Base of the instance-metadata service as seen from inside the machine; empty if none."""
    metadata_api: str = "azure"
    """The protocol in which that service gives notice of an eviction: `azure` or `aws`."""
    interruption_is_free: bool = False
    """Whether the vendor does not bill a first hour that it cuts short itself, as EC2: after a
    notice nothing of ours stops the machine, unless the vendor does not come."""
    power: PowerState = PowerState.CREATING
    """As last seen by the call that returned this value."""
    created_at: str = ""
    """ISO 8601 UTC; empty if unknown."""
    price_usd_per_h: float = 0.0
    """The price it was rented at; 0 when it costs nothing."""
    idle_usd_per_h: float = 0.0
    """What its disk and address cost per hour while it is deallocated."""
    note: str = ""
    """What of it is not as the user asked, for people, such as a disk that had to be bigger."""

    @property
    def accepted_host_keys(self) -> list[str]:
        """The lines of the host keys that it may present, the pinned one first."""
        return [one for one in (self.host_public_key, self.next_host_public_key) if one]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `from_json`; what only one of several has is left out else."""
        values = asdict(self)
        if self.node == 0:
            del values["node"]
        if not self.private_host:
            del values["private_host"]
        return values

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Vm:
        """Rebuild a machine that `to_json` wrote; unknown keys of later versions are ignored."""
        values = {one.name: data[one.name] for one in fields(cls) if one.name in data}
        return cls(**{**values, "power": PowerState(values.get("power", PowerState.CREATING))})


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The result of one look at a machine."""

    power: PowerState
    host: str = ""
    """The address now; it may change over a restart."""
    port: int = 22
    private_host: str = ""
    """The address in the private network of its run's machines; empty if it is not known, and for
    the machine of a run that has one only."""
    metadata_url: str = ""
    stop_reason: StopReason | None = None
    """Set when the machine does not run."""
    certain: bool = True
    """False if the reason is inferred, and the provider may know better in a few minutes."""
    since: str = ""
    """When this state began, ISO 8601 UTC; empty if the provider does not say. Keeps an eviction
    that nobody watched from being counted as hours of compute."""
    detail: str = ""
    """The message of the provider, for people."""
    price_usd_per_h: float | None = None
    """The market price now while the machine runs, if reported: what is really billed."""
    bills_since: str = ""
    """When the compute of a machine that is up began to bill this time, by this computer's clock,
    ISO 8601 UTC; empty if the provider does not say."""
    launched_at: str = ""
    """When the vendor last started a machine that is up, by the vendor's own clock, ISO 8601 UTC:
    the same as long as the machine runs, later after each start. Empty if it does not say."""
    waived_since: str = ""
    """From when on the compute of a machine that is down was free, until it went down, by this
    computer's clock, ISO 8601 UTC; empty if all of it is billed. EC2 waives a first hour that it
    ends itself."""
    ran: bool | None = None
    """Whether a machine that is down has run since it was last made or started; None: unknown."""
    refusal: ProviderError | None = None
    """Why the last order to make or start it came to nothing, accepted as it was; None if it did
    not, or nobody knows. The provider's own word on the end of that order, however late."""


@dataclass(frozen=True, kw_only=True)
class Removed:
    """One resource that `delete` removed."""

    kind: str
    """The vendor's word for it: `virtual machine`, `disk`, `public IP`, `resource group`, …"""
    id: str
    billed_until: str = ""
    """When its compute ceased to bill, by this computer's clock, ISO 8601 UTC; empty if it has
    none, or the provider does not say."""
