"""A run with journal and log as `qft run` leaves them, made step by step without any machine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from commands.runs.config import LoadedConfig, check
from commands.runs.home import RunFolder
from infra.durable import write_json
from infra.offer import Offer
from infra.provider import StopReason, Vm
from infra.run import actions as act
from infra.run.budget import bill
from infra.run.context import TurnReport
from infra.run.decide import Seen
from infra.run.fold import fold
from infra.run.journal import Journal, Kind, Outcome, read

STEP_S = 10.0
PRICE_USD_PER_H = 0.36


def config(folder: Path, **tables: Any) -> LoadedConfig:
    """The checked config of a run on a base of the hub."""
    content: dict[str, Any] = {
        "name": "logged",
        "vm": {"provider": "local", "gpu": "T4", "max_price": 0.5},
        "budget": {"usd": 1.0, "hours": 10, "evictions": 9},
        "model": {"id": "somebody/something"},
        "data": {"train": "train.jsonl", "prompt": "{a}", "completion": "{b}"},
        "train": {"steps": 60},
        **tables,
    }
    return check(content, folder / "run.yaml")


@dataclass
class LoggedRun:
    """Writes what a run leaves at home, by a clock of its own."""

    home: Path
    loaded: LoadedConfig
    now_s: float = 1_800_000_000.0
    step: int = 0
    generation: int = 0
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin the run."""
        self.folder = RunFolder(root=self.home / "runs" / self.loaded.config.name)
        self.folder.root.mkdir(parents=True)
        self.journal = Journal(self.folder.journal, clock=lambda: self.now_s)
        self.save_config(self.loaded)
        self.journal.append(Kind.RUN_STARTED, run_id="logged-1a2b", name="logged")

    def save_config(self, loaded: LoadedConfig) -> None:
        """Let the run have another config from now on."""
        self.loaded = loaded
        saved = {"path": str(loaded.path), "config": loaded.config.model_dump(mode="json")}
        write_json(self.folder.config, saved)

    def rent(self) -> None:
        """Get a machine on which the trainer runs, a minute later."""
        self.generation += 1
        offer = Offer(provider="local", size="S", region="here", spot_usd_per_h=PRICE_USD_PER_H)
        self.journal.append(Kind.CREATE_INTENDED, generation=self.generation, offer=asdict(offer))
        vm = Vm(
            id=f"vm-{self.generation}",
            run_id="logged-1a2b",
            provider="local",
            size="S",
            region="here",
            price_usd_per_h=PRICE_USD_PER_H,
        )
        self.journal.append(Kind.CREATE_ACCEPTED, vm=asdict(vm))
        self.now_s += 60
        self.journal.append(Kind.RUNNING_SEEN)
        self.journal.append(Kind.PREPARED)
        self.journal.append(Kind.LAUNCHED)

    def train_to(self, step: int) -> None:
        """Do the steps up to one, and copy the log here."""
        while self.step < step:
            self.step += 1
            self.now_s += STEP_S
            self.lines.append(json.dumps(record(self.step)))
        self.journal.append(Kind.PROGRESS, step=step, steps=60)
        self.copy_log(self.folder.live / "metrics.jsonl")

    def copy_log(self, path: Path) -> None:
        """Let a file hold the log so far."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in self.lines))

    def evict(self, *, back_to: int) -> None:
        """Lose the machine with its disk; the next one begins at a checkpoint."""
        self.now_s += 5
        self.journal.append(
            Kind.STOP_SEEN,
            power="gone",
            reason=StopReason.EVICTED,
            detail="",
            step=self.step,
            certain=True,
        )
        self.step, self.lines = back_to, self.lines[:back_to]

    def end(self, outcome: Outcome = Outcome.DONE) -> None:
        """Bring the results home and end."""
        out = self.loaded.out
        if outcome is Outcome.DONE:
            self.journal.append(Kind.TRAINED)
            self.copy_log(out / "metrics.jsonl")
            for stage, value in (("before", 0.25), ("after", 0.75)):
                score = {"metric": "accuracy", "value": value, "low": value - 0.1, "n": 40}
                text = json.dumps({**score, "high": value + 0.1})
                (out / f"eval-{stage}.json").write_text(text)
            self.journal.append(Kind.FETCHED, path=str(out))
        self.now_s += 30
        self.journal.append(Kind.RUN_ENDED, code=outcome.value, reason=outcome.name.lower())


def record(step: int) -> dict[str, Any]:
    """A line of the log; the same whenever the step is done."""
    line: dict[str, Any] = {"step": step, "epoch": 0, "loss": 2.0 / step, "lr": 1e-4}
    line |= {"grad_norm": None if step == 7 else 1.0, "tokens": 512, "targets": 40, "skipped": 0}
    line |= {"params": "ab12", "seconds": STEP_S}
    return line | ({"validation_loss": 3.0 / step} if step % 10 == 0 else {})


def turn(run: LoggedRun, warning: str = "") -> TurnReport:
    """A turn of the loop at this moment."""
    state = fold(read(run.folder.journal))
    return TurnReport(
        state=state,
        seen=Seen(),
        action=act.Wait(wait_s=1.0, reason=""),
        bill=bill(state, run.now_s),
        now_s=run.now_s,
        warning=warning,
    )
