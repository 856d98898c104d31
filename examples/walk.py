"""Walks every recipe's whole path with its small model: rent, train, be evicted, fetch, report.

    python examples/walk.py [NAME ...]

Each goes through `provider: local` with one eviction; its adapter is then loaded with plain PEFT.
Each that trains is scored on its held-out rows before and after; a second table has these scores,
of small models on a handful of rows, beside what was published of the real ones.
Ends 0 when all arrived, 1 with the reasons of those that did not, 130 when interrupted; in each
case no machine of it is left.
"""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
MERGED = ("openllama7b-chat",)  # the published run ended with a merged model
UNTRAINED = ("t5-3b-footprint",)  # it takes one step, to read the memory
EVICTIONS = 1
COMMAND_S_MAX = 1200
CLEARING_S_MAX = 120
LINES_MAX = 15


class StrandedError(Exception):
    """A recipe did not arrive; the message says at which command, and the end of its words."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """What a recipe's walk came to; the parts that were not asked for are `-`."""

    name: str
    evictions: str = "-"
    steps: str = "-"
    adapter: str = "-"
    report: str = "-"
    merged: str = "-"
    measure: str = "-"
    before: str = "-"
    after: str = "-"
    published: str = "-"
    seconds: float = 0.0
    trouble: str = ""

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        parts = (self.evictions, self.steps, f"{self.seconds:.0f} s")
        return (self.name, *parts, self.adapter, self.report, self.merged)

    def score_cells(self) -> tuple[str, ...]:
        """Return the row of the table of scores."""
        return (self.name, self.measure, self.before, self.after, self.published)


HEAD = ("recipe", "evictions survived", "steps", "wall", "adapter", "report", "merged")
SCORE_HEAD = ("recipe", "measure", "before", "after", "published of the real run")


