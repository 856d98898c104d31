"""A whole tiny project in a folder (model, rows, run.yaml), and `qft` at work in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from infra.run.journal import Event, Kind, read
from support.tiny import ROOT, make_model, make_rows

TIMEOUT_S = 600.0  # for a machine with better things to do; no test waits for it if all is well


@dataclass(frozen=True, kw_only=True)
class Project:
    """A run.yaml with what it names, and a `$QFT_HOME` of its own."""

    folder: Path
    name: str = "tiny"

    @property
    def home(self) -> Path:
        """Its QFT_HOME."""
        return self.folder / "home"

    @property
    def config(self) -> Path:
        """Its run.yaml."""
        return self.folder / "run.yaml"

    @property
    def out(self) -> Path:
        """Where its results go."""
        return self.folder / "out" / self.name

    def environment(self) -> dict[str, str]:
        """An environment in which nothing reaches for a network or another run."""
        return {
            **os.environ,
            "QFT_HOME": str(self.home),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `qft` with these arguments in the project's folder."""
        return subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), *arguments],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def qft(
        self, *arguments: str, timeout_s: float = TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run `qft` to its end."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(
                f"qft {arguments} took over {timeout_s} s:\n{out}\n{err}"
            ) from None
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def events(self) -> list[Event]:
        """What its journal says."""
        return read(self.home / "runs" / self.name / "journal.jsonl")

    def kinds(self) -> list[Kind]:
        """What its journal says happened, in order."""
        return [event.kind for event in self.events()]

    def tensors(self) -> bytes:
        """The adapter that came home, as it lies on the disk."""
        return (self.out / "adapter" / "adapter_model.safetensors").read_bytes()

    def losses(self) -> list[tuple[int, float]]:
        """Step and loss of every step."""
        lines = (self.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [(record["step"], record["loss"]) for record in map(json.loads, lines)]

    def processes(self) -> list[psutil.Process]:
        """Every process that works for a machine of this project."""
        mine = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                inside = process.cwd().startswith(str(self.home))
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            if inside or any(str(self.home) in word for word in words):
                mine.append(process)
        return mine

    def tidy(self) -> None:
        """Remove what the project still runs."""
        self.qft("down", "--all", "--delete")


def make_project(folder: Path, *, name: str = "tiny", **tables: Any) -> Project:
    """Lay out a project; `tables` are merged into its run.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        make_model(folder / "model")
    make_rows(folder / "train.jsonl", 24)
    make_rows(folder / "eval.jsonl", 6)
    config: dict[str, Any] = {
        "name": name,
        "vm": {"provider": "local", "gpu": "T4", "max_price": 0.25, "local": {"notice_s": 1}},
        "budget": {"usd": 1.0, "hours": 1, "evictions": 20},
        "model": {"id": "model"},
        "method": {"kind": "lora", "r": 4, "alpha": 8, "dropout": 0.1},
        "data": {
            "train": "train.jsonl",
            "eval": "eval.jsonl",
            "prompt": "{text}\nmood: ",
            "completion": "{mood}",
        },
        "train": {
            "steps": 250,
            "batch_size": 8,
            "lr": 1e-2,
            "max_length": 128,
            "threads": 1,
            "gradient_checkpointing": False,
        },
        "checkpoint": {"every": 25},
        "eval": {"kind": "label", "labels": ["negative", "neutral", "positive"]},
    }
    for table, fields in tables.items():
        old = config.get(table)
        config[table] = {**old, **fields} if isinstance(old, dict) else fields
    project = Project(folder=folder, name=name)
    project.config.write_text(yaml.safe_dump(config), encoding="utf-8")
    return project


def wait_until(condition: Callable[[], bool], timeout_s: float = 300.0) -> None:
    """Wait until the answer is yes."""
    ends_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > ends_s:
            raise AssertionError("it did not happen in time")
        time.sleep(0.05)


def json_of(done: subprocess.CompletedProcess[str]) -> Any:
    """What a command printed with --json."""
    return json.loads(done.stdout)
