"""Rows and checkpoints: rows per second, the share of a run that saving takes, and their growth."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.measure import Growth, Limit, Measure, Sample, Unavailable, Variant, Workplace
from bench.processes import run_process
from bench.rows import SHAPES
from bench.training import config_of, module_environment

SIZES = {"small": 1000, "medium": 4000, "large": 16000}
QUICK_PART = 16
ADAPTERS = {"quickstart, r 8": 2_440_000, "r 32": 9_770_000, "7B, r 8": 20_000_000}
"""Trained parameters; with two moments each takes 12 bytes in a checkpoint."""
GROWTH_MAX = 1.1
STALL_MAX = 0.005


class OncePerRound:
    """Results of a process that measures all variants of a round at once."""

    def __init__(self, command: Sequence[str | Path], place: Workplace, result: Path) -> None:
        self._command = command
        self._place = place
        self._result = result
        self._round: int | None = None
        self._found: Any = None

    def of(self, number: int) -> Any:
        """Return what the process of that round measured."""
        if self._round != number:
            # As in a training beside others: copies of tensors would wait for threads that spin.
            passive = {"OMP_WAIT_POLICY": "PASSIVE"}
            run_process(self._command, environment=module_environment(self._place.root) | passive)
            self._found = json.loads(self._result.read_text())
            self._round = number
        return self._found


def make_rows(path: Path, quickstart: Path, count: int) -> None:
    """Write that many rows of words from the tweets, no two alike."""
    lines = (quickstart / "train.jsonl").read_text(encoding="utf-8").splitlines()
    tweets = [json.loads(line) for line in lines]
    words = sorted({word for one in tweets for word in one["text"].split()})
    chance = random.Random(count)  # noqa: S311 - rows, not secrets
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = tweets[number % len(tweets)]
            text = " ".join(chance.choices(words, k=len(row["text"].split())))
            file.write(json.dumps({"text": text, "label": row["label"]}) + "\n")


@contextmanager
def open_rows(place: Workplace) -> Iterator[Sequence[Variant]]:
    """Files of rows of several sizes, audited and tokenized."""
    quickstart = place.root / "examples" / "quickstart"
    if not (quickstart / "train.jsonl").is_file():
        raise Unavailable("there are no rows: run `python examples/quickstart/prepare.py`")
    files = {}
    for label, rows in SIZES.items():
        size = rows // QUICK_PART if place.quick else rows
        files[label] = place.folder / f"{size}.jsonl"
        make_rows(files[label], quickstart, size)
    config, result = place.folder / "config.json", place.folder / "result.json"
    table = config_of(SHAPES[0], quickstart / "model", files["small"], seed=0)
    config.write_text(json.dumps(table))
    once = OncePerRound(
        [place.python, "-m", "bench.data_work", result, config, *files.values()], place, result
    )
    yield [
        Variant(
            name=f"{work}, {label}",
            size=float(file.stem),
            run=partial(row_sample, once, work, file),
        )
        for work in ("audit", "tokenizing")
        for label, file in files.items()
    ]


def row_sample(once: OncePerRound, work: str, file: Path, number: int) -> Sample:
    """Return the seconds of one file, and its rows per second."""
    seconds = once.of(number)[work][file.name]
    return Sample(value=seconds, also={"rows/s": int(file.stem) / seconds})


@contextmanager
def open_saving(place: Workplace) -> Iterator[Sequence[Variant]]:
    """Adapters of several sizes, saved as the trainer saves them."""
    result = place.folder / "result.json"
    sizes = [str(size) for size in ADAPTERS.values()]
    once = OncePerRound(
        [place.python, "-m", "bench.saving_work", result, place.folder, *sizes], place, result
    )
    yield [
        Variant(name=name, size=float(size), run=partial(saving_sample, once, size))
        for name, size in ADAPTERS.items()
    ]


def saving_sample(once: OncePerRound, size: int, number: int) -> Sample:
    """Return what one save holds the loop up, as a share of the default interval."""
    found: Mapping[str, float] = once.of(number)[str(size)]
    return Sample(value=found["stall_s"] / found["interval_s"], also=found)


def _names(work: str) -> tuple[str, ...]:
    return tuple(f"{work}, {label}" for label in SIZES)


MEASURES = (
    Measure(
        name="data/rows",
        title="audit and tokenizing of 1,000, 4,000 and 16,000 rows, without the imports",
        unit="s",
        higher_is_better=False,
        in_order=True,
        open=open_rows,
        goals=(
            Limit(of=_names("audit")[-1], on="rows/s"),
            Limit(of=_names("tokenizing")[-1], on="rows/s"),
            Growth(name="audit", of=_names("audit"), at_most=GROWTH_MAX),
            Growth(name="tokenizing", of=_names("tokenizing"), at_most=GROWTH_MAX),
        ),
    ),
    Measure(
        name="data/checkpoint",
        title="what a save holds the loop up, as a share of the default interval",
        unit="of the run",
        higher_is_better=False,
        in_order=True,
        open=open_saving,
        goals=(
            *(Limit(of=name, at_most=STALL_MAX) for name in ADAPTERS),
            Growth(name="stall", of=tuple(ADAPTERS), on="stall_s"),
            Growth(name="until durable", of=tuple(ADAPTERS), on="durable_s"),
        ),
    ),
)
