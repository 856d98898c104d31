"""`qft data`, `audit`, `report`, `generate`, `merge`, `push`: the trainer's own tools, at home.

Each lays the run out in a scratch folder as it is on a machine and starts the trainer's module as a
program, so that no torch is loaded by the command line itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

from commands.runs import python_program, tool_checks
from commands.runs.config import LoadedConfig, check_files
from commands.runs.find_config import find_config, reopen
from commands.runs.home import (
    RunFolder,
    demand_place,
    environment,
    pick_run,
    qft_home,
    run_folder,
)
from commands.runs.local_trainer import local_run_dir, trainer
from commands.runs.receipt import make_receipt
from commands.ui.errors import HostError, TrainingError, UsageError
from commands.ui.output import log, out
from infra.durable import write_json
from infra.provider import StopReason
from infra.run.fold import fold
from infra.run.journal import Event, Kind, read
from infra.timestamps import format_utc
from trainer.data.template import Template
from trainer.exit_codes import ExitCode
from trainer.method_table import Quant

MENDED_BY_THE_USER = (ExitCode.BAD_DATA, ExitCode.BAD_CONFIG, ExitCode.USAGE)
"""Everything else is the trainer's failure."""
LAST_WORDS = 20


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the adapter is asked: fields of the prompt, a ready prompt, or a conversation."""

    fields: tuple[str, ...] = ()
    prompt: str | None = None
    chat: bool = False
    tokens: int = 256
    base_only: bool = False

    @property
    def flags(self) -> list[str]:
        """The same as flags of the generator."""
        ways = {"--field": self.fields, "--prompt": self.prompt is not None, "--chat": self.chat}
        chosen = [f"`{way}`" for way, taken in ways.items() if taken]
        if len(chosen) > 1:
            raise UsageError(
                f"{' and '.join(chosen)} are different questions, and one is answered",
                hint="leave the others out; a ready `--prompt` is used as it is",
            )
        flags = ["--tokens", str(self.tokens)]
        for pair in self.fields:
            if "=" not in pair:
                raise UsageError(
                    f"`--field {pair}` names no field", hint="write `--field NAME=TEXT`"
                )
            flags += ["--field", pair]
        flags += [] if self.prompt is None else ["--prompt", self.prompt]
        return [*flags, *["--chat"] * self.chat, *["--base-only"] * self.base_only]


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """Where to publish, and what; `base` is the hub id of a base that was a directory here."""

    repo: str
    merged: bool
    public: bool
    base: str = ""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """How to merge: another base than the config's or as training quantised it, another format."""

    base: str = ""
    quantised: bool = False
    dtype: str = ""
    rows: int = 32


def convert(
    kind: str, source: str, folder: str, flags: Sequence[str], *, as_json: bool
) -> dict[str, object]:
    """Turn a published data set into rows; return the two files, and all counts."""
    if "--tokenizer" in flags:
        tool_checks.demand_for("data")
    arguments = [kind, source, "--out", folder, *flags, "--json"]
    counts = json.loads(_program("convert", arguments, as_json=as_json))
    files = {side: str(Path(folder) / f"{side}.jsonl") for side in ("train", "eval")}
    return {**files, **counts}


def audit(wanted: str, *, html: str, as_json: bool) -> None:
    """Show what would be trained, before any money is spent."""
    if html:
        tool_checks.check_page(Path(html), "--html")
    loaded = find_config(wanted, qft_home(environment()))
    check_files(loaded)
    tool_checks.demand_for("audit")
    folder = run_folder(qft_home(environment()), loaded.config.name)
    more = ["--html", str(Path(html).absolute())] if html else []
    with local_run_dir(loaded, folder) as run_dir:
        flags = ["--run-dir", str(run_dir), *more, *(["--json"] if as_json else [])]
        out(_program("audit", flags, as_json=as_json).rstrip("\n"))


