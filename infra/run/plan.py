"""What the user wants of a run, and the numbers of the policy that gets it there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from infra.run.budget import Budget


class Goal(StrEnum):
    """How far a command wants the run to go."""

    UP = "up"
    """A machine that is ready to train."""
    TRAIN = "train"
    """A finished training, machine left up."""
    FETCH = "fetch"
    """The adapter at home, machine left as it is."""
    RUN = "run"
    """The adapter at home and nothing of the run left in the cloud."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The numbers of the policy, each a limit on something that would otherwise have none."""

    poll_s: float = 5.0
    boot_wait_s: float = 900.0
    """A booting machine may take this long to answer SSH."""
    unreachable_wait_s: float = 120.0
    """A machine that answered before may be silent this long before it is restarted."""
    unreachable_max: int = 2
    """Boots that failed or stayed silent before the run ends with that."""
    capacity_ttl_s: float = 600.0
    """For how long a place without capacity is passed over."""
    capacity_ttl_s_at: Mapping[str, float] = field(default_factory=dict)
    """The same by provider, where places of one fill and empty sooner."""
    price_ttl_s: float = 300.0
    quota_ttl_s: float = 6 * 3600.0
    backoff_first_s: float = 15.0
    backoff_max_s: float = 600.0
    machineless_max_s: float = 12 * 3600.0
    """Waiting for capacity costs little, but a human should hear of it eventually."""
    offline_max_s: float = 12 * 3600.0
    """A cloud that cannot be asked may be so for this long: the job there goes on meanwhile."""
    cut_max: int = 8
    """Times in a row that an act may be cut on a machine that answers, before a new boot."""
    start_attempts_max: int = 3
    """Tries to restart a machine whose disk is ahead of the checkpoint at home."""
    crash_limit: int = 3
    """Crashes at the same step that make a failure out of bad luck."""
    preempt_grace_s: float = 60.0
    """A trainer that saved for an eviction is started again if none has come by then."""
    safeguards_every_s: float = 6 * 3600.0
    """Safeguards act at a time of day, so they are set anew well within a day."""
    silent_max_s: float = 180.0
    stalled_max_s: float = 3600.0
    gather_s: float = 180.0
    """How long the machines that are ready wait for one that is about to be."""
    regroup_every_s: float = 600.0
    """How long a group trains at least before it stops to let a machine join."""
    short_max_s: float = 900.0
    """How long machines may bill while there are too few of them to train."""

    def capacity_ttl_of(self, provider: str) -> float:
        """Return for how long a place of that provider without capacity is passed over."""
        return self.capacity_ttl_s_at.get(provider, self.capacity_ttl_s)


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What the supervisor is asked to reach, and within which limits."""

    goal: Goal
    budget: Budget = field(default_factory=Budget)
    policy: Policy = field(default_factory=Policy)
    rehearse_evictions: tuple[int, ...] = ()
    """Steps at which the provider is asked to rehearse an eviction."""
    has_safeguards: bool = False
    """Whether the provider has safeguards that end the bill without us."""
    rents: bool = True
    """Whether the provider rents; a user's own machine is never deallocated for a budget."""
    several_providers: bool = False
    """Whether there is more than one provider: what only a person can change at one of them is no
    reason to end the run while another can be asked."""
    nodes: int = 1
    """How many machines train together, if they can be had."""
    nodes_min: int = 1
    """With how few of them the training goes on."""
    several_places: bool = False
    """Whether machines can be had at more than one place: where there is no room for enough of them
    at one, the run moves to another."""
