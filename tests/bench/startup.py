"""Start-up: the time from Enter to the prompt of some commands."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.measure import Limit, Measure, Ratio, Sample, Unavailable, Variant, Workplace
from bench.processes import run_process

REPEATS, QUICK_REPEATS = 5, 2
PEERS = ("trl", "accelerate", "transformers", "hf", "dstack", "sky")
LAY_OUT = (
    "import sys; from pathlib import Path; from support.recorded import lay_out; "
    "lay_out(Path(sys.argv[1]), machine=False)"
)


@contextmanager
def open_help(place: Workplace) -> Iterator[Sequence[Variant]]:
    """`--help` of qft and of every tool that is installed beside it."""
    ours = place.python.parent / "qft"
    theirs = {name: place.peers_python.parent / name for name in PEERS}
    repeats = QUICK_REPEATS if place.quick else REPEATS
    yield [
        Variant(name=name, run=partial(program_time, program, ["--help"], {}, repeats))
        for name, program in {"qft": ours, **theirs}.items()
    ]


@contextmanager
def open_commands(place: Workplace) -> Iterator[Sequence[Variant]]:
    """Commands that look at a run that was cut off, and the plan of the quickstart."""
    project, tests = place.folder / "project", place.root / "tests"
    paths = os.pathsep.join([str(tests), str(place.root)])
    run_process(
        [place.python, "-c", LAY_OUT, project], environment={**os.environ, "PYTHONPATH": paths}
    )
    home = {"QFT_HOME": str(project / "home")}
    quickstart = place.root / "examples" / "quickstart" / "run.yaml"
    program = place.python.parent / "qft"
    repeats = QUICK_REPEATS if place.quick else REPEATS
    commands: Mapping[str, list[str]] = {
        "status": ["status", "recorded"],
        "ls": ["ls", "--all"],
        "plan": ["plan", str(quickstart)],
    }
    yield [
        Variant(name=name, run=partial(program_time, program, words, home, repeats))
        for name, words in commands.items()
    ]


def program_time(
    program: Path, words: Sequence[str], changes: Mapping[str, str], repeats: int, _round: int
) -> Sample:
    """Return the median time of some calls, after one that brings the files into memory."""
    if not program.exists():
        raise Unavailable(f"there is no {program}; `make bench` installs it")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100", **changes}
    ended = [run_process([program, *words], environment=environment) for _ in range(repeats + 1)]
    return Sample(
        value=statistics.median(one.wall_s for one in ended[1:]),
        cpu_s=statistics.median(one.cpu_s for one in ended[1:]),
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
    Measure(
        name="start/commands",
        title="commands on a run that was cut off, whole process",
        unit="s",
        higher_is_better=False,
        open=open_commands,
        goals=(
            Limit(of="status", at_most=0.25),
            Limit(of="ls"),
            Limit(of="plan"),
        ),
    ),
)