def report(wanted: str, *, as_json: bool) -> Path:
    """Write `report.html` and `report.json` beside the adapter; return the page."""
    folder, loaded = _fetched(wanted)
    demand_place(loaded.out / "report.html")
    with local_run_dir(loaded, folder) as run_dir:
        _add_results(run_dir, loaded)
        facts = run_dir / "facts.json"
        write_json(facts, gather_facts(folder, loaded))
        out_dir = ["--out", str(loaded.out.absolute()), "--name", folder.name]
        flags = ["--run-dir", str(run_dir), "--facts", str(facts), *out_dir]
        _program("report", flags, as_json=as_json)
    return loaded.out / "report.html"


def generate(wanted: str, asked: Question, *, as_json: bool) -> str | None:
    """Let the adapter answer; return what it said, or None after a conversation."""
    flags = asked.flags
    folder, loaded = _fetched(wanted)
    if asked.chat and as_json:
        raise UsageError("a conversation is no JSON", hint="leave `--chat` or `--json` out")
    if not (asked.fields or asked.chat or asked.prompt is not None):
        raise UsageError("there is nothing to answer", hint=_how_to_ask(loaded))
    if asked.fields:
        tool_checks.check_fields(loaded, asked.fields)
    tool_checks.demand_for("generate", loaded)
    adapter = ["--adapter", str((loaded.out / "adapter").absolute())]
    with local_run_dir(loaded, folder) as run_dir:
        flags = ["--run-dir", str(run_dir), *adapter, *flags]
        if asked.chat:
            _judge("generate", _start("generate", flags).returncode)
            return None
        return _program("generate", flags, as_json=as_json).removesuffix("\n")


def next_steps(name: str) -> str:
    """What can be typed once the adapter is home, each as it stands but for the question."""
    loaded = reopen(run_folder(qft_home(environment()), name))
    return f"`qft report {name}`, {_how_to_ask(loaded)}, `qft merge {name}`"


def _how_to_ask(loaded: LoadedConfig) -> str:
    """The command that fills this run's own prompt, or holds a conversation."""
    table = loaded.config.data
    fields = [] if table.messages else Template.parse(table.prompt).fields
    flags = " ".join(f"--field {field}='...'" for field in fields) or "--prompt '...'"
    return f"`qft generate {loaded.config.name} {'--chat' if table.messages else flags}`"


def merge(wanted: str, order: Fold, *, as_json: bool) -> tuple[Path, dict[str, Any] | None]:
    """Merge the adapter into its base, then compare the two on held-out rows.

    Return the folder of the merged model, and how alike they answer: None if they were not asked.
    """
    folder, loaded = _fetched(wanted)
    target = loaded.out / "merged"
    if target.exists():
        raise UsageError(f"`{target}` is there already", hint="use it, or remove it to merge again")
    if order.quantised and loaded.config.method.storage is Quant.NONE:
        raise UsageError(
            f"`{folder.name}` was trained on a base that is not quantised",
            hint=f"`qft merge {folder.name}` merges onto that base",
        )
    demand_place(target)
    tool_checks.demand_for("merge", loaded)
    source = Path(order.base).expanduser() if order.base else loaded.model_folder
    source = source or _from_hub(folder, loaded, as_json=as_json)
    if not (source / "config.json").is_file():
        raise UsageError(
            f"`{source}` holds no model", hint="name the directory with its config.json"
        )
    tool_checks.check_base(source)
    tool_checks.check_room(source, target)
    adapter = ["--adapter", str((loaded.out / "adapter").absolute())]
    places = ["--base", str(source.absolute()), *adapter]
    places += ["--onto", "quantized" if order.quantised else "original"]
    written = ["--out", str(target), *(["--dtype", order.dtype] if order.dtype else [])]
    parity = loaded.out / "merged-parity.json"
    parity.unlink(missing_ok=True)  # it is of a merged model that is gone
    with local_run_dir(loaded, folder) if order.quantised else nullcontext() as run_dir:
        how = ["--run-dir", str(run_dir)] if run_dir else []
        _program("merge", [*places, *written, *how], as_json=as_json)
    if not order.rows:
        return target, None
    with local_run_dir(loaded, folder) as run_dir:
        asked = ["--run-dir", str(run_dir), "--merged", str(target.absolute()), *places]
        asked += ["--rows", str(order.rows)]
        done = _start("merge-check", asked, stdout=PIPE, stderr=PIPE if as_json else None)
    if done.returncode:
        why = f": {done.stderr.strip().splitlines()[-1]}" if done.stderr else ""
        log(f"the merged model is whole, but it was not compared with the adapter{why}")
        return target, None
    found = dict(json.loads(done.stdout))
    write_json(parity, found, mode=0o644)
    trained = found["as_trained"]
    if trained and trained["equal"] < trained["rows"] and not order.quantised:
        again = f"`qft merge {folder.name} --onto quantized`, with `{target}` removed"
        log(f"hint: {again}, writes the model as it was trained")
    return target, found


