"""Kills real training runs at random moments until they are done, and compares every bit.

    python tests/chaos.py                                100 kills: 90 tiny, 10 of the quickstart
    python tests/chaos.py --kills 20 --real-kills 0      a short one

The tiny model of `tiny.py` trains in float32, the quickstart's real model in 4 bits. Every run has
length grouping, accumulation and dropout. A killed process is SIGKILLed without warning, or first
gets a SIGTERM and then too little or enough time. The processes are forked from one that has
imported the libraries, because importing takes longer than training. The exit code is 0 if all
runs ended with the same adapter and the same log as one that nobody disturbed.
"""

# ruff: noqa: T201 - it is a command that talks
from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KILLS_PER_RUN_MAX = 8  # then the run is left alone, so that it ends
GRACES_STEPS = (0.0, 0.1, 1.0, 8.0)  # between SIGTERM and SIGKILL, in mean lengths of a step


@dataclass(frozen=True)
class Digests:
    """What must be the same in every run."""

    adapter: str
    log: str


@dataclass(kw_only=True)
class Counts:
    """What the chaos did."""

    kills: int = 0
    terms: int = 0  # of the kills, those announced by SIGTERM
    graceful: int = 0  # of those, the ones that the trainer answered in time with 75
    runs: int = 0
    torn: int = 0  # kills that left half a save behind
    redone: int = 0  # steps


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long an undisturbed run takes, in seconds."""

    start_s: float
    train_s: float
    steps: int


def main(argv: Sequence[str] | None = None) -> int:
    """Do the kills and print count and digests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=90, help="of runs of the tiny model")
    parser.add_argument("--real-kills", type=int, default=10, help="of runs of the real model")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--quickstart", type=Path, default=ROOT / "examples" / "quickstart")
    arguments = parser.parse_args(argv)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from trainer.job.job import prepare_environment

    os.environ.update({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    prepare_environment()
    chance = random.Random(arguments.seed)  # noqa: S311 - moments, not secrets
    odd = 0
    for name, make, kills in (
        ("tiny model, float32", tiny_config, arguments.kills),
        ("SmolLM2-135M, NF4", real_config, arguments.real_kills),
    ):
        if kills:
            with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
                config = make(Path(directory), arguments.quickstart)
                odd += report(name, *chaos(Path(directory), config, kills=kills, chance=chance))
    return 1 if odd else 0


def report(name: str, counts: Counts, expected: Digests, odd: Sequence[Digests]) -> int:
    """Print what happened and return the number of runs that differ."""
    print(
        f"{name}: {counts.kills} kills over {counts.runs} runs "
        f"({counts.terms} after a SIGTERM, {counts.graceful} of these ended in time with 75; "
        f"{counts.torn} left half a save; {counts.redone} steps done again)"
    )
    print(f"undisturbed: adapter sha256 {expected.adapter}, log sha256 {expected.log}")
    print(f"identical to it: {counts.runs - len(odd)} of {counts.runs} runs", flush=True)
    for one in odd:
        print(f"  DIFFERS: adapter {one.adapter}, log {one.log}")
    return len(odd)


def tiny_config(directory: Path, _quickstart: Path) -> dict[str, Any]:
    """Make the tiny model and return a config of 40 steps, more than six epochs."""
    from support import tiny

    model = tiny.make_model(directory / "model")
    rows = tiny.make_rows(directory / "rows.jsonl", 24)
    settings = {"steps": 40, "batch_size": 4, "micro_batch": 2, "lr": 1e-2}
    return tiny.make_config(model, rows, train=settings, checkpoint={"every": 3})


def real_config(_directory: Path, quickstart: Path) -> dict[str, Any]:
    """Prepare the quickstart's model and rows and return a config of 12 steps in 4 bits."""
    from support import tiny

    program = [sys.executable, str(ROOT / "examples" / "quickstart" / "prepare.py")]
    subprocess.run([*program, "--out", str(quickstart)], check=True)
    config = tiny.make_config(quickstart.resolve() / "model", quickstart.resolve() / "train.jsonl")
    config["method"] = {"kind": "qlora", "quant": "nf4", "r": 4, "dropout": 0.1}
    config["data"].update(prompt="Tweet: {text}\nSentiment:", completion=" {label}")
    config["train"].update(steps=12, batch_size=4, micro_batch=2, lr=3e-4, max_length=64)
    config["checkpoint"] = {"every": 2}
    return config


def chaos(
    directory: Path, config: Mapping[str, Any], *, kills: int, chance: random.Random
) -> tuple[Counts, Digests, list[Digests]]:
    """Train once undisturbed, then again and again under fire; return what differed from it."""
    import peft  # noqa: F401 - imported here so that every child has it
    import transformers.models.llama.modeling_llama  # noqa: F401 - likewise
    from support import tiny

    import trainer.job.stages  # noqa: F401 - likewise

    calm = tiny.write_config(directory / "calm", config)
    began_s = time.monotonic()
    code = wait(fork(calm))
    span_s = time.monotonic() - began_s
    if code != 0:
        raise RuntimeError(f"the undisturbed run ended with {code}: {(calm / 'log').read_text()}")
    expected = digests(calm)
    lines = (calm / "metrics.jsonl").read_text().splitlines()
    train_s = sum(json.loads(line)["seconds"] for line in lines)
    pace = Pace(start_s=span_s - train_s, train_s=train_s, steps=len(lines))
    print(f"undisturbed: {span_s:.1f} s, of it {train_s:.1f} s training", flush=True)
    counts, odd = Counts(), list[Digests]()
    while counts.kills < kills:
        run = tiny.write_config(directory / f"run-{counts.runs}", config)
        under_fire(run, counts, kills=kills, pace=pace, chance=chance)
        found = digests(run)
        if found != expected:
            odd.append(found)
        counts.runs += 1
        counts.redone += json.loads((run / "status.json").read_text())["redone_steps"]
        print(f"  {counts.kills} kills, {counts.runs} runs, {len(odd)} differ", flush=True)
        shutil.rmtree(run)
    return counts, expected, odd


def under_fire(run: Path, counts: Counts, *, kills: int, pace: Pace, chance: random.Random) -> None:
    """Start the run and kill it, again and again, until it ends well.

    Three kills of four come while it trains, the others at any moment from its start.
    """
    fired = 0
    while True:
        process = fork(run)
        if fired < KILLS_PER_RUN_MAX and counts.kills < kills:
            if chance.random() < 0.75:
                await_step(process, run, timeout_s=10 * pace.start_s)
                delay_s = chance.uniform(0, pace.train_s)
            else:
                delay_s = chance.uniform(0, pace.start_s)
            ended = wait(process, for_s=delay_s)
            if ended is None:
                fired += 1
                kill(process, counts, chance, step_s=pace.train_s / pace.steps)
                partial = (run / "checkpoints").glob(".*.partial")
                counts.torn += any(True for _ in partial)
                continue
        else:
            ended = wait(process)
        if ended != 0:
            raise RuntimeError(f"the run ended with {ended}: {(run / 'log').read_text()}")
        return


def await_step(process: int, run: Path, *, timeout_s: float) -> None:
    """Wait until the process has logged a step, or has ended."""
    log = run / "metrics.jsonl"
    before = log.stat().st_mtime_ns if log.exists() else 0
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if log.exists() and log.stat().st_mtime_ns != before:
            return
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.002)


def kill(process: int, counts: Counts, chance: random.Random, *, step_s: float) -> None:
    """End a process: at once, or with a notice that is too short or long enough."""
    counts.kills += 1
    if chance.random() < 0.4:
        counts.terms += 1
        os.kill(process, signal.SIGTERM)
        ended = wait(process, for_s=chance.choice(GRACES_STEPS) * step_s)
        if ended is not None:
            if ended not in (75, 0, -signal.SIGTERM):  # the last: before the trainer could listen
                raise RuntimeError(f"a terminated run ended with {ended}")
            counts.graceful += ended >= 0
            return
    os.kill(process, signal.SIGKILL)
    wait(process)


def fork(run: Path) -> int:
    """Start the trainer on `run` in a child of this process and return its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        log = os.open(run / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from trainer.__main__ import main as train

        code = train(["train", "--run-dir", str(run)])
    finally:
        os._exit(code)


def wait(process: int, *, for_s: float | None = None) -> int | None:
    """Return the exit code of a child (negative: the signal), or None if it outlives `for_s`."""
    deadline_s = None if for_s is None else time.monotonic() + for_s
    while True:
        found, status = os.waitpid(process, 0 if deadline_s is None else os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if deadline_s is not None and time.monotonic() >= deadline_s:
            return None
        time.sleep(0.002)


def digests(run: Path) -> Digests:
    """Return the SHA-256 of the adapter file and of the log without its timings."""
    from support import tiny

    log = json.dumps(tiny.losses(run)).encode()
    return Digests(
        adapter=hashlib.sha256(tiny.adapter_bytes(run)).hexdigest(),
        log=hashlib.sha256(log).hexdigest(),
    )


if __name__ == "__main__":
    sys.exit(main())
