"""What one process tells in several lines: the card with its kernels, their worth, other trainers.

As an act of one job, each never raises for what a process does.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any

from gpu.acts import failed, measured, read
from gpu.comparing import read_log
from gpu.jobs import Job, Place
from gpu.lines import Figure, Line, Result, figures_of, line_of
from gpu.one_by_one import ALL, NONE
from gpu.peers import PEERS
from gpu.running import Ended
from gpu.watched import speed

LOSSES = ("loss", "our_loss")
EXAMINED = "the card and its kernels"


def examine(place: Place, job: Job) -> list[Line]:
    """Look at the card's arithmetic and prove every kernel; what was done before a fault counts."""
    path = place.work / "kernels.json"
    limit_s = place.limit_s(job)
    ended = place.runner.run("gpu.kernels", str(path), limit_s=limit_s)
    try:
        lines = [line_of(raw) for raw in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):
        lines = []
    return lines if ended.fine else [*lines, failed(EXAMINED, ended, limit_s, {})]


def timed(lines: list[Line], ended: Ended) -> list[Line]:
    """Give the seconds of a process to the first of its lines."""
    return [
        replace(line, seconds=ended.seconds) if not at else line for at, line in enumerate(lines)
    ]


def one_by_one(place: Place, job: Job) -> list[Line]:
    """Measure the same steps without kernels, with each of them alone, and with all.

    With all twice, the second time with the base unpacked.
    """
    what = f"{job.name}: kernels one by one"
    path = place.notes(job, "one-by-one")
    run_dir = place.directory(job, "one-by-one")
    limit_s = place.limit_s(job)
    ended = place.runner.run("gpu.one_by_one", str(path), str(run_dir), limit_s=limit_s)
    found = read(path)
    lines = [_one(what, name, notes, found.get(NONE)) for name, notes in found.items()]
    return timed(lines, ended) if ended.fine else [*lines, failed(what, ended, limit_s, {})]


def _one(what: str, name: str, notes: dict[str, Any], without: dict[str, Any] | None) -> Line:
    figures = figures_of(
        {
            "tokens_per_s": (notes.get("tokens_per_s"), "tokens/s"),
            "peak_allocated": (notes.get("peak_allocated_bytes"), "bytes"),
            "loss": (notes.get("loss"), "nats"),
        }
    )
    message = ""
    if without and name != NONE:
        message = f"{notes['tokens_per_s'] / without['tokens_per_s']:.2f} times as fast as without"
    if name == ALL:
        message += f": {', '.join(notes['kernels'])}"
    if notes.get("unpacked_bytes"):
        message += f": {notes['unpacked_bytes'] / 1e9:.1f} GB of values kept"
    if notes.get("waits_at"):
        message = f"{message}, the host waits for the card at {notes['waits_at']}".lstrip(", ")
    return Line(what=f"{what}: {name}", result=Result.DONE, message=message, figures=figures)


def compare(place: Place, job: Job) -> list[Line]:
    """Train the same rows with other trainers, and say how many times as fast ours was."""
    path = place.notes(job, "peers")
    run_dir = place.directory(job, "peers")
    limit_s = place.limit_s(job)
    ended = place.runner.run("gpu.peers", str(path), str(run_dir), limit_s=limit_s)
    found = read(path)
    ours = read(place.notes(job, "calm"))
    line = partial(_peer, place, job, ours=ours, ended=ended, limit_s=limit_s)
    lines = [line(name, found.get(name)) for name in PEERS]
    return timed(lines, ended) if ended.fine else lines


def _peer(
    place: Place,
    job: Job,
    name: str,
    notes: dict[str, Any] | None,
    *,
    ours: dict[str, Any],
    ended: Ended,
    limit_s: float,
) -> Line:
    what, warm_up = f"{job.name}: {name}", place.scale_of(job).warm_up
    if notes is None:
        return failed(what, ended, limit_s, {})
    if notes.get("missing"):
        error = f"this Python lacks {', '.join(notes['missing'])}"
        return Line(what=what, result=Result.NOT_RUN, error=error)
    if notes.get("error"):
        return Line(what=what, result=Result.FAILED, error=notes["error"], log=ended.log)
    figures = measured(notes, warm_up=warm_up, alone=True)
    if notes.get("loss") is not None:
        figures["loss"] = Figure(value=notes["loss"], unit="nats")
    here, there = (speed(each.get("steps", []), warm_up=warm_up) for each in (ours, notes))
    parts = [f"ours is {here / there:.2f} times as fast"] if here and there else []
    peaks = [each.get("peak_allocated_bytes") for each in (ours, notes)]
    if peaks[0] and peaks[1]:
        parts.append(f"ours takes {peaks[0] / peaks[1]:.2f} times its memory")
    steps = len(notes.get("steps", []))
    log = read_log(place.directory(job, "calm"))[:steps]
    losses = [float(record["loss"]) for record in log if record.get("loss") is not None]
    if steps and len(losses) == steps:
        figures["our_loss"] = Figure(value=sum(losses) / steps, unit="nats")
    means = " and ours ".join(f"{figures[name].value:.3f}" for name in LOSSES if name in figures)
    message = ", ".join([f"{steps} steps, mean loss {means}", *parts])
    return Line(what=what, result=Result.DONE, message=message, figures=figures)