def _from_hub(folder: RunFolder, loaded: LoadedConfig, *, as_json: bool) -> Path:
    """Fetch the base of a run from the hub.

    Raises Usage with the way around if that fails, HostTrouble if the hub is not reached.
    """
    model = loaded.config.model
    asked = ["--model", model.id, "--revision", model.revision]
    done = _start("fetch-base", asked, stdout=PIPE, stderr=PIPE if as_json else None)
    if done.returncode == 0:
        return Path(done.stdout.strip())
    here = model.id.rpartition("/")[2]
    trouble = HostError if done.returncode == ExitCode.FAILED_IO else UsageError
    raise trouble(
        f"the base of `{folder.name}` is `{model.id}` on a hub, and was not fetched",
        problems=(done.stderr or "").strip().splitlines()[-LAST_WORDS:],
        hint=f"`hf download {model.id} --revision {model.revision} --local-dir {here}`, then "
        f"`qft merge {folder.name} --base {here}`",
    )


def export(wanted: str, *, rank: int | None) -> Path:
    """Write the adapter of one rank as plain LoRA beside the trained one; return its folder."""
    folder, loaded = _fetched(wanted)
    target = loaded.out / (f"exported-rank-{rank}" if rank else "exported")
    if target.exists():
        raise UsageError(f"`{target}` is there already", hint="remove it, or choose another rank")
    demand_place(target)
    tool_checks.demand_for("export")
    with local_run_dir(loaded, folder) as run_dir:
        _add_results(run_dir, loaded)
        ranked = ["--rank", str(rank)] if rank else []
        done = trainer(run_dir, "export", "--out", str(target.absolute()), *ranked)
    _judge("export", done.returncode)
    return target


def push(wanted: str, shelf: Shelf, *, as_json: bool) -> str:
    """Publish the adapter, or the merged model, with its model card; return its address."""
    folder, loaded = _fetched(wanted)
    kept = ["--folder", str((loaded.out / "merged").absolute())] if shelf.merged else []
    if shelf.merged and not (loaded.out / "merged").is_dir():
        raise UsageError("there is no merged model yet", hint=f"`qft merge {folder.name}` makes it")
    sent = loaded.out / ("merged" if shelf.merged else "adapter")
    tool_checks.check_shelf(shelf.repo, sent, base=shelf.base)
    tool_checks.demand_for("push")
    with local_run_dir(loaded, folder) as run_dir:
        _add_results(run_dir, loaded)
        facts = run_dir / "facts.json"
        write_json(facts, gather_facts(folder, loaded))
        flags = ["--run-dir", str(run_dir), "--repo", shelf.repo, "--facts", str(facts), *kept]
        flags += ["--public"] if shelf.public else []
        flags += ["--base", shelf.base] if shelf.base else []
        return _program("publish", flags, as_json=as_json).strip()


