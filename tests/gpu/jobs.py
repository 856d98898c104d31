"""What is trained on the card, and where it lies: a job, how much of it, its config and folders."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpu.running import Budget, Runner
from gpu.shapes import write_rows

HASHES = ".hashes.json"  # what the files of the base hash to, kept by the trainer
ENDING_S = 5.0  # kept of the budget for the table
ALL_KERNELS = "all"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is trained; counts are of steps, of sequences, and of tokens of a sequence."""

    steps: int = 20
    batch_size: int = 32
    micro_batch: int = 16  # fewer tokens at once measure how fast Python starts kernels
    every: int = 6  # steps between checkpoints
    kill_after: int = 9
    warm_up: int = 4  # steps that do not count for the speed
    max_length: int = 512

    def at(self, length: int) -> Scale:
        """Return the same number of tokens in rows of at most `length` tokens."""
        if length == self.max_length:
            return self
        batch = max(1, self.batch_size * self.max_length // length)
        micro = max(1, self.micro_batch * self.max_length // length)
        return replace(self, max_length=length, batch_size=batch, micro_batch=min(micro, batch))


SCALES: Mapping[str, Scale] = {
    "8b": Scale(steps=12, batch_size=16, micro_batch=8, every=4, kill_after=6),
    "first start": Scale(steps=2, batch_size=4, micro_batch=4, every=2, kill_after=1, warm_up=1),
    "short": Scale(steps=8, every=3, kill_after=4, warm_up=2),
}
"""Of the jobs that do not have the usual one, by `Job.scale`."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: a model, its arithmetic, its optimizer, its kernels.

    A process of it takes about `expect_s` seconds, and is not begun with less time left; after
    `limit_s` it is stopped.
    """

    model: str
    precision: str = "bf16"
    optimizer: str = "adamw"
    r: int = 8
    exact: bool = True
    kernels: str = ALL_KERNELS
    """`all` that the trainer chooses, `none` of them, or one alone by its `watched.label`."""
    length: int | None = None
    """Tokens of the longest row, if not those of the scale."""
    scale: str = ""
    """A key of `SCALES` other than the model's name."""
    expect_s: float = 20.0
    limit_s: float = 120.0

    @property
    def settings(self) -> tuple[str, ...]:
        """What is not as usual."""
        return tuple(
            word
            for word, unusual in (
                (self.optimizer, self.optimizer != "adamw"),
                (self.scale, bool(self.scale) and self.kernels == ALL_KERNELS),
                ("inexact", not self.exact),
                (f"{self.length} tokens", self.length is not None),
                (f"kernel {self.kernels}", self.kernels != ALL_KERNELS),
            )
            if unusual
        )

    @property
    def name(self) -> str:
        """What the table calls it."""
        return " ".join((self.model, self.precision, *self.settings))

    @property
    def folder(self) -> str:
        """The name of its directories."""
        unusual = [re.sub(r"\W", "-", word) for word in self.settings if word != self.optimizer]
        return "-".join((self.model, self.precision, self.optimizer, *unusual))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where everything lies: `work/models/NAME`, rows by length, and a folder for each run."""

    work: Path
    scale: Scale
    runner: Runner
    budget: Budget
    scales: Mapping[str, Scale] = field(default_factory=dict)

    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def scale_of(self, job: Job) -> Scale:
        """Return how much of that job is trained."""
        scale = self.scales.get(job.scale or job.model, self.scale)
        return scale if job.length is None else scale.at(job.length)

    def rows(self, job: Job) -> Path:
        """Return where the rows of that job's length are."""
        return self.work / f"rows-{self.scale_of(job).max_length}.jsonl"

    def config(self, job: Job) -> dict[str, Any]:
        """Return the trainer's config.json of that job."""
        scale = self.scale_of(job)
        return {
            "model": {"id": str(self.work / "models" / job.model)},
            "method": {
                "kind": "qlora",
                "r": job.r,
                "alpha": 2 * job.r,
                "dropout": 0.05,
                "optimizer": job.optimizer,
            },
            "data": {
                "train": str(self.rows(job)),
                "prompt": "{text}",
                "completion": "{answer}",
                "loss_on": "all",
            },
            "train": {
                "steps": scale.steps,
                "batch_size": scale.batch_size,
                "micro_batch": scale.micro_batch,
                "max_length": scale.max_length,
                "warmup": 3,
                "gradient_checkpointing": True,  # as `auto` has it on a card, and on a CPU too
                "precision": job.precision,
                **({} if job.exact else {"exact": False}),
            },
            "checkpoint": {"every": scale.every, "keep": 2},
        }

    def directory(self, job: Job, kind: str) -> Path:
        """Return the run directory of `job`, with its config and what is known of the base."""
        run_dir = self.work / f"{job.folder}-{kind}"
        if not run_dir.exists():
            text = json.dumps(self.config(job), indent=1)
            run_dir.mkdir(parents=True)
            self._write_rows(job)
            (run_dir / "config.json").write_text(text, encoding="utf-8")
            hashes = self.work / f"{job.model}{HASHES}"
            if hashes.exists():  # hashing 16 GB anew for every run takes long and proves nothing
                shutil.copyfile(hashes, run_dir / HASHES)
        return run_dir

    def _write_rows(self, job: Job) -> None:
        path, longest = self.rows(job), self.scale_of(job).max_length
        with self._lock:  # of several lanes, the first writes them
            if not path.exists():
                write_rows(path, longest=longest, shortest=longest // 2)

    def notes(self, job: Job, kind: str) -> Path:
        """Return the file in which a process of that job leaves what it measured."""
        return self.work / f"{job.folder}-{kind}.json"

    def keep_hashes(self, job: Job, run_dir: Path) -> None:
        """Remember what the base's files hash to, for the runs that follow."""
        if (run_dir / HASHES).exists():
            shutil.copyfile(run_dir / HASHES, self.work / f"{job.model}{HASHES}")

    def limit_s(self, job: Job) -> float:
        """Return the time that a process of this job may take now."""
        return min(job.limit_s, max(0.0, self.budget.left_s - ENDING_S))
