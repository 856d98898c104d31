"""Sends a run with two evictions to real trackers and counts what came there: `make trackers`.

Trackio and MLflow (SQLite) for real, Weights & Biases offline, each feeding in a process of its
own, as beside `qft run`. Once the note of what was sent is lost, as by a crash: the same rows come
again. In an environment of its own, since the trackers' packages do not go with the locked ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import logged_run
from support.logged_run import LoggedRun

from commands.runs.python_program import argv_of, environment_of
from commands.ui.output import table

STEPS = 60
BLOCK_BYTES, HEADER_BYTES, FILE_HEADER_BYTES = 32768, 7, 7
WHOLE, FIRST, LAST = 1, 2, 4
TRACK = {
    "trackio": {"project": "qft"},
    "wandb": {"mode": "offline"},
    "mlflow": {"uri": "sqlite:///mlflow.db"},
}


@dataclass(frozen=True, kw_only=True)
class Received:
    """What a tracker has: how often each step, its values, and its final figures."""

    runs: int
    steps: Counter[int]
    losses: dict[int, float]
    final: dict[str, float]


def send(place: Path, *names: str) -> None:
    """Type `qft track` in a process of its own."""
    environment = {
        **environment_of(os.environ),
        "QFT_HOME": str(place / "home"),
        "TRACKIO_DIR": str(place / "trackio"),
        "WANDB_CONFIG_DIR": str(place / "wandb-config"),
        "WANDB_CACHE_DIR": str(place / "wandb-cache"),
    }
    to = [word for name in names for word in ("--to", name)]
    done = subprocess.run(
        [*argv_of("cli", "track", "logged", "--json"), *to],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"qft track ended with {done.returncode}\n{done.stdout}{done.stderr}")


def feed(place: Path) -> None:
    """Let a run go through two evictions, sending at odd moments."""
    run = LoggedRun(place / "home", logged_run.config(place, track=TRACK))
    run.rent()
    run.train_to(25)
    send(place)
    run.evict(back_to=20)
    run.rent()
    run.train_to(23)
    send(place)
    run.train_to(41)
    send(place, "mlflow", "trackio")
    note = run.folder.root / "tracked" / "logged-1a2b" / "sent.json"
    before = json.loads(note.read_text())
    note.write_text(json.dumps({"wandb": before["wandb"]}))
    run.evict(back_to=30)
    send(place, "mlflow", "trackio")
    run.rent()
    run.train_to(STEPS)
    run.end()
    send(place)
    send(place)


def in_trackio(place: Path) -> Received:
    """Read Trackio's database."""
    os.environ["TRACKIO_DIR"] = str(place / "trackio")
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("qft", run_id="logged-1a2b")
    rows = [row for row in logs if "loss" in row]
    final = next(row for row in logs if "after/accuracy" in row)
    return Received(
        runs=len(SQLiteStorage.get_run_records("qft")),
        steps=Counter(row["step"] for row in rows),
        losses={row["step"]: row["loss"] for row in rows},
        final=final,
    )


def in_mlflow(place: Path) -> Received:
    """Read MLflow's database."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")
    experiment = client.get_experiment_by_name("qft")
    found = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found[0].info.run_id, "loss")
    return Received(
        runs=len(found),
        steps=Counter(metric.step for metric in history),
        losses={metric.step: metric.value for metric in history},
        final=dict(found[0].data.metrics),
    )


def in_wandb(place: Path) -> Received:
    """Read the folders for `wandb sync`, all of one run."""
    from wandb.proto import wandb_internal_pb2 as records

    steps: Counter[int] = Counter()
    losses: dict[int, float] = {}
    final: dict[str, float] = {}
    runs = set()
    for path in sorted(place.glob("out/logged/wandb/offline-run-*/run-*.wandb")):
        for data in offline_records(path.read_bytes()):
            record = records.Record.FromString(data)
            if record.HasField("run"):
                runs.add(record.run.run_id)
            row = values(record.history.item)
            if "loss" in row:
                steps[int(row["_step"])] += 1
                losses[int(row["_step"])] = row["loss"]
            final |= values(record.summary.update)
    return Received(runs=len(runs), steps=steps, losses=losses, final=final)


def values(items: Any) -> dict[str, Any]:
    """Return the keys and values of some items of a record."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def offline_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of an offline run: LevelDB's log format behind a header of its own."""
    at, parts = FILE_HEADER_BYTES, b""
    while at + HEADER_BYTES <= len(data):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < HEADER_BYTES:
            at += left
            continue
        length = int.from_bytes(data[at + 4 : at + 6], "little")
        kind = data[at + 6]
        part = data[at + HEADER_BYTES : at + HEADER_BYTES + length]
        at += HEADER_BYTES + length
        parts = part if kind in {WHOLE, FIRST} else parts + part
        if kind in {WHOLE, LAST}:
            yield parts


def main() -> int:
    """Feed all trackers and print what came there; 1 unless each step did, once, with its value."""
    with tempfile.TemporaryDirectory(prefix="qft-trackers-") as folder:
        place = Path(folder)
        feed(place)
        received = {
            "trackio": in_trackio(place),
            "mlflow": in_mlflow(place),
            "wandb (offline)": in_wandb(place),
        }
    expected = {step: logged_run.record(step)["loss"] for step in range(1, STEPS + 1)}
    rows: list[dict[str, object]] = []
    good = True
    for name, found in received.items():
        once = sum(count == 1 for count in found.steps.values())
        same = sum(found.losses.get(step) == loss for step, loss in expected.items())
        scored = found.final.get("after/accuracy") == 0.75
        good &= (found.runs, once, len(found.steps), same, scored) == (1, STEPS, STEPS, STEPS, True)
        rows.append(
            {
                "tracker": name,
                "runs": found.runs,
                "steps": f"{len(found.steps)} of {STEPS}",
                "received once": once,
                "more than once": sum(count > 1 for count in found.steps.values()),
                "equal losses": same,
                "final score": "yes" if scored else "no",
            }
        )
    sys.stdout.write(table(rows) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
