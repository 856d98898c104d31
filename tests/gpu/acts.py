"""What is done with one training job: train it, kill and resume it, verify it.

An act never raises for what a process does: it returns lines that say how it ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpu.comparing import differences, last_step, read_log
from gpu.jobs import ALL_KERNELS, ENDING_S, Job, Place
from gpu.lines import Figure, Line, Result, figures_of
from gpu.running import Ended, summary
from gpu.watched import Watching, speed, step_seconds

UNUSED = "the trainer does not use this kernel here"

Act = Callable[[Place, Job], Line | list[Line]]


def not_in_time(place: Place, job: Job) -> str | None:
    """Say that there is no time for another process of `job`, None if there is."""
    if place.budget.left_s - ENDING_S >= job.expect_s:
        return None
    return f"no time left: {place.budget.left_s:.0f} s of {place.budget.limit_s:.0f}"


def attempt(act: Act, place: Place, job: Job, *, what: str, hindrance: str | None) -> list[Line]:
    """Do an act unless something hinders it; whatever it raises is the error of its line."""
    what = f"{job.name}: {what}"
    hindrance = hindrance or not_in_time(place, job)
    if hindrance:
        return [Line(what=what, result=Result.NOT_RUN, error=hindrance)]
    began_s = place.budget.spent_s
    try:
        found = act(place, job)
    except Exception as error:  # noqa: BLE001 - a line with its error, and the next one
        seconds = place.budget.spent_s - began_s
        text = f"{type(error).__name__}: {error}"
        return [Line(what=what, result=Result.FAILED, seconds=seconds, error=text)]
    return [found] if isinstance(found, Line) else found


def watch(place: Place, job: Job, kind: str, *, brake_after: int = 0) -> tuple[str, ...]:
    """Return the arguments of a watched training of that job."""
    watching = Watching(brake_after=brake_after, kernels=job.kernels)
    run_dir = place.directory(job, kind)
    notes = str(place.notes(job, kind))
    return (notes, json.dumps(asdict(watching)), "train", "--run-dir", str(run_dir))


def train(place: Place, job: Job, *, alone: bool) -> Line:
    """Train without disturbance; speed is only told if nothing else was running."""
    what = f"{job.name}: load and train"
    run_dir = place.directory(job, "calm")
    limit_s = place.limit_s(job)
    ended = place.runner.run("gpu.watched", *watch(place, job, "calm"), limit_s=limit_s)
    place.keep_hashes(job, run_dir)
    recorded = read(place.notes(job, "calm"))
    figures = measured(recorded, warm_up=place.scale_of(job).warm_up, alone=alone)
    if not ended.fine:
        return failed(what, ended, limit_s, figures)
    if unused(place, job):
        return Line(what=what, result=Result.NOT_RUN, seconds=ended.seconds, error=UNUSED,
                    log=ended.log)  # fmt: skip
    status = read(run_dir / "status.json")
    parts = [f"{last_step(run_dir)} steps, loss {_loss(run_dir)}", *_ratios(recorded, figures)]
    if "loading" in figures and "first_step_after" in figures:
        loading, first = (figures[name].value for name in ("loading", "first_step_after"))
        parts.append(f"loaded in {loading:.1f} s, first step after {first:.1f} s")
    if recorded.get("kernels"):
        parts.append(f"kernels: {', '.join(recorded['kernels'])}")
    return Line(
        what=what,
        result=Result.DONE,
        seconds=ended.seconds,
        message=", ".join([*parts, *_exactness(status)]),
        figures=figures,
        log=ended.log,
    )


def unused(place: Place, job: Job) -> bool:
    """Tell whether the undisturbed run of a job with one kernel alone did not use it."""
    one_alone = job.kernels not in {ALL_KERNELS, "none"}
    return one_alone and job.kernels not in read(place.notes(job, "calm")).get("kernels", [])


def kill_and_resume(place: Place, job: Job) -> Line:
    """Kill a second run of the job in the middle, start it again, and compare it with the calm one.

    The kill comes after a checkpoint and some steps more, which the resumed run has to do again.
    """
    what = f"{job.name}: SIGKILL and resume"
    scale = place.scale_of(job)
    calm = place.directory(job, "calm")
    if last_step(calm) != scale.steps or not (calm / "adapter").is_dir():
        return Line(
            what=what,
            result=Result.NOT_RUN,
            error="there is no undisturbed run to compare with",
        )
    if unused(place, job):
        return Line(what=what, result=Result.NOT_RUN, error=UNUSED)
    run_dir = place.directory(job, "killed")
    saved = run_dir / "checkpoints" / f"step-{scale.every:08d}"

    def in_the_middle() -> bool:
        return last_step(run_dir) >= scale.kill_after and saved.is_dir()

    limit_s = place.limit_s(job)
    braked = watch(place, job, "killed", brake_after=scale.kill_after + 1)
    first = place.runner.run("gpu.watched", *braked, limit_s=limit_s, until=in_the_middle)
    if not first.killed:
        if first.fine:
            return Line(
                what=what,
                result=Result.FAILED,
                seconds=first.seconds,
                error="the run was over before it could be killed",
            )
        return failed(what, first, limit_s, {})
    killed_after = last_step(run_dir)
    limit_s = place.limit_s(job)
    second = place.runner.run("gpu.watched", *watch(place, job, "killed"), limit_s=limit_s)
    seconds = first.seconds + second.seconds
    if not second.fine:
        return failed(what, second, limit_s, {}, seconds=seconds)
    line = _judge_resumed((calm, run_dir), what=what, steps=scale.steps, killed_after=killed_after)
    started = start_up(read(place.notes(job, "killed")))
    return replace(
        line,
        seconds=seconds,
        log=f"{line.log}\n{second.log}".strip(),
        figures={**line.figures, **started},
    )


def _judge_resumed(
    runs: tuple[Path, Path], *, what: str, steps: int, killed_after: int
) -> Line:  # fmt: skip
    """Compare a resumed run with the calm one, and look at what its status says."""
    calm, run_dir = runs
    status = read(run_dir / "status.json")
    figures = figures_of(
        {
            "killed_after": (float(killed_after), "step"),
            "resumed_from": (status.get("resumed_from"), "step"),
            "redone": (status.get("redone_steps"), "steps"),
        }
    )
    found = differences(calm, run_dir, steps=steps)
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
    found = parse(ended.out)
    if not found:
        return failed(what, ended, limit_s, {})
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


def measured(notes: dict[str, Any], *, warm_up: int, alone: bool) -> dict[str, Figure]:
    """Return the figures of one process's notes."""
    estimate = notes.get("estimate") or {}
    used = notes.get("card_used_bytes") if alone else None
    step_s = step_seconds(notes.get("steps", []), warm_up=warm_up)
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
            "planned_reserved": ((notes.get("planned") or {}).get("reserved"), "bytes"),
            "forecast_base": (estimate.get("base"), "bytes"),
            "step": (step_s if alone else None, "s"),
            "forecast_step": (notes.get("estimated_step_s"), "s"),
        }
    ) | start_up(notes)  # fmt: skip


