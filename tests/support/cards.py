"""A machine with a card, played: whatever is started leaves at once what a good process leaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu.jobs import Job, Place, Scale
from gpu.lines import Line, Result
from gpu.peers import PEERS
from gpu.running import Budget, Ended

SCALE = Scale(steps=6, every=2, kill_after=3, warm_up=2)
JOB = Job(model="1b", expect_s=20, limit_s=100)
CARD = {"device": "cuda", "gpu": "NVIDIA Test", "memory_bytes": 150e9, "versions": {}}
OUT_OF_MEMORY = Ended(code=78, seconds=9, error="said\ntorch.OutOfMemoryError: 2 GiB too much\n")


def write_run(run_dir: Path, *, upto: int, steps: int = 6, seconds: float = 1.0) -> None:
    """Leave what a training of `upto` of `steps` steps leaves: log, checkpoints and adapter."""
    log = [
        {"step": at, "loss": 1 / at, "params": f"{at:016x}", "seconds": seconds * at}
        for at in range(1, upto + 1)
    ]
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in log))
    for step in range(2, upto + 1, 2):
        saved = run_dir / "checkpoints" / f"step-{step:08d}"
        saved.mkdir(parents=True, exist_ok=True)
        (saved / "adapter.safetensors").write_bytes(b"adapter %d" % step)
        (saved / "optimizer.safetensors").write_bytes(b"moments %d" % step)
    if upto == steps:
        (run_dir / "adapter").mkdir(exist_ok=True)
        (run_dir / "adapter" / "adapter_model.safetensors").write_bytes(b"trained")


def notes(*, step_s: float = 2.0) -> dict[str, Any]:
    """Return the notes of a process that measured something."""
    return {
        "peak_allocated_bytes": 6_000_000_000,
        "peak_reserved_bytes": 7_000_000_000,
        "estimate": {"allocated": 5e9, "reserved": 6e9, "base": 1e9},
        "steps": [{"step": at, "tokens": 100, "at_s": at * step_s} for at in range(1, 7)],
    }


KERNELS = ("norm:1", "product:1")
"""The names of the kernels that the played machine has; it proves all of them."""


def examined() -> list[dict[str, Any]]:
    """Return the lines of a card that is looked at: one of the card, and two of each kernel."""
    names = [f"kernel {name}: {word}" for name in KERNELS for word in ("bf16", "fp16")]
    lines = [Line(what=what, result=Result.DONE) for what in ("card: NF4", *names)]
    return [asdict(line) for line in lines]


def one_by_one() -> dict[str, dict[str, Any]]:
    """Return what sets of kernels are worth."""
    return {
        name: {"kernels": ["norm:1"], "tokens_per_s": rate, "loss": 2.0}
        for name, rate in (("none", 10.0), ("norm:1", 15.0), ("all", 20.0))
    }


@dataclass(kw_only=True)
class Played:
    """A machine with a card, played: every process takes 10 s and leaves what a good one leaves.

    `faults` are asked first, with the command as one text; what they return is how it ended.
    """

    takes_s: float = 10.0
    faults: Callable[[str], Ended | None] = lambda _command: None
    now_s: float = 0.0
    commands: list[str] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(
        self, module: str, *arguments: str, limit_s: float, until: Callable[[], bool] | None = None
    ) -> Ended:
        """Play the process."""
        command = " ".join((module, *arguments))
        takes_s = 1.0 if "probe" in command else self.takes_s
        with self.lock:
            self.commands.append(command)
            self.limits.append(limit_s)
            self.now_s += min(takes_s, limit_s)
        ended = self.faults(command)
        if ended is not None:
            return ended
        if takes_s > limit_s:
            return Ended(code=-9, stopped=True, seconds=limit_s)
        return self._act(module, arguments, until)

    def _act(
        self, module: str, arguments: tuple[str, ...], until: Callable[[], bool] | None
    ) -> Ended:
        fine = Ended(code=0, seconds=self.takes_s)
        if module == "gpu.watched":
            run_dir = Path(arguments[-1])
            went_on = (run_dir / "metrics.jsonl").exists()
            if until is not None:
                write_run(run_dir, upto=2)
                assert not until()  # not before there is something to do again
                write_run(run_dir, upto=3)
                assert until()
                return Ended(code=-9, killed=True, seconds=self.takes_s)
            write_run(run_dir, upto=6, seconds=2.0 if went_on else 1.0)
            status = {"resumes": int(went_on), "resumed_from": 2 if went_on else None}
            (run_dir / "status.json").write_text(json.dumps({**status, "redone_steps": 1}))
            kernels = json.loads(arguments[1])["kernels"]
            used = [] if kernels == "all" else [kernels]
            Path(arguments[0]).write_text(json.dumps({**notes(), "kernels": used}))
        elif module == "gpu.peers":
            peers = {peer: {**notes(step_s=4.0), "loss": 0.5} for peer in PEERS}
            Path(arguments[0]).write_text(json.dumps(peers))
        elif module == "gpu.one_by_one":
            Path(arguments[0]).write_text(json.dumps(one_by_one()))
        elif module == "gpu.kernels":
            Path(arguments[0]).write_text(json.dumps(examined()))
        elif module == "trainer" and arguments[0] == "probe":
            return Ended(code=0, seconds=1, out=json.dumps(CARD))
        elif module == "trainer":
            found = {"equal": True, "steps": 2, "after_step": 4, "first_difference": None}
            return Ended(code=0, seconds=self.takes_s, out=json.dumps(found))
        elif module == "gpu.checks":
            return Ended(code=0, seconds=1, out="[]")
        return fine


def place(tmp_path: Path, played: Played, *, limit_s: float = 480) -> Place:
    """A place to work in, with a played machine and its clock."""
    budget = Budget(limit_s=limit_s, clock=lambda: played.now_s, began_s=0)
    return Place(work=tmp_path, scale=SCALE, runner=played, budget=budget)
