"""What is done with one training job: train it, kill and resume it, verify it, compare its speed.

An act never raises for what a process does: it returns a line that says how it ended.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpu.comparing import differences, last_step, read_log
from gpu.lines import Figure, Line, Result, figures_of
from gpu.running import Budget, Ended, Runner, summary
from gpu.watched import speed

HASHES = ".hashes.json"  # what the files of the base hash to, kept by the trainer
ENDING_S = 5.0  # kept of the budget for the table


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is trained; counts are of steps, of sequences, and of tokens of a sequence."""

    steps: int = 30
    batch_size: int = 8
    micro_batch: int = 4
    every: int = 10  # steps between checkpoints
    kill_after: int = 14
    warm_up: int = 5  # steps that do not count for the speed
    max_length: int = 512


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: a model, its arithmetic, its optimizer.

    A process of it takes about `expect_s` seconds, and is not begun with less time left; after
    `limit_s` it is stopped.
    """

    model: str
    precision: str = "bf16"
    optimizer: str = "adamw"
    r: int = 8
    expect_s: float = 20.0
    limit_s: float = 120.0

    @property
    def name(self) -> str:
        """What the table calls it."""
        plain = self.optimizer == "adamw"
        return f"{self.model} {self.precision}" + ("" if plain else f" {self.optimizer}")

    @property
    def folder(self) -> str:
        """The name of its directories."""
        return f"{self.model}-{self.precision}-{self.optimizer}"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where everything lies: `work/models/NAME`, `work/rows.jsonl`, and a folder for each run."""

    work: Path
    scale: Scale
    runner: Runner
    budget: Budget

    def config(self, job: Job) -> dict[str, Any]:
        """Return the trainer's config.json of that job."""
        scale = self.scale
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
                "train": str(self.work / "rows.jsonl"),
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
            },
            "checkpoint": {"every": scale.every, "keep": 2},
        }

    def directory(self, job: Job, kind: str) -> Path:
        """Return the run directory of `job`, with its config and what is known of the base."""
        run_dir = self.work / f"{job.folder}-{kind}"
        if not run_dir.exists():
            run_dir.mkdir(parents=True)
            text = json.dumps(self.config(job), indent=1)
            (run_dir / "config.json").write_text(text, encoding="utf-8")
            hashes = self.work / f"{job.model}{HASHES}"
            if hashes.exists():  # hashing 16 GB anew for every run takes long and proves nothing
                shutil.copyfile(hashes, run_dir / HASHES)
        return run_dir

    def keep_hashes(self, job: Job, run_dir: Path) -> None:
        """Remember what the base's files hash to, for the runs that follow."""
        if (run_dir / HASHES).exists():
            shutil.copyfile(run_dir / HASHES, self.work / f"{job.model}{HASHES}")

    def limit_s(self, job: Job) -> float:
        """Return the time that a process of this job may take now."""
        return min(job.limit_s, max(0.0, self.budget.left_s - ENDING_S))


Act = Callable[[Place, Job], Line]


def not_in_time(place: Place, job: Job) -> str | None:
    """Say that there is no time for another process of `job`, None if there is."""
    if place.budget.left_s - ENDING_S >= job.expect_s:
        return None
    return f"no time left: {place.budget.left_s:.0f} s of {place.budget.limit_s:.0f}"


def attempt(act: Act, place: Place, job: Job, *, what: str, hindrance: str | None) -> Line:
    """Do an act unless something hinders it; whatever it raises is the error of its line."""
    what = f"{job.name}: {what}"
    hindrance = hindrance or not_in_time(place, job)
    if hindrance:
        return Line(what=what, result=Result.NOT_RUN, error=hindrance)
    began_s = place.budget.spent_s
    try:
        return act(place, job)
    except Exception as error:  # noqa: BLE001 - a line with its error, and the next one
        seconds = place.budget.spent_s - began_s
        text = f"{type(error).__name__}: {error}"
        return Line(what=what, result=Result.FAILED, seconds=seconds, error=text)


