"""The state of a run as values: what the fold over its journal yields."""

from __future__ import annotations

from dataclasses import dataclass

from infra.catalog.vendors import quota_covers
from infra.errors import ErrorKind
from infra.offer import Offer
from infra.provider import Vm
from infra.run.billing_spans import Span
from infra.run.journal import Kind, Outcome

EXPLAIN_EVERY_S = 180.0
EXPLAIN_S_MAX = 3600.0
REJECTIONS_MAX = 3
"""How many places may refuse in words that no rule knows before the run ends with that."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A refusal by the provider, remembered so that a place is not tried again and again."""

    provider: str = ""
    place: str
    size: str
    kind: ErrorKind
    message: str
    at_s: float

    def __str__(self) -> str:
        """What was refused, for people."""
        return f"{self.kind}: {self.message}"

    @property
    def needs_human(self) -> bool:
        """Whether it lasts until a person has asked the provider for more."""
        return self.kind in {ErrorKind.OVER_QUOTA, ErrorKind.REJECTED, ErrorKind.NOT_ALLOWED}

    def rules_out(self, offer: Offer) -> bool:
        """Whether it also rules out that offer: quota is a pool of the region, zones and all.

        What an account may not do at all, it may do nowhere at that provider.
        """
        if self.provider and self.provider != offer.provider:
            return False
        if self.kind is ErrorKind.NOT_ALLOWED:
            return True
        if self.kind is ErrorKind.OVER_QUOTA:
            there = self.place.partition("/")[0] == offer.region
            return there and quota_covers(
                self.message, provider=offer.provider, refused=self.size, size=offer.size
            )
        return (self.place, self.size) == (offer.place, offer.size)


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """How a run ended, and why in words."""

    outcome: Outcome
    reason: str
    keeps_machine: bool = False
    """Whether the machine is left as it is although the goal was missed."""


