"""A training by two ranks beside one rank: twice the cores must bring nearly twice the tokens.

Every rank has one thread and computes on a core of its own, so it takes two idle cores. Useful
tokens (without padding) a second of the steps count; loading is left out. The same bits are
demanded of both. What the exchange of gradients takes is measured apart, by two ranks that add
gradients of the adapter's size and compute nothing else: waiting for a slower rank is not in it.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.measure import Limit, Measure, Ratio, Sample, Unavailable, Variant, Workplace
from bench.processes import ProcessFailed, run_process
from bench.rows import SHAPES, write_rows
from bench.training import clean_environment, config_of, module_environment

STEPS, QUICK_STEPS = 12, 4
BATCH, MICRO_BATCH = 16, 4
WORLD = 2
SUMS = 10
NAMES = {1: "1 rank", WORLD: "2 ranks"}
RATIO_MIN, EXCHANGE_SHARE_MAX = 1.7, 0.05


@dataclass(frozen=True, kw_only=True)
class Job:
    """What both train."""

    place: Workplace
    config: dict[str, Any]


@contextmanager
def open_ranks(place: Workplace) -> Iterator[Sequence[Variant]]:
    """Write the rows and yield a training by one rank and one by two."""
    quickstart = place.root / "examples" / "quickstart"
    if not (quickstart / "model" / "config.json").is_file():
        raise Unavailable("there is no model: run `python examples/quickstart/prepare.py`")
    shape = SHAPES[0]
    steps = QUICK_STEPS if place.quick else STEPS
    write_rows(shape, quickstart, place.folder, rows=max(shape.held_out, BATCH * steps))
    config = config_of(shape, quickstart / "model", place.folder / "train.jsonl", seed=0)
    del config["train"]["epochs"]
    config["train"] |= {
        "steps": steps, "batch_size": BATCH, "micro_batch": MICRO_BATCH, "threads": 1,
    }  # fmt: skip
    job = Job(place=place, config=config)
    yield [
        Variant(name=name, run=partial(train, job, world), size=world)
        for world, name in NAMES.items()
    ]


def train(job: Job, world: int, number: int) -> Sample:
    """Train by so many ranks; of several, measure the exchange, too."""
    folder = job.place.folder / f"ranks-{world}-{number}"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(job.config))
    ended = run_process(
        [job.place.python, "-m", "trainer", "train", "--run-dir", folder, "--cards", str(world)],
        cwd=job.place.root,
        environment=clean_environment({"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}),
    )
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = [record["seconds"] for record in records]
    also = {}
    if world > 1:
        step_s = statistics.median(seconds)
        exchange_s = measure_exchange(job.place, adapter_numbers(folder / "adapter"))
        also = {"exchange": exchange_s / step_s, "exchange_s": exchange_s}
    return Sample(
        value=sum(record["tokens"] for record in records) / sum(seconds),
        wall_s=sum(seconds),
        cpu_s=ended.cpu_s,
        also=also,
        facts={"steps": len(records), "params": records[-1]["params"]},
    )


def adapter_numbers(folder: Path) -> int:
    """Return how many numbers an adapter has, from the header of its file."""
    with (folder / "adapter_model.safetensors").open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    ends: list[int] = [
        one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"
    ]
    return max(ends) // 4  # they are in float32


def measure_exchange(place: Workplace, numbers: int) -> float:
    """Return the seconds that one step's sums take two ranks that do nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as store:
        address = f"127.0.0.1:{store.getsockname()[1]}"
        ranks = [
            subprocess.Popen(
                [
                    place.python, "-m", "support.group_sums", str(rank), str(WORLD), address,
                    "-" if rank else str(store.fileno()),
                    str(numbers), str(BATCH // MICRO_BATCH), str(SUMS),
                ],
                cwd=place.root,
                env={**module_environment(place.root), "OMP_NUM_THREADS": "1"},
                pass_fds=[] if rank else [store.fileno()],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(WORLD)
        ]  # fmt: skip
    try:
        texts = [rank.communicate(timeout=300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if any(rank.returncode for rank in ranks):
        raise ProcessFailed("\n".join(error[-1000:] for _, error in texts))
    return max(float(json.loads(out)["seconds"]) for out, _ in texts)


MEASURES = (
    Measure(
        name="group/speed",
        title=f"SmolLM2-135M in NF4, {BATCH} rows a step, by ranks of one thread",
        unit="tokens/s",
        higher_is_better=True,
        open=open_ranks,
        goals=(
            Ratio(of=NAMES[WORLD], over=(NAMES[1],), at_least=RATIO_MIN),
            Limit(
                of=NAMES[WORLD], on="exchange", at_most=EXCHANGE_SHARE_MAX,
                note="the exchange as a share of a step",
            ),
        ),
    ),
)  # fmt: skip
