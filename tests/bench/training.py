"""Training on a CPU: an epoch of the same rows by qft, `transformers.Trainer` and TRL.

Everybody trains the same tokens of the same base in NF4 with the same rank, targets, learning rate
and batch size, in float32, and no dropout. What counts is useful tokens (without padding) per
second from the beginning of the first step to the end of the last one; loading is left out. The
environment is untouched; beside it stand variants whose threads wait actively.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.held_out import HeldOut, serve
from bench.measure import Goal, Measure, Ratio, Sample, Unavailable, Variant, Workplace
from bench.processes import has_ended, run_process
from bench.rows import SHAPES, Shape, write_rows

LR, RANK, ALPHA = 3e-4, 8, 16
LOOK_S = 0.02
UNBOUND_ROUNDS = 3
GROUPED = {"train_sampling_strategy": "group_by_length"}
ACTIVE = {"OMP_WAIT_POLICY": "ACTIVE"}


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to train an epoch: a tool, its settings, and what its environment has."""

    name: str
    tool: str  # "qft", "trainer" or "trl"
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    choice_of: str = ""
    rounds_max: int | None = None
    paired: bool = False  # begins with qft's adapter of round 0, and takes rows in qft's order


QFT = Way(name="qft", tool="qft")
GROUPED_TRAINER = Way(name="Trainer, grouped", tool="trainer", settings=GROUPED)
DEFAULT_TRAINER = Way(name="Trainer, default", tool="trainer", rounds_max=UNBOUND_ROUNDS)
PAIRED_TRAINER = Way(
    name="Trainer, same start and order", tool="trainer", paired=True, rounds_max=1,
    settings={"train_sampling_strategy": "sequential"},
)  # fmt: skip
TRL_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "grouped": GROUPED,
    "grouped, padding-free": {**GROUPED, "padding_free": True},
    "packed": {"packing": True, "per_device_train_batch_size": 1},
}
TRL = tuple(
    Way(name=f"TRL, {name}", tool="trl", settings=settings, choice_of="TRL")
    for name, settings in TRL_SETTINGS.items()
)
ACTIVE_WAYS = {
    way.tool: replace(
        way, name=f"{way.name}, ACTIVE", environment=ACTIVE, choice_of="", rounds_max=UNBOUND_ROUNDS
    )
    for way in (QFT, GROUPED_TRAINER, TRL[0])
}


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What all tools share: the rows of one shape, as files, and how their loss is measured."""

    shape: Shape
    place: Workplace
    held_out: HeldOut
    rows: int
    tokens: int
    longest: int

    @property
    def model(self) -> Path:
        """The quickstart's base."""
        return self.place.root / "examples" / "quickstart" / "model"

    def new_folder(self, way: Way, number: int) -> Path:
        """Return a new folder for one training."""
        path = self.place.folder / f"{re.sub(r'[^A-Za-z]+', '-', way.name)}-{number}"
        path.mkdir()
        return path

    def sample(self, *, epoch_s: float, cpu_s: float, adapter: Path, **facts: Any) -> Sample:
        """Return the result of one training."""
        return Sample(
            value=self.tokens / epoch_s,
            wall_s=epoch_s,
            cpu_s=cpu_s,
            also={"loss": self.held_out.loss(adapter)},
            facts=facts,
        )


def clean_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Return this environment without what steers threads, with `changes`; no network."""
    base = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))
    }
    return {**base, "HF_HUB_OFFLINE": "1", **changes}


def module_environment(root: Path) -> dict[str, str]:
    """Return the environment of `python -m bench.…`: this one, with our packages on the path."""
    paths = os.pathsep.join([str(root / "tests"), str(root)])
    return clean_environment({"PYTHONPATH": paths})


def config_of(shape: Shape, model: Path, rows: Path, *, seed: int) -> dict[str, Any]:
    """Return qft's config.json: the trainer as users have it, with scoring off."""
    return {
        "model": {"id": str(model)},
        "method": {
            "kind": "qlora", "quant": "nf4", "double_quant": True, "r": RANK, "alpha": ALPHA,
            "targets": "all-linear", "dropout": 0.0,
        },
        "data": {**shape.data, "train": str(rows)},
        "train": {
            "epochs": 1, "batch_size": shape.batch_size, "lr": LR, "seed": seed,
            "max_length": shape.max_length, "gradient_checkpointing": False, "samples": 0,
        },
    }  # fmt: skip


@contextmanager
def open_epoch(place: Workplace, shape: Shape) -> Iterator[Sequence[Variant]]:
    """Write the rows of a shape, start what measures losses, and yield every tool."""
    quickstart = place.root / "examples" / "quickstart"
    if not (quickstart / "model" / "config.json").is_file():
        raise Unavailable("there is no model: run `python examples/quickstart/prepare.py`")
    count = shape.rows // 3 if place.quick else shape.rows
    write_rows(shape, quickstart, place.folder, rows=count)
    tests = place.root / "tests"
    rows = place.folder / "train.jsonl"
    config = place.folder / "config.json"
    config.write_text(json.dumps(config_of(shape, quickstart / "model", rows, seed=0)))
    lengths = []
    for name in ("train", "held_out"):
        source, made = place.folder / f"{name}.jsonl", place.folder / f"{name}-tokens.jsonl"
        run_process(
            [place.python, "-m", "bench.rows", config, source, made],
            environment=module_environment(place.root),
        )
        lengths.append(
            [len(json.loads(line)["input_ids"]) for line in made.read_text().splitlines()]
        )
    with serve(
        place.python,
        model=quickstart / "model",
        rows=place.folder / "held_out-tokens.jsonl",
        tests=tests,
    ) as held_out:
        epoch = Epoch(
            shape=shape, place=place, held_out=held_out,
            rows=count, tokens=sum(lengths[0]), longest=max(lengths[0]),
        )  # fmt: skip
        place.on_message(
            f"  {count} rows, {epoch.tokens} tokens, {min(lengths[0])} to {epoch.longest} a row"
        )
        yield variants(epoch)


