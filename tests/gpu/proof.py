"""The proof from the command line to the table: what there is, what is done, what came out.

Exit codes: 0 whatever could be done went well, 1 a line failed or nothing was trained on a card,
2 bad usage, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu import borrowed, rounds
from gpu.jobs import ENDING_S, SCALES, Place, Scale
from gpu.kernels import proved
from gpu.lines import Line, Result, line_of, table, write_json
from gpu.running import Budget, Processes, Runner, summary
from gpu.shapes import MODELS, file_bytes
from gpu.usage import ROOT, parse

TINY_SCALE = Scale(batch_size=4, micro_batch=2, steps=24, every=6, kill_after=9, max_length=96)
RUNS_BYTES = 16 << 30  # checkpoints and logs of all runs, and quantised bases that are stored
PROBE_S, CHECK_S, WRITE_S = 150.0, 120.0, 150.0
CHECK_EXPECT_S = 15.0
CHECKS = "sizes and forecasts"
LARGE = ("1b", "3b", "8b")
SHARED = Path("/dev/shm")  # noqa: S108 - asked for its room first


def main(arguments: Sequence[str]) -> int:
    """Do what the command line asks for."""
    chosen = parse(arguments)
    if chosen.pack:
        return pack(chosen.folder, chosen.cuda)
    budget = Budget(limit_s=chosen.limit_s, clock=time.monotonic, began_s=time.monotonic())
    names = [*borrowed.GIVEN, *borrowed.LEAST, *borrowed.COMPARED]
    choice = borrowed.choose(borrowed.installed(names), chosen.folder)
    for line in choice.messages:
        _print(line)
    work = Path(tempfile.mkdtemp(prefix="qft-gpu-", dir=choose_disk(chosen.work)))
    (work / "logs").mkdir()
    processes = Processes(
        python=sys.executable,
        environment=borrowed.environment(os.environ, choice, root=ROOT, work=work),
        root=ROOT,
        logs=work / "logs",
    )

    def leave(_number: int, _frame: object) -> None:
        processes.close()  # else their threads would be waited for
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    try:
        proof = Proof(
            runner=processes,
            budget=budget,
            work=work,
            out=chosen.out / "gpu.json",
            on_message=_print,
            parts=chosen.parts,
        )
        return proof.run(lacking=choice.lacking)
    except KeyboardInterrupt:
        _print(f"interrupted: what was done so far is in {chosen.out / 'gpu.json'}")
        return 130
    finally:
        processes.close()
        if chosen.keep:
            _print(f"kept: {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)


def pack(folder: Path, cuda: str) -> int:
    """Fill the folder of packages, and say how large it is."""
    try:
        size = borrowed.pack(folder, on_message=_print, cuda=cuda)
    except (OSError, subprocess.CalledProcessError) as error:
        message = getattr(error, "stderr", None) or error
        _print(f"{folder} was not filled: {message}")
        return 1
    _print(f"{folder}: {size / 1e6:.1f} MB, for Python {', '.join(borrowed.PYTHONS)}")
    return 0


@dataclass(kw_only=True)
class Proof:
    """One pass; keeps gpu.json up to date, so that what was measured survives a hard end."""

    runner: Runner
    budget: Budget
    work: Path
    out: Path
    on_message: Callable[[str], None]
    parts: Sequence[str] = rounds.NAMES

    _facts: dict[str, Any] = field(default_factory=dict, init=False)
    _reported: list[Line] = field(default_factory=list, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def run(self, *, lacking: Sequence[str]) -> int:
        """Look what there is, do what can be done, print the table; return the exit code."""
        self._facts = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "budget_s": self.budget.limit_s,
            "card": None,
        }
        machine = self._probe()
        card = machine.get("device") == "cuda"
        self._facts |= {"card": machine.get("gpu"), "machine": machine, "driver": driver(card)}
        self.on_message(introduce(machine, self._facts["driver"]))
        lines = self._unknown(machine, lacking)
        if card:  # its time is dear, and the sizes can be checked anywhere
            lines += [*self._on_card(machine, lacking), *self._check(LARGE)]
        else:
            lines += [*self._check(LARGE), *self._on_cpu(lacking)]
        self._facts["seconds"] = round(self.budget.spent_s, 1)
        self._save(lines)
        self.on_message("\n" + table(lines))
        self.on_message("\n" + conclude(lines, self.out, self.budget.spent_s, card=card))
        return verdict(lines, card=card)

    def _probe(self) -> dict[str, Any]:
        """Ask the trainer itself what this machine is; if it cannot be asked, look for a card."""
        problem = ""
        for command in (("trainer", "probe"), ("gpu.card",)):
            limit_s = min(PROBE_S, self.budget.left_s)
            ended = self.runner.run(*command, limit_s=limit_s)
            try:
                found = json.loads(ended.out)
            except ValueError:
                found = None
            if isinstance(found, dict) and found.get("device"):
                return found
            problem = problem or summary(ended, limit_s=limit_s)
        return {"device": None, "problem": problem}

    def _unknown(self, machine: Mapping[str, Any], lacking: Sequence[str]) -> list[Line]:
        """Return a line if the trainer could not say what the machine is: that is not "no card"."""
        if machine.get("device") is not None:
            return []
        result = Result.NOT_RUN if lacking else Result.FAILED
        error = _lacks(lacking) or str(machine.get("problem"))
        return [self._note(Line(what="what this machine is", result=result, error=error))]

    def _check(self, models: Sequence[str]) -> list[Line]:
        """Check sizes and forecasts, without a card."""
        limit_s = min(CHECK_S, self.budget.left_s - ENDING_S)
        if limit_s < CHECK_EXPECT_S:
            late = Line(what=CHECKS, result=Result.NOT_RUN, error="no time left")
            return [self._note(late)]
        ended = self.runner.run("gpu.checks", *models, limit_s=limit_s)
        try:
            found = [line_of(raw) for raw in json.loads(ended.out)]
        except (ValueError, KeyError, TypeError):
            error = summary(ended, limit_s=limit_s)
            found = [Line(what=CHECKS, result=Result.FAILED, error=error)]
        return [self._note(line) for line in found]

    def _on_card(self, machine: Mapping[str, Any], lacking: Sequence[str]) -> list[Line]:
        place = Place(
            work=self.work, scale=Scale(), scales=SCALES, runner=self.runner, budget=self.budget
        )
        lanes = rounds.lanes_for(machine.get("memory_bytes"), os.cpu_count() or 1)
        self._facts["lanes"] = lanes
        models = Models(place=place, free=lambda: shutil.disk_usage(self.work).free)
        wanted = [one for one in rounds.NAMES if one in self.parts]

        def do(chosen: Sequence[rounds.Round]) -> list[Line]:
            return rounds.do(
                [one for one in chosen if one.name in wanted],
                place,
                ready=lambda job: _lacks(lacking) or models.problem(job.model),
                on_line=self._report,
            )

        with ThreadPoolExecutor() as pool:  # nothing of the first round is timed against others
            writing = pool.submit(models.write_all, [] if lacking else LARGE)
            examined = do([rounds.first_round(lanes)])
            writing.result()
        return examined + do(rounds.card_rounds(lanes, proved(examined)))

    def _on_cpu(self, lacking: Sequence[str]) -> list[Line]:
        place = Place(work=self.work, scale=TINY_SCALE, runner=self.runner, budget=self.budget)
        models = Models(place=place, free=lambda: shutil.disk_usage(self.work).free)
        return rounds.do(
            rounds.tiny_rounds(),
            place,
            ready=lambda job: _lacks(lacking) or models.problem(job.model),
            on_line=self._report,
        )

    def _note(self, line: Line) -> Line:
        """Say a line as it ends, and put it into gpu.json at once."""
        with self._lock:
            self._reported.append(line)
            seconds = f"{self.budget.spent_s:5.0f} s  "
            self.on_message(seconds + " · ".join(
                part for part in (line.what, str(line.result), line.message, line.error) if part
            ))  # fmt: skip
            self._save(self._reported)
        return line

    def _report(self, line: Line) -> None:
        self._note(line)

    def _save(self, lines: Sequence[Line]) -> None:
        try:
            write_json(self.out, self._facts, lines)
        except OSError as error:
            self.on_message(f"{self.out} cannot be written: {error}")


@dataclass(kw_only=True)
class Models:
    """Writes each model when it is first needed, once."""

    place: Place
    free: Callable[[], int]

    _faults: dict[str, str | None] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def write_all(self, names: Sequence[str]) -> None:
        """Write these models, the largest first; what goes wrong is told by `problem`."""
        for name in sorted(names, key=file_bytes, reverse=True):
            self.problem(name)

    def problem(self, model: str) -> str | None:
        """Say why there is no such model, None once it is there or if it needs no files."""
        if model not in MODELS:
            return None
        with self._lock:
            if model not in self._faults:
                self._faults[model] = self._write(model)
            return self._faults[model]

    def _write(self, model: str) -> str | None:
        room = file_bytes(model) + (RUNS_BYTES if model in LARGE else 0)
        if self.free() < room:
            return (
                f"no room: the {model} model needs {room / 1e9:.0f} GB in {self.place.work}, which "
                f"has {self.free() / 1e9:.0f}; name another disk with --work"
            )
        limit_s = min(WRITE_S, self.place.budget.left_s)
        ended = self.place.runner.run(
            "gpu.weights", str(self.place.work / "models"), model, limit_s=limit_s
        )
        if ended.fine:
            return None
        return f"the {model} model could not be written: {summary(ended, limit_s=limit_s)}"


def _lacks(lacking: Sequence[str]) -> str | None:
    return f"this Python lacks {', '.join(lacking)}" if lacking else None


def introduce(machine: Mapping[str, Any], driver_version: str | None) -> str:
    """Say in a sentence or two on what the proof runs."""
    if machine.get("device") == "cuda":
        size = (machine.get("memory_bytes") or 0) / 2**30
        return f"{machine.get('gpu')}, {size:.0f} GiB, driver {driver_version or 'unknown'}"
    why = machine.get("problem")
    if machine.get("device") is None:
        return f"whether there is a CUDA card here could not be found out ({why})"
    return (
        f"no CUDA card can be used here{f' ({why})' if why else ''}: nothing is measured that "
        "needs one; sizes and forecasts are checked, and a tiny model is trained on the CPU"
    )


def conclude(lines: Sequence[Line], out: Path, seconds: float, *, card: bool) -> str:
    """Say how many lines ended how, and where the figures are."""
    counts = {kind: sum(line.result is kind for line in lines) for kind in Result}
    text = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    where = "" if card else "; no card, so no figure of one"
    return f"{text} in {seconds:.0f} s{where}; {out}"


def verdict(lines: Sequence[Line], *, card: bool) -> int:
    """Return the exit code: a card on which nothing was trained is no success either."""
    failed = any(line.result is Result.FAILED for line in lines)
    trained = any(rounds.TRAIN in line.what and line.result is Result.DONE for line in lines)
    return 1 if failed or (card and not trained) else 0


def driver(card: bool) -> str | None:  # noqa: FBT001 - whether there is one to ask
    """Return the version of the NVIDIA driver, None if nobody tells."""
    if not card:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.splitlines() or [""])[0].strip() or None


def choose_disk(wanted: Path | None, *, memory_bytes: int | None = None) -> Path:
    """Return where models are written: as asked, else shared memory if the computer has plenty.

    A model of 16 GB takes a second or two there, and on a slow disk minutes. Plenty is twice the
    room that is needed, of `memory_bytes` (None: what is available now).
    """
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        return wanted
    room = sum(map(file_bytes, LARGE)) + RUNS_BYTES
    have = available_bytes() if memory_bytes is None else memory_bytes
    if have >= 2 * room and SHARED.is_dir() and shutil.disk_usage(SHARED).free >= room:
        return SHARED
    return Path(tempfile.gettempdir())


def available_bytes() -> int:
    """Return how much memory programs can still take, 0 if the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return 0
    return 0


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - what a script says