def start_up(notes: dict[str, Any]) -> dict[str, Figure]:
    """Return what a start took: until the base is loaded from, loading it, until the first step."""
    began, ended, steps = (notes.get(name) for name in ("load_began_s", "load_ended_s", "steps"))
    if began is None or ended is None:
        return {}
    first = steps[0]["at_s"] if steps else None
    return figures_of(
        {
            "before_loading": (began, "s"), "loading": (ended - began, "s"),
            "first_step_after": (first, "s"),
        }
    )  # fmt: skip


def _ratios(notes: dict[str, Any], figures: dict[str, Figure]) -> list[str]:
    """Say how measured memory and time compare with what is forecast of them."""
    found = []
    peak, estimate = notes.get("peak_allocated_bytes"), notes.get("estimate")
    if peak and estimate:
        percent = 100 * (peak / estimate["allocated"] - 1)
        beside = "above" if percent > 0 else "below"
        found.append(f"peak {abs(percent):.0f} % {beside} the forecast")
    if "step" in figures and "forecast_step" in figures:
        ratio = figures["step"].value / figures["forecast_step"].value
        found.append(f"a step takes {ratio:.2f} times the forecast")
    return found


def _exactness(status: dict[str, Any]) -> list[str]:
    """Say if torch refused a fixed order, or if a resume was on other grounds."""
    since = status.get("inexact_from")
    return [] if since is None else [f"the trainer calls it inexact from step {since} on"]


def _loss(run_dir: Path) -> str:
    """Return the losses at both ends."""
    losses = [record.get("loss") for record in read_log(run_dir)]
    parts = ["not finite" if one is None else f"{one:.3f}" for one in (losses[0], losses[-1])]
    return " to ".join(parts)


def failed(
    what: str,
    ended: Ended,
    limit_s: float,
    figures: dict[str, Figure],
    *,
    seconds: float | None = None,
) -> Line:
    """Return the line of a process that did not end well."""
    return Line(
        what=what,
        result=Result.FAILED,
        seconds=ended.seconds if seconds is None else seconds,
        error=summary(ended, limit_s=limit_s),
        figures=figures,
        log=ended.log,
    )


def read(path: Path) -> dict[str, Any]:
    """Return a JSON table, empty if there is none."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError:
        return {}


def parse(text: str) -> dict[str, Any]:
    """Return the JSON table that a text is, an empty one if it is none."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
