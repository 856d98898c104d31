"""The tables of docs/scale.md: what ordered sums over several cards send, and what that costs.

`make scale` writes them anew: PYTHONPATH=.:tests python -m support.scale_tables [--write]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from infra.catalog.vendors import reference_spot_usd_per_h
from support.hours_points import SIZES
from support.memory_points import llama
from trainer.config import PrecisionChoice
from trainer.device.shapes import Shape, read_shape
from trainer.estimate.gpus import GPUS
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.step_time import step_seconds, work_seconds
from trainer.estimate.weights import adapter_parameters
from trainer.estimate.work import pass_work

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scale.md"
WORLDS = (2, 4, 8, 16, 32, 64)
BATCH, TOKENS = 64, 512  # rows of a step, and tokens of a row
STEPS = 1000
MICRO_BATCHES = (1, 2, 4, 8, 16)
SHARE_MAX = 0.10
"""Of a step: more than that for the exchange is said not to pay."""
LINKS: Mapping[str, float] = MappingProxyType(
    {
        "PCIe 3.0 x16, 12 GB/s": 12e9,
        "400 Gbit/s": 400e9 / 8,
        "100 Gbit/s": 100e9 / 8,
        "25 Gbit/s": 25e9 / 8,
        "8 Gbit/s": 8e9 / 8,
    }
)
"""Bytes a second that a card sends while it receives as many."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """An adapter at all linear layers of a base in NF4, and the card that it is trained on."""

    name: str
    shape: Shape
    r: int
    card: str

    @property
    def setup(self) -> TrainingSetup:
        """What a micro-batch of one row computes."""
        return TrainingSetup(
            tokens=TOKENS, batch_size=BATCH, r=self.r, dropout=True, precision=PrecisionChoice.BF16
        )

    @cached_property
    def gradient_bytes(self) -> int:
        """G: one gradient of the adapter, in float32."""
        return 4 * adapter_parameters(self.shape, self.setup)

    def passes(self, world: int, micro_batch: int = 1) -> int:
        """k: the micro-batches of the rank that has most of them."""
        return math.ceil(math.ceil(BATCH / micro_batch) / world)

    def pass_s(self, micro_batch: int = 1) -> float:
        """Return how long one micro-batch takes."""
        setup = replace(self.setup, micro_batch=micro_batch)
        return work_seconds(pass_work(self.shape, setup), GPUS[self.card])

    def compute_s(self, world: int) -> float:
        """Return how long a step takes without its exchange: k micro-batches and the update."""
        gpu = GPUS[self.card]
        return step_seconds(self.shape, self.setup, gpu=gpu, batch_size=self.passes(world))

    def step_s(self, world: int, bytes_per_s: float) -> float:
        """Return how long a step takes if no exchange happens while a card computes."""
        return self.compute_s(world) + self.exchange_s(world, bytes_per_s)

    def exchange_s(self, world: int, bytes_per_s: float) -> float:
        """Return how long what a rank sends takes."""
        return ordered_bytes(self.gradient_bytes, world, self.passes(world)) / bytes_per_s

    def usd(self, world: int, bytes_per_s: float) -> float:
        """Return the price of `STEPS` steps at the reference spot price of the card."""
        hours = STEPS * self.step_s(world, bytes_per_s) / 3600
        return world * hours * reference_spot_usd_per_h(self.card)


JOBS = (
    Job(name="7B r 16", shape=read_shape(SIZES["llama-2-7b"]), r=16, card="A10G"),
    Job(name="7B r 64", shape=read_shape(SIZES["llama-2-7b"]), r=64, card="A10G"),
    Job(
        name="70B r 16",
        shape=read_shape(llama(8192, 28672, 80, 64, 8, 32000)),
        r=16,
        card="A100",
    ),
)


def ordered_bytes(gradient_bytes: float, world: int, passes: int) -> float:
    """Return what a rank sends in a step: k rounds of shards, and its shard of the sum to all."""
    return (passes + 1) * (world - 1) / world * gradient_bytes


def ring_bytes(gradient_bytes: float, world: int) -> float:
    """Return what a rank sends in a ring all-reduce, whose order of additions is another."""
    return 2 * (world - 1) / world * gradient_bytes


def bytes_table() -> list[str]:
    """What a rank sends in a step of 64 micro-batches, in MB."""
    rows = [
        "| adapter | G | " + " | ".join(f"{world} cards" for world in WORLDS) + " |",
        "|---" * (len(WORLDS) + 2) + "|",
    ]
    for job in JOBS:
        size = job.gradient_bytes
        cells = [
            f"{ordered_bytes(size, world, job.passes(world)) / 1e6:,.0f}"
            f" ({ring_bytes(size, world) / 1e6:,.0f})"
            for world in WORLDS
        ]
        rows.append(f"| {job.name} | {size / 1e6:,.0f} | " + " | ".join(cells) + " |")
    return rows


def seconds_table() -> list[str]:
    """How long the exchange of a step takes, and its share of the step."""
    rows = [
        "| adapter, card | link | " + " | ".join(f"{world} cards" for world in WORLDS) + " |",
        "|---" * (len(WORLDS) + 2) + "|",
    ]
    for job in JOBS:
        for link, speed in LINKS.items():
            cells = []
            for world in WORLDS:
                seconds = job.exchange_s(world, speed)
                share = seconds / job.step_s(world, speed)
                cells.append(f"{seconds:.3g} s, {share:.0%}")
            rows.append(f"| {job.name}, {job.card} | {link} | " + " | ".join(cells) + " |")
    return rows


def dollars_table() -> list[str]:
    """Hours and dollars of a thousand steps."""
    worlds = (1, *WORLDS)
    rows = [
        "| adapter, card | link | "
        + " | ".join(f"{world} card{'s' * (world > 1)}" for world in worlds)
        + " |",
        "|---" * (len(worlds) + 2) + "|",
    ]
    for job in JOBS:
        for link, speed in LINKS.items():
            cells = [
                f"{STEPS * job.step_s(world, speed) / 3600:.3g} h, ${job.usd(world, speed):,.0f}"
                for world in worlds
            ]
            rows.append(f"| {job.name}, {job.card} | {link} | " + " | ".join(cells) + " |")
    return rows


def limits_table() -> list[str]:
    """How many rows a micro-batch needs so that sending its gradient takes a tenth at most."""
    rows = [
        "| adapter, card | " + " | ".join(LINKS) + " |",
        "|---" * (len(LINKS) + 1) + "|",
    ]
    for job in JOBS:
        cells = [_rows_needed(job, speed) for speed in LINKS.values()]
        rows.append(f"| {job.name}, {job.card} | " + " | ".join(cells) + " |")
    return rows


def _rows_needed(job: Job, bytes_per_s: float) -> str:
    sending_s = job.gradient_bytes / bytes_per_s
    for micro_batch in MICRO_BATCHES:
        if sending_s <= SHARE_MAX * (sending_s + job.pass_s(micro_batch)):
            return f"{micro_batch}"
    return f"more than {MICRO_BATCHES[-1]}"


TABLES: Mapping[str, Callable[[], list[str]]] = MappingProxyType(
    {
        "bytes": bytes_table,
        "seconds": seconds_table,
        "limits": limits_table,
        "dollars": dollars_table,
    }
)


def written(page: str) -> str:
    """Return the page with every table as it is now, between its two marks."""
    for name, table in TABLES.items():
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("\n<!-- end -->")
        assert mark, name
        assert end, name
        page = before + mark + "\n".join(table()) + end + after
    return page


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for build in TABLES.values():
        sys.stdout.write("\n".join([*build(), "", ""]))