def main(argv: Sequence[str]) -> int:
    """Walk the recipes named, or all of them; print a table at the end."""
    listed = names()
    if unknown := sorted(set(argv) - set(listed)):
        print(f"no recipe {', '.join(unknown)}; there are {', '.join(listed)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    done: list[Arrival] = []
    begun = time.monotonic()
    wanted = list(argv) or listed
    try:
        with Loader() as loader:
            # One by one, so that those which arrived before an interruption are in the table.
            done.extend(walk(name, loader) for name in wanted)
    except KeyboardInterrupt:
        print("\ninterrupted; its machine is gone", flush=True)
        return 130
    finally:
        if done:
            print("\n" + table(HEAD, [one.cells() for one in done]), flush=True)
            print("\n" + table(SCORE_HEAD, [one.score_cells() for one in done]), flush=True)
    lost = [one for one in done if one.trouble]
    trains = [one for one in done if one.name not in UNTRAINED]
    both = sum("-" not in {one.before, one.after} for one in trains)
    print(f"\n{both} of {len(trains)} recipes that train have a score before and after", flush=True)
    spent = time.monotonic() - begun
    print(f"{len(wanted) - len(lost)} of {len(wanted)} arrived in {spent / 60:.1f} min", flush=True)
    for one in lost:
        print(f"\n{one.name}: {one.trouble}", file=sys.stderr, flush=True)
    return 1 if lost else 0


def names() -> list[str]:
    """Return the recipes there are: the directories that say which small model they need."""
    return sorted(
        path.parent.name
        for path in EXAMPLES.glob("*/prepare.py")
        if "TINY_MODEL" in path.read_text(encoding="utf-8")
    )


def walk(name: str, loader: Loader) -> Arrival:
    """Take one recipe from its rows to its report, one line of progress on stdout."""
    print(f"{name:<22}", end="", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="qft-walk-") as home:
        path = Path(home)
        try:
            done = Walk(name=name, home=path, loader=loader).all()
        except StrandedError as error:
            print(f" FAILED after {time.monotonic() - begun:.0f} s", flush=True)
            done = Arrival(name=name, trouble=str(error))
            clear(path)
        except KeyboardInterrupt:
            clear(path)
            raise
    return replace(done, seconds=time.monotonic() - begun)


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One recipe on its way; `home` holds its runs and its simulated machines."""

    name: str
    home: Path
    loader: Loader

    @property
    def place(self) -> Path:
        """Where `--tiny` puts model, rows and run file."""
        return EXAMPLES / self.name / "out" / "tiny"

    def all(self) -> Arrival:
        """Do every step; raise `StrandedError` at the first that fails."""
        self.step("prepared", "examples/recipes.py", self.name, "--tiny")
        run_file = str(self.place / "run.yaml")
        output = self.step("run", "cli.py", "run", run_file, "--fresh", "--plain", "--json")
        receipt = read_receipt(output)
        survived, steps = receipt["evictions"], receipt["steps"]
        if survived != EVICTIONS:
            raise StrandedError(
                f"{survived} evictions were survived where {EVICTIONS} was rehearsed"
            )
        if receipt["usd_per_h_now"]:
            raise StrandedError(
                f"the machine still bills {receipt['usd_per_h_now']} dollars per hour"
            )
        result = self.place / "out" / f"tiny-{self.name}"
        scores = None if self.name in UNTRAINED else read_scores(result)
        self.load("adapter", str(self.place / "model"), str(result / "adapter"))
        self.step("report", "cli.py", "report", f"tiny-{self.name}")
        if not (result / "report.html").is_file():
            raise StrandedError("`qft report` left no report.html")
        if self.name in MERGED:
            self.step("merged", "cli.py", "merge", f"tiny-{self.name}")
            self.load("loaded", str(result / "merged"))
        print(flush=True)
        arrival = Arrival(
            name=self.name, evictions=str(survived), steps=str(steps), adapter="loads in PEFT",
            report="written", merged="loads" if self.name in MERGED else "-",
            published=published(self.name),
        )  # fmt: skip
        if scores is None:
            return arrival
        measure, before, after = scores
        return replace(arrival, measure=measure, before=before, after=after)

    def step(self, word: str, *command: str) -> str:
        """Run one command of Python in the checkout; return its stdout."""
        begun = time.monotonic()
        shown = " ".join(command[:2])
        try:
            done = run(command, self.home)
        except subprocess.TimeoutExpired:
            raise StrandedError(f"`{shown}` did not end in {COMMAND_S_MAX} s") from None
        if done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines()[-LINES_MAX:]
            raise StrandedError(f"`{shown}` exited {done.returncode}:\n  " + "\n  ".join(words))
        print(f" {word} {time.monotonic() - begun:.0f} s", end="", flush=True)
        return done.stdout

    def load(self, word: str, *directories: str) -> None:
        """Load what was made with plain PEFT and transformers, or raise `StrandedError`."""
        begun = time.monotonic()
        trouble = self.loader.load(directories)
        if trouble:
            raise StrandedError(f"{' and '.join(directories)} cannot be loaded: {trouble}")
        print(f" {word} {time.monotonic() - begun:.0f} s", end="", flush=True)


class Loader:
    """A process with nothing of ours in it that loads models; importing PEFT takes it seconds."""

    def __enter__(self) -> Self:
        """Start it; it imports while the first recipe walks."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", LOAD], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def load(self, directories: Sequence[str]) -> str:
        """Load a base with an adapter, or a whole model; return what went wrong, or nothing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(directories) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        return str(json.loads(answer)) if answer else "the process that loads models is gone"


def read_receipt(output: str) -> dict[str, Any]:
    """Return what `qft run --json` ended with; raise `StrandedError` if that is no receipt."""
    try:
        receipt = json.loads(output)
    except ValueError:
        raise StrandedError(f"`qft run --json` wrote no receipt: {output[-200:]!r}") from None
    if (
        not isinstance(receipt, dict)
        or not {"evictions", "steps", "usd_per_h_now"} <= receipt.keys()
    ):
        raise StrandedError(f"`qft run --json` wrote no receipt: {output[-200:]!r}")
    return receipt


def read_scores(result: Path) -> tuple[str, str, str]:
    """Return measure, score before and score after, with intervals, as cells.

    Raises `StrandedError` if one is missing, or has no interval around it.
    """
    measure, cells = "", []
    for stage in ("before", "after"):
        try:
            score = json.loads((result / f"eval-{stage}.json").read_text(encoding="utf-8"))
            value, low, high = (float(score[key]) for key in ("value", "low", "high"))
            measure = str(score["metric"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StrandedError(f"there is no score {stage} training: {error}") from None
        if not low <= value <= high:
            raise StrandedError(f"the score {stage} training, {value}, is not within its interval")
        cells.append(f"{value:.3f} ({low:.3f} to {high:.3f})")
    return measure, cells[0], cells[1]


def published(name: str) -> str:
    """Return the published figure of a recipe, as its `prepare.py` states it in `PUBLISHED`."""
    tree = ast.parse((EXAMPLES / name / "prepare.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PUBLISHED":
            return str(ast.literal_eval(node.value))
    raise StrandedError("its `prepare.py` states no `PUBLISHED`")


def clear(home: Path) -> None:
    """Remove what machines are left in `home`; another Ctrl-C must not stop that half-way."""
    run(["cli.py", "down", "--all", "--delete", "--provider", "local"], home, alone=True)


def run(
    command: Sequence[str], home: Path, *, alone: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run Python in the checkout with a home of its own for the runs."""
    environment = os.environ | {
        "QFT_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        timeout=CLEARING_S_MAX if alone else COMMAND_S_MAX, start_new_session=alone,
    )  # fmt: skip


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return cells as lines under their headings."""
    rows = [head, *lines]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


LOAD = """
import json, sys
import peft, transformers
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    try:
        base, *adapter = json.loads(line)
        config = transformers.AutoConfig.from_pretrained(base)
        seq2seq = config.is_encoder_decoder
        kind = "Seq2SeqLM" if seq2seq else "CausalLM"
        model = getattr(transformers, "AutoModelFor" + kind).from_pretrained(base)
        if adapter:
            model = peft.PeftModel.from_pretrained(model, adapter[0])
            if not any(p.abs().sum() > 0 for n, p in model.named_parameters() if "lora_B" in n):
                raise ValueError("nothing was learnt")
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(base)
            ids = tokenizer("### HUMAN:", return_tensors="pt")["input_ids"]
            model.generate(input_ids=ids, max_new_tokens=2, do_sample=False)
        said = ""
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps(said), file=answers, flush=True)
"""


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
