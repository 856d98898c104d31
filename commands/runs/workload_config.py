"""The description of the remote side of one run: where it lies there, and what is used for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from commands.runs.factory import MakeReady
from commands.runs.payload import Payload
from commands.runs.peer_copies import PeerCopies
from commands.runs.power_watch import PowerWatch
from commands.runs.result_files import Expected
from infra.provider import Vm
from trainer.hub_models import Account


@dataclass(frozen=True, kw_only=True)
class RemoteLayout:
    """Where things lie on the machine, relative to the home of its user."""

    run_id: str

    @property
    def base(self) -> str:
        """The one folder that the run uses there."""
        return f"qft/{self.run_id}"

    @property
    def run_dir(self) -> str:
        """The trainer's run directory."""
        return f"{self.base}/run"

    @property
    def code(self) -> str:
        """Where the shipped trainer lies; the trainer's working directory."""
        return f"{self.base}/code"

    @property
    def job(self) -> str:
        """The record and the log of the detached job."""
        return f"{self.base}/job"


@dataclass(frozen=True, kw_only=True)
class WorkloadConfig:
    """What the workload of one run needs to know and may use."""

    layout: RemoteLayout
    key_path: Path
    payload: Payload
    home: Path
    """Where checkpoints come home to."""
    out: Path
    """Where results go in the end."""
    make_ready: MakeReady
    cache: Path
    """Where hashes of local files are remembered."""
    helper_python: str = "python3"
    """The interpreter there for our own small scripts, before any environment is made."""
    rents: bool
    brings_home: bool = True
    """Whether checkpoints are copied home; a mere onlooker leaves that to the driver."""
    leads: Callable[[], bool] = lambda: True
    """Whether it is from this machine that they are, of several that have the same."""
    copies: PeerCopies | None = None
    """Where it gets large files from, if another machine of the run has them."""
    pull_lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a checkpoint comes home: the workloads of a run share it, and one folder."""
    expected: Callable[[], Expected]
    """What the run can make at most, by name and size; worked out when it is needed."""
    eviction_band: Callable[[], str]
    """Evictions per hour in percent where the machine was rented, for the checkpoint interval."""
    cards_on: Callable[[Vm], int] = lambda _vm: 1
    """How many cards of a machine the trainer uses: a process for each."""
    gpus: int = 1
    """How many cards run.yaml asks for; a machine of before a change of it may have fewer."""
    nodes: int = 1
    """How many machines run.yaml asks for."""
    allow_change: Sequence[str] = ()
    power_watch: PowerWatch = field(default_factory=lambda: PowerWatch(lambda _vm: ""))
    """Asks the cloud whether the machine is still there while something long is done on it."""
    account: Account | None = None
    """As whom the trainer there fetches a base that not everybody may have; sent at each start."""
    changed: bool = False
    """Whether a trainer that runs was started with another config than this one."""
    on_message: Callable[[str], None]
    """Tell people what is being done, one line at a time."""
    progress: Callable[[str, int, int], None]
    """Tell how far a transfer is: what, bytes done, bytes in all."""
    clock: Callable[[], float] = time.monotonic
    """Times how long transfers take."""
