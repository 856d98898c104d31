"""What every stage of a job works with: options, config, status and the preemption flag."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from trainer.adapters.parent import find_parent, inherit, read_parent
from trainer.config import EvictionBand, TrainerConfig
from trainer.errors import Preempted
from trainer.eviction import PreemptionFlag
from trainer.group.alone import ALONE
from trainer.group.launch import RankPlace
from trainer.group.machines import Machine
from trainer.group.peers import Peers
from trainer.job.writers import EVERYTHING, Writers
from trainer.rundir.fingerprint import (
    Facts,
)
from trainer.rundir.status import HeartbeatWriter
from trainer.secret import Secret


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What the command line asks for."""

    run_dir: Path
    metadata_url: str | None = None
    metadata_api: str = "azure"
    """Whose metadata service that is: a key of `trainer.eviction.NOTICE_APIS`."""
    allow_change: tuple[str, ...] = ()
    band: EvictionBand | None = None
    price_usd_per_h: float = 0.0
    cards: int = 1
    """How many cards a machine of the run is configured for; there may be fewer here."""
    total_cards: int | None = None
    """How many all its machines are, of which some may not be here; None: those that are."""
    machine: Machine | None = None
    """Which of several machines this is; None if the job is done by one."""
    place: RankPlace | None = None
    """Which of several ranks this process is; None if it does the job alone."""
    token: Secret | None = field(default=None, repr=False)
    """For a hub, to fetch a base that not everybody may have; kept in memory only."""

    @property
    def all_cards(self) -> int:
        """How many cards the run is configured for on all machines."""
        return self.total_cards or self.cards * (self.machine.count if self.machine else 1)


@dataclass(frozen=True, kw_only=True)
class JobContext:
    """What every stage needs."""

    options: JobOptions
    config: TrainerConfig
    inputs: Facts
    heartbeat: HeartbeatWriter
    flag: PreemptionFlag
    on_message: Callable[[str], None]
    peers: Peers = ALONE
    """The ranks that do this job together."""
    writers: Writers = EVERYTHING
    """What this rank writes."""

    @property
    def run_dir(self) -> Path:
        """The directory that everything is read from and written to."""
        return self.options.run_dir

    def stop_if_preempted(self) -> None:
        """Leave if a notice came; between stages nothing is at stake.

        Raises:
            Preempted: a notice came.
        """
        if self.flag.notice is not None:
            raise Preempted


def with_parent(config: TrainerConfig, run_dir: Path) -> TrainerConfig:
    """Return `config` with what the adapter in `method.from` decides, as it is without one.

    Raises:
        ConfigError: it cannot be trained further, or has other values than were given.
    """
    directory = find_parent(config.method, run_dir)
    if directory is None:
        return config
    method = inherit(config.method, read_parent(directory))
    return config.model_copy(update={"method": method})