def gather_facts(folder: RunFolder, loaded: LoadedConfig) -> dict[str, object]:
    """What only this computer knows of a run: evictions on the time line, dollars, hours."""
    simulated = loaded.config.vm.provider == "local"
    receipt = make_receipt(folder, loaded.out, simulated=simulated)
    return {
        "evictions": _evictions(read(folder.journal)),
        "usd": receipt.usd,
        "listed": simulated,
        "hours": receipt.machine_h,
        "redone_steps": receipt.redone_steps,
        # On the machine they have other names.
        "data": {"train": loaded.config.data.train, "eval": loaded.config.data.eval},
        "base": Path(os.path.normpath(loaded.model_folder or loaded.config.model.id)).name,
    }


def _evictions(events: Sequence[Event]) -> list[dict[str, object]]:
    """The evictions of a run, each by the reason that was known in the end."""
    stops: list[dict[str, object]] = []
    for event in events:
        if event.kind is Kind.STOP_SEEN and event.data.get("ran", True):
            step, reason = event.data.get("step"), event.data["reason"]
            stops.append({"at": format_utc(event.at_s), "step": step, "reason": reason})
        elif event.kind is Kind.STOP_EXPLAINED and stops:
            stops[-1]["reason"] = event.data["reason"]
    return [one for one in stops if one["reason"] in {StopReason.EVICTED, StopReason.PRICE}]


def _add_results(run_dir: Path, loaded: LoadedConfig) -> None:
    """Put what the run left at home into a scratch run directory."""
    for name in ("eval-before.json", "eval-after.json", "status.json", "merged-parity.json"):
        if (loaded.out / name).exists():
            shutil.copyfile(loaded.out / name, run_dir / name)
    (run_dir / "adapter").symlink_to((loaded.out / "adapter").absolute())


def _fetched(wanted: str) -> tuple[RunFolder, LoadedConfig]:
    """A run whose adapter is at home. Raises Usage with the way there."""
    folder = pick_run(qft_home(environment()), wanted, cwd=Path.cwd())
    loaded = reopen(folder)
    if not (loaded.out / "adapter").is_dir():
        state = fold(read(folder.journal))
        if state.trained:
            hint = f"`qft fetch {folder.name}` brings it"
        else:
            hint = (
                f"it is not trained yet: `qft status {folder.name}` shows how far it is, "
                f"`qft run {folder.name}` goes on"
            )
        raise UsageError(f"the adapter of `{folder.name}` is not at home", hint=hint)
    return folder, loaded


def _program(tool: str, arguments: list[str], *, as_json: bool) -> str:
    """Run one of the trainer's tools and return what it printed.

    It talks for itself on stderr, except with --json, where its last words become the error's.
    """
    done = _start(tool, arguments, stdout=PIPE, stderr=PIPE if as_json else None)
    said = (done.stderr or "").strip()
    if done.returncode == 0 and said:
        log(said)
    _judge(tool, done.returncode, said.splitlines()[-LAST_WORDS:])
    return done.stdout


def _start(
    tool: str, arguments: list[str], *, stdout: int | None = None, stderr: int | None = None
) -> subprocess.CompletedProcess[str]:
    words = [tool, *arguments]
    return python_program.start(
        "trainer", words, around=environment(), stdout=stdout, stderr=stderr
    )


def _judge(tool: str, code: int, said: list[str] | None = None) -> None:
    """Turn a tool's exit code into what a person can act on; its own words are on stderr."""
    if code == 0:
        return
    above = "" if said else "; its message is above"
    lines = list(said or [])
    hint = lines.pop().removeprefix("hint: ") if lines and lines[-1].startswith("hint: ") else ""
    if code in MENDED_BY_THE_USER:
        message = f"`{tool}` could not use what it was given{above}"
        raise UsageError(message, problems=lines, hint=hint)
    if code == ExitCode.FAILED_IO and tool == "publish":
        raise HostError(f"the hub was not reached{above}", problems=lines, hint=hint)
    raise TrainingError(f"`{tool}` ended with exit code {code}", problems=lines, hint=hint)
