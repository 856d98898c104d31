"""`qft data`, `audit`, `report`, `generate`, `merge`, `push`: the trainer's own tools, at home.

Each lays the run out in a scratch folder as it is on a machine and starts the trainer's module as a
program, so that no torch is loaded by the command line itself.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from commands.bench import laid_out, trainer
from commands.config import LoadedConfig
from commands.drive import find_config
from commands.errors import Exit, TrainingTrouble, Usage
from commands.home import RunFolder, environment, pick_run, qft_home, run_folder
from commands.receipt import make_receipt
from commands.session import reopen
from infra.durable import write_json
from infra.journal import Kind, read
from infra.provider import StopReason
from infra.when import utc

TRAINER_CODES = {65: Exit.USAGE, 78: Exit.USAGE, 2: Exit.USAGE}
"""Bad data and bad config are the user's to mend; everything else is the trainer's failure."""


def convert(arguments: Sequence[str]) -> None:
    """Turn a published data set into rows; the arguments are the converter's own."""
    _program("convert", list(arguments))


def audit(wanted: str, *, html: str, as_json: bool) -> None:
    """Show what would be trained, before any money is spent."""
    loaded = find_config(wanted, qft_home(environment()))
    folder = run_folder(qft_home(environment()), loaded.config.name)
    more = ["--html", str(Path(html).absolute())] if html else []
    with laid_out(loaded, folder) as run_dir:
        _program("audit", ["--run-dir", str(run_dir), *more, *(["--json"] if as_json else [])])


def report(wanted: str) -> Path:
    """Write `report.html` and `report.json` beside the adapter; return the page."""
    folder, loaded = _fetched(wanted)
    with laid_out(loaded, folder) as run_dir:
        _add_results(run_dir, loaded)
        facts = run_dir / "facts.json"
        write_json(facts, gather_facts(folder, loaded))
        out = ["--out", str(loaded.out.absolute()), "--name", folder.name]
        _program("report", ["--run-dir", str(run_dir), "--facts", str(facts), *out])
    return loaded.out / "report.html"


def generate(wanted: str, arguments: Sequence[str]) -> None:
    """Let the adapter answer; the arguments are the generator's own."""
    folder, loaded = _fetched(wanted)
    adapter = ["--adapter", str((loaded.out / "adapter").absolute())]
    with laid_out(loaded, folder) as run_dir:
        _program("generate", ["--run-dir", str(run_dir), *adapter, *arguments])


def merge(wanted: str, *, dtype: str) -> Path:
    """Merge the adapter into its 16-bit base; return the folder of the merged model."""
    folder, loaded = _fetched(wanted)
    base = loaded.model_folder
    if base is None:
        raise Usage(
            f"the base of `{folder.name}` is `{loaded.config.model.id}` on a hub",
            hint="download it, and name its directory in `model.id`",
        )
    target = loaded.out / "merged"
    arguments = ["--base", str(base), "--adapter", str(loaded.out / "adapter")]
    arguments += ["--out", str(target), *(["--dtype", dtype] if dtype else [])]
    _program("merge", arguments)
    return target


def export(wanted: str, *, rank: int | None) -> Path:
    """Write the adapter of one rank as plain LoRA beside the trained one; return its folder."""
    folder, loaded = _fetched(wanted)
    target = loaded.out / (f"exported-rank-{rank}" if rank else "exported")
    if target.exists():
        raise Usage(f"`{target}` is there already", hint="remove it, or choose another rank")
    with laid_out(loaded, folder) as run_dir:
        _add_results(run_dir, loaded)
        ranked = ["--rank", str(rank)] if rank else []
        done = trainer(run_dir, "export", "--out", str(target.absolute()), *ranked)
    _judge("export", done.returncode)
    return target


def push(wanted: str, *, repo: str, merged: bool, public: bool) -> None:
    """Publish the adapter, or the merged model, with its model card."""
    folder, loaded = _fetched(wanted)
    shelf = ["--folder", str((loaded.out / "merged").absolute())] if merged else []
    if merged and not (loaded.out / "merged").is_dir():
        raise Usage("there is no merged model yet", hint=f"`qft merge {folder.name}` makes it")
    with laid_out(loaded, folder) as run_dir:
        _add_results(run_dir, loaded)
        facts = run_dir / "facts.json"
        write_json(facts, gather_facts(folder, loaded))
        arguments = ["--run-dir", str(run_dir), "--repo", repo, "--facts", str(facts), *shelf]
        _program("publish", [*arguments, *(["--public"] if public else [])])


def gather_facts(folder: RunFolder, loaded: LoadedConfig) -> dict[str, object]:
    """What only this computer knows of a run: evictions on the time line, dollars, hours."""
    simulated = loaded.config.vm.provider == "local"
    receipt = make_receipt(folder, loaded.out, simulated=simulated)
    evictions = [
        {"at": utc(event.at_s), "step": event.data.get("step"), "reason": event.data["reason"]}
        for event in read(folder.journal)
        if event.kind is Kind.STOP_SEEN
        and event.data["reason"] in {StopReason.EVICTED, StopReason.PRICE}
    ]
    return {
        "evictions": evictions,
        "usd": receipt.usd,
        "listed": simulated,
        "hours": receipt.machine_h,
        "redone_steps": receipt.redone_steps,
    }


def _add_results(run_dir: Path, loaded: LoadedConfig) -> None:
    """Put what the run left at home into a scratch run directory."""
    for name in ("eval-before.json", "eval-after.json", "status.json"):
        if (loaded.out / name).exists():
            shutil.copyfile(loaded.out / name, run_dir / name)
    (run_dir / "adapter").symlink_to((loaded.out / "adapter").absolute())


def _fetched(wanted: str) -> tuple[RunFolder, LoadedConfig]:
    folder = pick_run(qft_home(environment()), wanted, cwd=Path.cwd())
    loaded = reopen(folder)
    if not (loaded.out / "adapter").is_dir():
        raise Usage(
            f"the adapter of `{folder.name}` is not at home", hint=f"`qft fetch {folder.name}`"
        )
    return folder, loaded


def _program(module: str, arguments: list[str]) -> None:
    """Run one of the trainer's tools; it speaks for itself on stdout and stderr."""
    root = Path(__file__).resolve().parent.parent
    argv = [sys.executable, "-m", f"trainer.{module}", *arguments]
    path = {**environment(), "PYTHONPATH": str(root)}
    _judge(module, subprocess.run(argv, env=path, check=False).returncode)


def _judge(module: str, code: int) -> None:
    """Turn a tool's exit code into what a person can act on; its own words are on stderr."""
    if code == 0:
        return
    if TRAINER_CODES.get(code) is Exit.USAGE:
        raise Usage(f"`{module}` could not use what it was given; its message is above")
    raise TrainingTrouble(f"`{module}` ended with exit code {code}")
