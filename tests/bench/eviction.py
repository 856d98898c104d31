"""From the start of the trainer to the next step after a kill, in CPU seconds, and its parts.

CPU seconds of the process, so that a busy disk or neighbour changes little. Each round begins with
an empty cache, so that the first start quantises the base and later ones may find it stored.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.measure import Limit, Measure, Ratio, Sample, Unavailable, Variant, Workplace
from bench.processes import has_ended, run_process
from bench.rows import SHAPES, write_rows
from bench.training import clean_environment, config_of

STEPS, KILLED_AFTER = 4, 2
FIRST, NEXT, IMPORTS, STORED, ANEW, REST = (
    "first start", "next start after SIGKILL", "imports", "loading again", "loading anew",
    "next start beyond imports and loading",
)  # fmt: skip


@dataclass(kw_only=True)
class Starts:
    """The starts of one round after the other, and what they noted."""

    place: Workplace
    notes: dict[str, Mapping[str, float]] = field(default_factory=dict)  # of the present round

    def first(self, number: int) -> Sample:
        """Start with nothing stored, and kill the training when it has saved some steps."""
        self.notes.clear()
        run_dir = self._run_dir("killed", number)
        return self._start(FIRST, run_dir, number, kill=True)

    def following(self, number: int) -> Sample:
        """Start again what was killed."""
        return self._start(NEXT, self._path("killed", number), number)

    def parts(self, name: str, number: int) -> Sample:
        """Return a part of a start, from a process that loads the base several times."""
        if "parts" not in self.notes:
            run_dir = self._run_dir("parts", number)
            self._run("parts", run_dir, number, plain=True)
        notes = self.notes["parts"]
        value = {
            IMPORTS: notes.get("imported_s", 0.0) - notes.get("anew_s", 0.0),
            STORED: notes["load_s"],
            ANEW: notes["anew_s"],
        }[name]
        return Sample(value=value)

    def rest(self, number: int) -> Sample:
        """Return what the next start took beyond imports and the loading of the base."""
        whole = self.notes[NEXT]["step_begins_s"]
        parts = [self.parts(name, number).value for name in (IMPORTS, STORED)]
        return Sample(value=whole - sum(parts))

    def _path(self, name: str, number: int) -> Path:
        return self.place.folder / f"{name}-{number}"

    def _run_dir(self, name: str, number: int) -> Path:
        path = self._path(name, number)
        path.mkdir()
        root = self.place.root
        model = root / "examples" / "quickstart" / "model"
        rows = self.place.folder / "train.jsonl"
        config = config_of(SHAPES[0], model, rows, seed=0)
        config["train"] |= {"batch_size": 1, "steps": STEPS, "epochs": None}
        config["checkpoint"] = {"every": 1}
        (path / "config.json").write_text(json.dumps(config))
        return path

    def _start(self, name: str, run_dir: Path, number: int, *, kill: bool = False) -> Sample:
        began_at = time.time()
        self._run(name, run_dir, number, kill=kill)
        notes = self.notes[name]
        return Sample(
            value=notes["step_begins_s"],
            wall_s=notes["step_begins_at"] - began_at,
            facts={"load_s": notes["load_s"]},
        )

    def _run(
        self, name: str, run_dir: Path, number: int, *, kill: bool = False, plain: bool = False
    ) -> None:
        """Train in `run_dir`, and keep the notes under `name`; with `kill`, not to the end."""
        root, result = self.place.root, run_dir / "notes.json"
        cache = self.place.folder / f"cache-{number}"
        result.unlink(missing_ok=True)
        environment = clean_environment(
            {
                "PYTHONPATH": os.pathsep.join([str(root / "tests"), str(root)]),
                "XDG_CACHE_HOME": str(cache),
                "HF_HOME": str(cache / "huggingface"),
            }
        )
        run_process(
            [self.place.python, "-m", "bench.timed_start", result, str(int(plain)), run_dir],
            cwd=root,
            environment=environment,
            while_running=partial(kill_after, run_dir / "metrics.jsonl") if kill else None,
            good_codes=(-signal.SIGKILL, 0) if kill else (0,),
        )
        self.notes[name] = json.loads(result.read_text())


def kill_after(log: Path, process: subprocess.Popen[bytes]) -> None:
    """Kill the training when it has logged some steps and a checkpoint is whole."""
    checkpoints = log.parent / "checkpoints"
    while not has_ended(process):
        if (
            log.exists()
            and log.read_bytes().count(b"\n") >= KILLED_AFTER
            and any(checkpoints.glob("step-*/manifest.json"))
        ):
            os.killpg(process.pid, signal.SIGKILL)
            return
        time.sleep(0.01)


@contextmanager
def open_starts(place: Workplace) -> Iterator[Sequence[Variant]]:
    """Yield the starts and their parts, which need this order in every round."""
    quickstart = place.root / "examples" / "quickstart"
    if not (quickstart / "model" / "config.json").is_file():
        raise Unavailable("there is no model: run `python examples/quickstart/prepare.py`")
    write_rows(SHAPES[0], quickstart, place.folder, rows=STEPS)
    starts = Starts(place=place)
    yield [
        Variant(name=FIRST, run=starts.first),
        Variant(name=NEXT, run=starts.following),
        *(Variant(name=name, run=partial(starts.parts, name)) for name in (IMPORTS, STORED, ANEW)),
        Variant(name=REST, run=starts.rest),
    ]


MEASURES = (
    Measure(
        name="start/eviction",
        title="the quickstart's trainer from process start to its next step, and the parts",
        unit="CPU s",
        higher_is_better=False,
        in_order=True,
        open=open_starts,
        goals=(
            Limit(of=IMPORTS, at_most=4.5),
            Ratio(of=STORED, over=(ANEW,), at_most=0.15),
            Limit(of=REST, at_most=3.0),
            Ratio(of=NEXT, over=(FIRST,)),
        ),
    ),
)