def train(place: Place, job: Job, *, alone: bool) -> Line:
    """Train without disturbance; speed is only told if nothing else was running."""
    what = f"{job.name}: load and train"
    run_dir = place.directory(job, "calm")
    limit_s = place.limit_s(job)
    notes = place.work / f"{job.folder}-calm.json"
    ended = place.runner.run(
        "gpu.watched", str(notes), "0", "train", "--run-dir", str(run_dir), limit_s=limit_s
    )
    place.keep_hashes(job, run_dir)
    recorded = _read(notes)
    figures = measured(recorded, warm_up=place.scale.warm_up, alone=alone)
    if not ended.fine:
        return _failed(what, ended, limit_s, figures)
    status = _read(run_dir / "status.json")
    parts = [f"{last_step(run_dir)} steps, loss {_loss(run_dir)}"]
    ratio = _ratio(recorded)
    if ratio:
        parts.append(ratio)
    return Line(
        what=what,
        result=Result.DONE,
        seconds=ended.seconds,
        message=", ".join([*parts, *_exactness(status)]),
        figures=figures,
        log=ended.log,
    )


def kill_and_resume(place: Place, job: Job) -> Line:
    """Kill a second run of the job in the middle, start it again, and compare it with the calm one.

    The kill comes after a checkpoint and some steps more, which the resumed run has to do again.
    """
    what = f"{job.name}: SIGKILL and resume"
    scale = place.scale
    calm = place.directory(job, "calm")
    if last_step(calm) != scale.steps or not (calm / "adapter").is_dir():
        return Line(
            what=what,
            result=Result.NOT_RUN,
            error="there is no undisturbed run to compare with",
        )
    run_dir = place.directory(job, "killed")
    saved = run_dir / "checkpoints" / f"step-{scale.every:08d}"

    def in_the_middle() -> bool:
        return last_step(run_dir) >= scale.kill_after and saved.is_dir()

    command = ("train", "--run-dir", str(run_dir))
    limit_s = place.limit_s(job)
    notes, brake = str(place.work / f"{job.folder}-killed.json"), str(scale.kill_after + 1)
    first = place.runner.run(
        "gpu.watched", notes, brake, *command, limit_s=limit_s, until=in_the_middle
    )
    if not first.killed:
        if first.fine:
            return Line(
                what=what,
                result=Result.FAILED,
                seconds=first.seconds,
                error="the run was over before it could be killed",
            )
        return _failed(what, first, limit_s, {})
    killed_after = last_step(run_dir)
    limit_s = place.limit_s(job)
    second = place.runner.run("gpu.watched", notes, "0", *command, limit_s=limit_s)
    seconds = first.seconds + second.seconds
    if not second.fine:
        return _failed(what, second, limit_s, {}, seconds=seconds)
    line = _judge_resumed(place, (calm, run_dir), what=what, killed_after=killed_after)
    return replace(line, seconds=seconds, log=f"{line.log}\n{second.log}".strip())


def _judge_resumed(place: Place, runs: tuple[Path, Path], *, what: str, killed_after: int) -> Line:
    """Compare a resumed run with the calm one, and look at what its status says."""
    calm, run_dir = runs
    status = _read(run_dir / "status.json")
    figures = figures_of(
        {
            "killed_after": (float(killed_after), "step"),
            "resumed_from": (status.get("resumed_from"), "step"),
            "redone": (status.get("redone_steps"), "steps"),
        }
    )
    found = differences(calm, run_dir, steps=place.scale.steps)
    if status.get("resumes") != 1 or not status.get("resumed_from"):
        found.append(f"it did not resume from a checkpoint: {status.get('resumed_from')}")
    message = f"killed after step {killed_after}, went on from step {status.get('resumed_from')}"
    if found:
        log = "\n".join(found)
        return Line(
            what=what,
            result=Result.FAILED,
            message=message,
            error=found[0],
            figures=figures,
            log=log,
        )
    same = "the same bits: every step's log, adapter, optimizer"
    message = "; ".join([message, same, *_exactness(status)])
    return Line(what=what, result=Result.DONE, message=message, figures=figures)


