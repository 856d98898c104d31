"""What earlier commits wrote, as `tests/recorded` keeps it, and how it is compared with today's."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from support.runs import Project
from support.tiny import ROOT, make_model

RECORDED = ROOT / "tests" / "recorded"
COMMITS = ("0b0e751", "3323cf2")
INTERRUPTED = RECORDED / "0b0e751"
"""The run that was cut off: its project, its home, and the disk of its machine."""
RUN = "recorded"
RECORDED_FOLDER = "/tmp/qft-recorded"  # noqa: S108  (a name in recorded files, not a place)
TORN = "step-00000117/.qft-partial"
"""What a transfer that was cut off left at home: an empty folder, which git cannot keep."""


def read(path: Path) -> Any:
    """Return the JSON of a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def lay_out(folder: Path, *, machine: bool) -> Project:
    """Put the interrupted run into `folder`; with `machine`, also what was left of its machine.

    The base is made by its seed, as it was then. Recorded paths become those of `folder`, and the
    key pairs of the run, which are not recorded, are made anew. The last event becomes one of now:
    the budget counts the hours since.
    """
    shutil.copytree(INTERRUPTED / "project", folder)
    make_model(folder / "model")
    shutil.copytree(INTERRUPTED / "project" / "model", folder / "model", dirs_exist_ok=True)
    project = Project(folder=folder, name=RUN)
    shutil.copytree(INTERRUPTED / "home" / "runs", project.home / "runs")
    run = project.home / "runs" / RUN
    _write_log(run / "checkpoints")
    (run / "checkpoints" / TORN).mkdir(parents=True)
    if machine:
        shutil.copytree(INTERRUPTED / "home" / "local", project.home / "local")
        _write_log(next(project.home.glob("local/vms/*/disk/qft/*/run/checkpoints")))
        _renew_keys(project, run)
    for path in project.home.rglob("*.json*"):
        _replace(path, {RECORDED_FOLDER: str(folder)})
    _move_to_now(run / "journal.jsonl")
    return project


def _move_to_now(journal: Path) -> None:
    """Add to every time of a journal what has passed since its last event."""
    events = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    past_s = time.time() - events[-1]["at"]
    for event in events:
        event.update({key: event[key] + past_s for key in ("at", "since_s") if event.get(key)})
    journal.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")


def log_until(step: int) -> str:
    """Return the log of the interrupted run up to a step: a checkpoint's `metrics.jsonl`."""
    (log,) = INTERRUPTED.rglob("disk/qft/*/run/metrics.jsonl")
    return "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[:step])


def _write_log(checkpoints: Path) -> None:
    """Complete checkpoints with the log, which is recorded once."""
    for checkpoint in checkpoints.iterdir():
        text = log_until(int(checkpoint.name.removeprefix("step-")))
        (checkpoint / "metrics.jsonl").write_text(text, encoding="utf-8")


def _renew_keys(project: Project, run: Path) -> None:
    """Make the user's and the machine's key pairs, and write the new public keys everywhere."""
    (place,) = (project.home / "local" / "vms").iterdir()
    listed = (
        read(place / "vm.json")["vm"]["host_public_key"],
        read(place / "spec.json")["public_key"],
    )
    keys = run / "keys"
    keys.mkdir(mode=0o700)
    names = ("host_ed25519_1", "user_ed25519")
    for name in names:
        made = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "qft", "-f", str(keys / name)]
        subprocess.run(made, check=True)
    shutil.copy(keys / names[0], place / "host_key")
    fresh = [(keys / f"{name}.pub").read_text(encoding="utf-8").strip() for name in names]
    for path in (run / "journal.jsonl", place / "vm.json", place / "spec.json"):
        _replace(path, dict(zip(listed, fresh, strict=True)))


def _replace(path: Path, words: Mapping[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in words.items():
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def lost(old: object, new: object, at: str = "") -> Iterator[str]:
    """Give every key of `old` that `new` lacks, and every value that changed its kind.

    Null fits everything; of two lists the first elements are compared.
    """
    if old is None or new is None:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in old.items():
            if key in new:
                yield from lost(value, new[key], f"{at}.{key}".lstrip("."))
            else:
                yield f"{at}.{key}".lstrip(".")
    elif isinstance(old, list) and isinstance(new, list):
        if old and new:
            yield from lost(old[0], new[0], f"{at}[]")
    elif _kind(old) != _kind(new):
        yield f"{at} was {_kind(old)} and is {_kind(new)}"


def _kind(value: object) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "number" if number else type(value).__name__
