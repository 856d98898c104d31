"""`qft eval`: is the adapter better than its base, with the interval that makes it evidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from commands.runs.config import LoadedConfig
from commands.runs.find_config import reopen
from commands.runs.home import RunFolder, environment, pick_run, qft_home
from commands.runs.local_trainer import local_run_dir, trainer
from commands.runs.receipt import Score, read_score
from commands.runs.tool_checks import demand_for
from commands.ui.errors import TrainingError, UsageError
from infra.durable import write_json


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The metric of the base and of the adapter."""

    run: str
    before: Score | None
    after: Score | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "run": self.run,
            "before": asdict(self.before) if self.before else None,
            "after": asdict(self.after) if self.after else None,
        }

    def lines(self) -> list[str]:
        """What to print."""
        said = [
            f"before  {self.before or 'not measured'}",
            f"after   {self.after or 'not measured'}",
        ]
        if self.before and self.after:
            apart = self.after.low > self.before.high
            verdict = "the intervals do not overlap" if apart else "the intervals overlap"
            said.append(f"change  {self.after.value - self.before.value:+.3f}; {verdict}")
        return said


def scores(wanted: str, *, again: bool, on_message: Callable[[str], None]) -> Scores:
    """The scores that were fetched; with `again`, the adapter's measured anew on this computer."""
    folder = pick_run(qft_home(environment()), wanted, cwd=Path.cwd())
    loaded = reopen(folder)
    if loaded.config.eval is None:
        raise UsageError(f"`{folder.name}` has no table `eval`", hint="add one to run.yaml")
    if not (loaded.out / "adapter").is_dir():
        raise UsageError(
            f"the adapter of `{folder.name}` is not at home", hint=f"`qft fetch {folder.name}`"
        )
    if again:
        _measure(loaded, folder, on_message)
    return Scores(
        run=folder.name,
        before=read_score(loaded.out / "eval-before.json"),
        after=read_score(loaded.out / "eval-after.json"),
    )


def _measure(loaded: LoadedConfig, folder: RunFolder, on_message: Callable[[str], None]) -> None:
    """Run the trainer's own evaluation here, and put its result beside the adapter."""
    demand_for("eval", loaded)
    on_message("measuring on this computer")
    with local_run_dir(loaded, folder) as run_dir:
        done = trainer(run_dir, "eval", "--adapter", str((loaded.out / "adapter").absolute()))
        if done.returncode:
            raise TrainingError(f"the evaluation ended with exit code {done.returncode}")
        write_json(loaded.out / "eval-after.json", json.loads(done.stdout), mode=0o644)