def ways(shape: Shape) -> list[Way]:
    """Return every way to train an epoch of a shape, in the order of the first round."""
    found = [QFT, GROUPED_TRAINER, DEFAULT_TRAINER, *TRL, PAIRED_TRAINER]
    return [*found, *ACTIVE_WAYS.values()] if shape is SHAPES[0] else found


def variants(epoch: Epoch) -> list[Variant]:
    """Return the ways as variants of the measure."""
    return [
        Variant(
            name=way.name,
            choice_of=way.choice_of,
            rounds_max=way.rounds_max,
            run=partial(train_ours if way.tool == "qft" else train_peer, epoch, way),
        )
        for way in ways(epoch.shape)
    ]


def train_ours(epoch: Epoch, way: Way, number: int) -> Sample:
    """Train with `python -m trainer train`, and watch its log for the steps' times."""
    folder = epoch.new_folder(way, number)
    rows = epoch.place.folder / "train.jsonl"
    config = config_of(epoch.shape, epoch.model, rows, seed=number)
    (folder / "config.json").write_text(json.dumps(config))
    log = folder / "metrics.jsonl"
    times: list[float] = []
    ended = run_process(
        [epoch.place.python, "-m", "trainer", "train", "--run-dir", folder],
        cwd=epoch.place.root,
        environment=clean_environment(way.environment),
        while_running=partial(watch_lines, log, times),
    )
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return epoch.sample(
        epoch_s=times[-1] - times[0] + records[0]["seconds"],
        cpu_s=ended.cpu_s,
        adapter=folder / "adapter",
        steps=len(records),
        process_s=round(ended.wall_s, 2),
        peak_gb=round(ended.peak_bytes / 1e9, 2),
        params=records[-1]["params"],
    )


def watch_lines(log: Path, times: list[float], process: subprocess.Popen[bytes]) -> None:
    """Note when each line of a growing file is seen, until the process ends."""
    size = lines = 0
    while not has_ended(process):
        time.sleep(LOOK_S)
        now_s = time.perf_counter()
        if log.exists() and log.stat().st_size != size:
            size = log.stat().st_size
            seen = log.read_bytes().count(b"\n")
            times.extend([now_s] * (seen - lines))
            lines = seen


def train_peer(epoch: Epoch, way: Way, number: int) -> Sample:
    """Train with another tool in its own environment."""
    place = epoch.place
    if not place.peers_python.exists():
        raise Unavailable(f"there is no {place.peers_python}; `make bench` makes it")
    folder = epoch.new_folder(way, number)
    settings = dict(way.settings)
    if settings.get("packing"):  # as many tokens in a step as a batch of rows has
        mean = epoch.tokens * epoch.shape.batch_size / epoch.rows
        settings["max_length"] = max(epoch.longest, round(mean))
    initial = folder / "initial"
    if way.paired:
        run_process(
            [place.python, "-m", "bench.initial_adapter", place.folder / "config.json", initial],
            environment=module_environment(place.root),
        )
    request = {
        "tool": way.tool, "model": str(epoch.model), "settings": settings, "seed": number,
        "rows": str(place.folder / f"{'ordered-' if way.paired else ''}train-tokens.jsonl"),
        "batch_size": epoch.shape.batch_size, "lr": LR, "r": RANK, "alpha": ALPHA,
        "initial": str(initial) if way.paired else "", "folder": str(folder),
        "adapter": str(folder / "adapter"), "result": str(folder / "result.json"),
    }  # fmt: skip
    (folder / "request.json").write_text(json.dumps(request))
    ended = run_process(
        [place.peers_python, Path(__file__).with_name("peer_training.py"), folder / "request.json"],
        cwd=folder,
        environment=clean_environment(way.environment),
    )
    result = json.loads((folder / "result.json").read_text())
    return epoch.sample(
        epoch_s=result["epoch_s"],
        cpu_s=ended.cpu_s,
        adapter=folder / "adapter",
        steps=result["steps"],
        process_s=round(ended.wall_s, 2),
        peak_gb=round(ended.peak_bytes / 1e9, 2),
    )


def goals(shape: Shape) -> tuple[Goal, ...]:
    """Return what must be reached on a shape of rows."""
    trainer, trl = (GROUPED_TRAINER.name,), tuple(way.name for way in TRL)
    found: list[Goal] = [
        Ratio(of=QFT.name, over=trainer, at_least=1.35),
        Ratio(of=QFT.name, over=(DEFAULT_TRAINER.name,)),
        Ratio(of=QFT.name, over=trl, at_least=2.5),
        Ratio(of=QFT.name, over=(PAIRED_TRAINER.name,), on="loss", at_least=0.99, at_most=1.01),
        Ratio(of=QFT.name, over=trainer, on="loss", note="other first weights, other order"),
        Ratio(of=QFT.name, over=trl, on="loss", note="other first weights, other order"),
    ]
    if shape is SHAPES[0]:
        mine, *others = (way.name for way in ACTIVE_WAYS.values())
        found += [Ratio(of=mine, over=(other,)) for other in others]
    return tuple(found)


MEASURES = tuple(
    Measure(
        name=f"training/{shape.name}",
        title=f"an epoch of {shape.rows} rows, batch {shape.batch_size}: {shape.title}",
        unit="tokens/s",
        higher_is_better=True,
        open=partial(open_epoch, shape=shape),
        goals=goals(shape),
    )
    for shape in SHAPES
)
