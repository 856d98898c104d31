"""Start-up of the command line: the time from Enter to the prompt."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.measure import Limit, Measure, Ratio, Sample, Unavailable, Variant, Workplace
from bench.processes import run_process

REPEATS = 5
PEERS = ("trl", "accelerate", "transformers")


@contextmanager
def open_help(place: Workplace) -> Iterator[Sequence[Variant]]:
    """`--help` of qft and of every tool that is installed beside it."""
    ours = place.python.parent / "qft"
    theirs = {name: place.peers_python.parent / name for name in PEERS}
    yield [
        Variant(name=name, run=partial(help_time, program, repeats=2 if place.quick else REPEATS))
        for name, program in {"qft": ours, **theirs}.items()
    ]


def help_time(program: Path, _round: int, *, repeats: int = REPEATS) -> Sample:
    """Return the median time of some calls of `program --help`, after one that warms the disk."""
    if not program.exists():
        raise Unavailable(f"there is no {program}; `make bench` installs it")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    ended = [run_process([program, "--help"], environment=environment) for _ in range(repeats + 1)][
        1:
    ]
    return Sample(
        value=statistics.median(one.wall_s for one in ended),
        cpu_s=statistics.median(one.cpu_s for one in ended),
    )


MEASURES = (
    Measure(
        name="start/help",
        title="`--help`, whole process",
        unit="s",
        higher_is_better=False,
        open=open_help,
        goals=(Limit(of="qft", at_most=0.15), Ratio(of="qft", over=PEERS, at_most=1.0)),
    ),
)
