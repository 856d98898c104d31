"""What a rank writes into the run directory: the first everything, most nothing.

The first rank of each further machine writes checkpoints and status into the directory there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.atomic import Disk, NoDisk, RealDisk
from trainer.tracking.tracker import NoTracker, Tracker, make_tracker


@dataclass(frozen=True)
class Writers:
    """Where the files of a job go, for code that need not know which rank it runs on."""

    write: bool = True
    save: bool = True
    """Whether it writes what every machine has of its own: checkpoints, status, stored base."""

    @property
    def disk(self) -> Disk:
        """The disk, or one that takes everything and keeps nothing."""
        return RealDisk() if self.save else NoDisk()

    def path(self, path: Path) -> Path | None:
        """Return where a file is written; None if this rank writes none."""
        return path if self.write else None

    def tracker(
        self, run_dir: Path, *, steps_done: int, on_message: Callable[[str], None]
    ) -> Tracker:
        """Return what shows the curves of a start that goes on after `steps_done`."""
        if not self.write:
            return NoTracker()
        return make_tracker(run_dir, steps_done=steps_done, wall_s=time.time, on_message=on_message)


EVERYTHING = Writers()
OWN_STATE = Writers(write=False)
NOTHING = Writers(write=False, save=False)
