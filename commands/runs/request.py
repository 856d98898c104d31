"""What the command line asks of a run: the goal, the checked config, and how to talk meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from commands.runs.config import LoadedConfig
from commands.runs.home import RunFolder, run_folder
from commands.ui.console import Console
from infra.run.context import TurnReport
from infra.run.plan import Goal
from trainer.hub_models import Account
from trainer.secret import Secret

if TYPE_CHECKING:
    from commands.runs.planning.ranking import JobOffer  # with all of the planning


class Watcher(Protocol):
    """What follows a run that this process drives; it raises nothing, whatever goes wrong."""

    def on_turn(self, report: TurnReport) -> None:
        """Learn of a turn; returns at once."""

    def finish(self) -> None:
        """Do the rest: this process drives the run no more; returns within a limited time."""

    def close(self) -> None:
        """End what still works; called last, also after a Ctrl-C."""


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """One request for one run; everything that a command passes on about it."""

    loaded: LoadedConfig
    home: Path
    """`$QFT_HOME`."""
    console: Console
    goal: Goal = Goal.RUN
    allow_change: tuple[str, ...] = ()
    """Keys of run.yaml that may differ from what the run was started with."""
    fresh: bool = False
    """Whether to set the earlier record aside and begin anew."""
    attach: bool = False
    """Whether to follow, rather than refuse, when another process drives the run."""
    page_offer: JobOffer | None = None
    """The first offer of the plan that was just shown, priced; None if none was shown."""
    ask: bool = False
    """Whether somebody is there to be asked before a run that begins rents a machine."""
    account: Account | None = None
    """As whom the trainer on the machine fetches a base that not everybody may have."""

    notify: Secret | None = None
    """The web address that is told what becomes of the run; it may hold a token."""
    watchers: tuple[Watcher, ...] = ()
    """What learns of each turn beside the console."""
    parent: Path | None = None
    """The directory of the adapter that the run goes on from; None if it begins with a fresh one.
    """

    @property
    def folder(self) -> RunFolder:
        """The run's folder on this computer."""
        return run_folder(self.home, self.loaded.config.name)
