"""The command `python tests/bench`: what is measured, how often, and where the results go."""

# ruff: noqa: T201 - it is a command that talks
from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import machine, plot, table
from bench.all_measures import MEASURES
from bench.measure import Measure, Workplace
from bench.results import Verdict, judge
from bench.rounds import Collected, collect

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
ROUNDS = 5
MISSED, BAD_USAGE, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str]) -> int:
    """Measure; return 0 if every ratio is as it must be, 1 if one is missed."""
    arguments = parse(argv)
    chosen = [one for one in MEASURES if one.is_chosen(arguments.only)]
    unfit = [name for name in arguments.only if not any(m.is_chosen([name]) for m in MEASURES)]
    if unfit:
        names = ", ".join(one.name for one in MEASURES)
        print(f"no benchmark is called {', '.join(unfit)}; there are: {names}", file=sys.stderr)
        return BAD_USAGE
    if arguments.list:
        for one in chosen:
            print(f"{one.name:24} {one.title}")
        return 0
    try:
        run = Run(arguments)
    except OSError as error:
        print(f"{error.filename}: nothing can be written there: {error.strerror}", file=sys.stderr)
        return BAD_USAGE
    run.warn_if_busy()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process is left
    try:
        for measure in chosen:
            run.measure(measure)
    except KeyboardInterrupt:
        print(f"interrupted; what was measured is in {run.out}", file=sys.stderr)
        return INTERRUPTED
    return run.finish(append=not arguments.quick and not arguments.no_page)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python tests/bench", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="NAME",
        help="these benchmarks or groups, such as training or training/tweets",
    )  # fmt: skip
    parser.add_argument("--rounds", type=_count, help=f"of every benchmark; default {ROUNDS}")
    parser.add_argument(
        "--quick", action="store_true",
        help="one round of smaller sizes, to try the benchmarks; the page stays as it is",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print the names and measure nothing")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "bench", help="where bench.json goes"
    )
    parser.add_argument(
        "--work", type=Path, help="a folder on a real disk with 3 GB of room; default: under --out"
    )
    parser.add_argument(
        "--no-page", action="store_true", help="append nothing to docs/benchmarks.md"
    )
    parser.add_argument(
        "--peers", type=Path, default=ROOT / ".venv-bench",
        help="environment of the other tools; `make bench` makes it",
    )  # fmt: skip
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds")
    return int(text)


class Run:
    """One run of the benchmarks; its results file is rewritten after every sample."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.out: Path = arguments.out / "bench.json"
        self.work: Path = arguments.work or arguments.out / "work"
        self.peers_python: Path = arguments.peers / "bin" / "python"
        self.quick: bool = arguments.quick
        self.rounds: int = arguments.rounds or (1 if arguments.quick else ROUNDS)
        self.began_s = time.monotonic()
        self.began_at = datetime.now(tz=UTC)
        self.facts = machine.describe(ROOT, self.peers_python)
        self.results: list[Collected] = []
        self.verdicts: list[Verdict] = []
        for folder in (self.work, self.out.parent):
            folder.mkdir(parents=True, exist_ok=True)
        for left in self.work.glob("bench-*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)

    def warn_if_busy(self) -> None:
        """Say so if other work runs here: a time measured beside it is worth nothing."""
        if (load := self.facts["load_before"]) > machine.LOAD_MAX:
            print(f"the load of this machine is {load}: other work runs here, and times are not")
            print("worth much; every sample has `others_cpu_s`, what the others used meanwhile")

    def measure(self, measure: Measure) -> None:
        """Do all rounds of one benchmark, show them, and keep them."""
        print(f"{measure.name}: {measure.title}", flush=True)
        with tempfile.TemporaryDirectory(dir=self.work, prefix="bench-") as folder:
            place = Workplace(
                folder=Path(folder),
                python=Path(sys.executable),
                peers_python=self.peers_python,
                root=ROOT,
                quick=self.quick,
                on_message=lambda text: print(text, flush=True),
            )
            collected = collect(
                measure, place, rounds=self.rounds, on_sample=lambda one: self.write([one])
            )
        self.results.append(collected)
        verdicts = judge(collected)
        self.verdicts += verdicts
        self.write()
        for verdict in verdicts:
            print(table.verdict_line(verdict), flush=True)

    def write(self, unfinished: Sequence[Collected] = ()) -> None:
        """Write the results file whole."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        partial = self.out.with_suffix(".partial")
        partial.write_text(json.dumps(self.to_json(unfinished), indent=1) + "\n", encoding="utf-8")
        partial.replace(self.out)

    def to_json(self, unfinished: Sequence[Collected] = ()) -> dict[str, Any]:
        """Return all that is there so far."""
        return {
            "began_at": self.began_at.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self.began_s, 1),
            "quick": self.quick,
            "rounds": self.rounds,
            "machine": self.facts,
            "measures": [one.to_json() for one in [*self.results, *unfinished]],
            "verdicts": [one.to_json() for one in self.verdicts],
        }

    def finish(self, *, append: bool) -> int:
        """Print the table, append it to the page, and name what was missed."""
        print()
        for collected in self.results:
            print("\n".join(table.value_lines(collected)))
            for verdict in self.verdicts:
                if verdict.measure == collected.measure.name:
                    print(table.verdict_line(verdict))
        if append:
            day = self.began_at.date().isoformat()
            section = table.page_section(self.results, self.verdicts, self.facts, day=day)
            PAGE.write_text(
                PAGE.read_text(encoding="utf-8").rstrip("\n") + "\n\n" + section, encoding="utf-8"
            )
            print(f"appended to {PAGE}")
        print(f"written to {self.out}")
        if series := plot.growth_series(self.results):
            drawing = self.out.with_name("growth.svg")
            drawing.write_text(plot.as_svg(series), encoding="utf-8")
            print(f"growth with size is drawn in {drawing}")
        missed = table.missed(self.verdicts)
        for line in missed:
            print(f"MISSED {line}", file=sys.stderr)
        return MISSED if missed else 0