@dataclass(frozen=True, kw_only=True)
class UnexplainedStop:
    """A stop whose reason is inferred until the provider's log has the true one."""

    after_s: float
    """When the machine was last started: what is on record from before speaks of another stop."""
    at_s: float
    """When the machine was seen down."""
    counted: bool
    """Whether it was counted as an eviction."""
    ran: bool = True
    """Whether the machine had been seen running before: else no record makes it an eviction."""
    alive_s: float = 0.0
    """When the machine had last been seen alive."""

    def is_due(self, now_s: float, *, requested_s: float) -> bool:
        """Whether to ask (again, after `requested_s`): records lag by minutes, not by hours."""
        waited_s = now_s - max(self.at_s, requested_s)
        return waited_s >= EXPLAIN_EVERY_S and now_s - self.at_s <= EXPLAIN_S_MAX


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How the trainer failed by itself: at which step, with which exit code and last words."""

    step: int
    exit_code: int | None
    error: str
    """Empty if another start may well end otherwise, as after a kill or a lost network."""

    def repeats(self, before: Failure | None) -> bool:
        """Whether the start before ended in the very same way, without a step in between."""
        return bool(self.error) and self == before


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run, derived from the journal alone: it survives this computer."""

    run_id: str = ""
    name: str = ""
    started_s: float = 0.0
    resumed_s: float = 0.0
    """When somebody last asked for the run again."""
    pending: Kind | None = None
    """An intent whose result was never written: the act may or may not have happened."""
    offer: Offer | None = None
    vm: Vm | None = None
    generation: int = 0
    """Machines asked for so far."""
    up: bool = False
    """Whether, as far as we know, compute bills."""
    starts: int = 0
    vm_started_s: float = 0.0
    """When the machine was last created or started."""
    start_requested_s: float = 0.0
    """When that was asked for."""
    running_s: float = 0.0
    """When it was first seen running since then; 0 if it never was."""
    launched_at_s: float = 0.0
    """When its provider had started it, by the provider's clock, when it was first seen running
    since then; 0 if the provider did not say."""
    alive_s: float = 0.0
    """When the machine was last seen alive."""
    host_key_kept: bool = False
    """Whether its host key could not be changed on this boot; tried again on the next one."""
    prepared: bool = False
    launched: bool = False
    launches: int = 0
    step: int = 0
    steps: int = 0
    disk_step: int = 0
    """The furthest step seen on this machine: its disk may hold it."""
    home_step: int = 0
    """Step of the newest verified checkpoint at home; 0 if none."""
    cards: tuple[str, ...] = ()
    """The GPUs on which work was seen, each time it moved to another one."""
    evictions: int = 0
    stops: int = 0
    start_failures: int = 0
    """Refused starts since the machine last ran, those that were refused after all included."""
    unreachable: int = 0
    """Boots since new work came home that failed, or were given up because SSH did not answer."""
    crashes: tuple[int, ...] = ()
    """Steps at which the trainer ended by itself, in order."""
    failure: Failure | None = None
    """The last of them, if how it ended is known."""
    failure_repeated: bool = False
    """Whether the last two were the same: the next start would end so, too."""
    hangs: int = 0
    refusals: tuple[Refusal, ...] = ()
    rehearsed: frozenset[int] = frozenset()
    rehearsing: int | None = None
    trained: bool = False
    exact: bool = True
    """Whether the finished training is bit for bit, as its trainer said at its end."""
    inexact_from: int | None = None
    """The first step that is not."""
    fetched: str = ""
    """Where the adapter lies at home; empty until it does."""
    deleted: bool = False
    """Whether the provider confirmed that nothing of the run remains."""
    safeguards_set_at_s: float = 0.0
    """When the safeguards that end the bill without us were last set, on this boot."""
    safeguards_until_s: float = 0.0
    """When they end compute unless they are set anew, in seconds since 1970."""
    safeguards: tuple[str, ...] = ()
    """Which of them are set, and what they do."""
    safeguards_missing: tuple[str, ...] = ()
    """Which could not be set, why, and how to get them."""
    latest_limit_s: float | None = None
    """The latest limit to which the machine can be held, in seconds since 1970: the run goes on
    after it with another machine. None: any."""
    other_cap: str = ""
    """Why the price cap that is asked for now takes another machine; empty if this one has it."""
    stopped_by_user: str = ""
    """Who stopped the machine on purpose while the run was driven; empty if nobody did."""
    unexplained_stop: UnexplainedStop | None = None
    """The last stop, while its reason is only inferred."""
    ending: RunEnd | None = None
    spans: tuple[Span, ...] = ()
    group: int = 0
    """The number of the group in which its trainer was last to run; 0 if it never was in one."""
    members: tuple[int, ...] = ()
    """The nodes of that group, in the order of their ranks."""
    group_done: int = 0
    """The number of the last group that finished the training, the results on another machine."""
    nodes: tuple[RunState, ...] = ()
    """The states of its machines where it has had several; this one is then that of all."""

    @property
    def idle_usd_per_h(self) -> float:
        """What disk and address cost per hour while the machine does not run.

        Its disk may be larger than the offer's, where the image needs more.
        """
        offered = self.offer.idle_usd_per_h if self.offer else 0.0
        return max(offered, self.vm.idle_usd_per_h if self.vm else 0.0)

    @property
    def beside_compute_usd_per_h(self) -> float:
        """What disk and address cost per hour while the machine runs."""
        return self.idle_usd_per_h + (self.offer.address_usd_per_h if self.offer else 0.0)

    @property
    def rejected(self) -> bool:
        """Whether the cloud has refused often enough, in words that no rule knows, to stop asking.

        Place after place, or start after start: what is wrong then is what is asked for.
        """
        here = [one for one in self.refusals if one.kind is ErrorKind.REJECTED]
        starts = self.start_failures if len(here) == len(self.refusals) else 0
        return max(len(here), starts) >= REJECTIONS_MAX

    @property
    def is_unseen(self) -> bool:
        """Whether it should be up and has not been seen running since it last started."""
        return self.up and not self.running_s