def verify(place: Place, job: Job) -> Line:
    """Let the trainer verify the run that was killed: the last steps again, compared by itself."""
    what = f"{job.name}: verify"
    run_dir = place.directory(job, "killed")
    if not (run_dir / "adapter").is_dir():
        return Line(what=what, result=Result.NOT_RUN, error="there is no resumed run to verify")
    limit_s = place.limit_s(job)
    ended = place.runner.run(
        "trainer", "verify", "--run-dir", str(run_dir), "--json", limit_s=limit_s
    )
    found = _parse(ended.out)
    if not found:
        return _failed(what, ended, limit_s, {})
    figures = {"replayed": Figure(value=float(found.get("steps", 0)), unit="steps")}
    if not ended.fine or found.get("equal") is not True or not found.get("steps"):
        error = f"not the same: {json.dumps(found.get('first_difference'))}"
        return Line(
            what=what, result=Result.FAILED, seconds=ended.seconds, error=error, figures=figures
        )
    begin = found.get("after_step", 0) + 1
    message = f"steps {begin} to {begin + found['steps'] - 1} again: the same bits"
    return Line(
        what=what, result=Result.DONE, seconds=ended.seconds, message=message, figures=figures
    )


def compare_speed(place: Place, job: Job) -> Line:
    """Train the same with `transformers.Trainer`."""
    what = f"{job.name}: transformers.Trainer"
    notes = place.work / f"{job.folder}-theirs.json"
    run_dir = place.directory(job, "theirs")
    limit_s = place.limit_s(job)
    ended = place.runner.run("gpu.baseline", str(notes), str(run_dir), limit_s=limit_s)
    theirs = _read(notes)
    if not ended.fine:
        return _failed(what, ended, limit_s, {})
    figures = measured(theirs, warm_up=place.scale.warm_up, alone=True)
    figures.pop("forecast_allocated", None)
    ours = _read(place.work / f"{job.folder}-calm.json")
    here, there = (
        speed(each.get("steps", []), warm_up=place.scale.warm_up) for each in (ours, theirs)
    )
    message = f"ours is {here / there:.2f} times as fast" if here and there else ""
    return Line(
        what=what, result=Result.DONE, seconds=ended.seconds, message=message, figures=figures
    )


def measured(notes: dict[str, Any], *, warm_up: int, alone: bool) -> dict[str, Figure]:
    """Return the figures of one process's notes."""
    estimate = notes.get("estimate") or {}
    used = notes.get("card_used_bytes") if alone else None
    return figures_of(
        {
            "tokens_per_s": (
                speed(notes.get("steps", []), warm_up=warm_up) if alone else None, "tokens/s",
            ),
            "peak_allocated": (notes.get("peak_allocated_bytes"), "bytes"),
            "peak_reserved": (notes.get("peak_reserved_bytes"), "bytes"),
            "load_peak": (notes.get("load_peak_bytes"), "bytes"),
            "base_and_adapter": (notes.get("base_bytes"), "bytes"),
            "card_used": (used, "bytes"),
            "forecast_allocated": (estimate.get("allocated"), "bytes"),
            "forecast_reserved": (estimate.get("reserved"), "bytes"),
            "forecast_base": (estimate.get("base"), "bytes"),
        }
    )  # fmt: skip


def _ratio(notes: dict[str, Any]) -> str | None:
    """Say how the measured peak compares with the forecast."""
    peak, estimate = notes.get("peak_allocated_bytes"), notes.get("estimate")
    if not peak or not estimate:
        return None
    percent = 100 * (peak / estimate["allocated"] - 1)
    return f"peak {abs(percent):.0f} % {'above' if percent > 0 else 'below'} the forecast"


def _exactness(status: dict[str, Any]) -> list[str]:
    """Say if torch refused a fixed order, or if a resume was on other grounds."""
    since = status.get("inexact_from")
    return [] if since is None else [f"the trainer calls it inexact from step {since} on"]


def _loss(run_dir: Path) -> str:
    """Return the losses at both ends."""
    losses = [record.get("loss") for record in read_log(run_dir)]
    parts = ["not finite" if one is None else f"{one:.3f}" for one in (losses[0], losses[-1])]
    return " to ".join(parts)


def _failed(
    what: str,
    ended: Ended,
    limit_s: float,
    figures: dict[str, Figure],
    *,
    seconds: float | None = None,
) -> Line:
    return Line(
        what=what,
        result=Result.FAILED,
        seconds=ended.seconds if seconds is None else seconds,
        error=summary(ended, limit_s=limit_s),
        figures=figures,
        log=ended.log,
    )


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON table, empty if there is none."""
    try:
        return _parse(path.read_text(encoding="utf-8"))
    except OSError:
        return {}


def _parse(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
