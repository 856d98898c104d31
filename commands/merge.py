"""`qft merge`: merges the adapter into its base, and compares the two on held-out rows."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from subprocess import PIPE
from typing import Annotated, Any

import typer

from commands.runs import base_files
from commands.runs.base_record import recorded_base
from commands.runs.config import LoadedConfig
from commands.runs.extras import READS, demand
from commands.runs.fetched_run import adapter_of, open_fetched
from commands.runs.home import (
    RunFolder,
    environment,
    qft_home,
    read_saved_config,
    require_writable,
)
from commands.runs.local_trainer import (
    LAST_LINES,
    local_run_dir,
    output_of,
    start,
)
from commands.ui.errors import HostError, UsageError
from commands.ui.options import Json, Run, examples
from commands.ui.output import log, print_data, print_json
from infra.durable import write_json
from trainer.exit_codes import ExitCode
from trainer.method_table import Quant

ROOM = 1.05
"""What a copy of the weights takes beside them: configs, tokenizer, and what a file system adds."""

EXAMPLES = {
    "qft merge": "into out/NAME/merged; a base on a hub is fetched",
    "qft merge --base phi-1_5": "a base that lies in phi-1_5",
    "qft merge --onto quantized": "the very model that QLoRA trained",
}

app = typer.Typer()


class Dtype(StrEnum):
    """The number formats that a merged model can be written in."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class MergeBase(StrEnum):
    """Which base an adapter can be merged onto."""

    ORIGINAL = "original"
    QUANTIZED = "quantized"


@app.command(epilog=examples(EXAMPLES))
def command(  # noqa: PLR0913  (an argument is an option)
    run: Run = "",
    *,
    base: Annotated[
        str,
        typer.Option(metavar="DIR", help="The base model.", show_default="the run's, or its hub's"),
    ] = "",
    dtype: Annotated[
        Dtype | None, typer.Option(help="Number format.", show_default="the base's own")
    ] = None,
    merge_base: Annotated[
        MergeBase,
        typer.Option("--onto", help="The base as its files have it, or as training quantised it."),
    ] = MergeBase.ORIGINAL,
    rows: Annotated[
        int, typer.Option("--compare", min=0, help="Held-out rows to compare it on; 0 for none.")
    ] = 32,
    as_json: Json = False,
) -> None:
    """Merge the adapter into its base, and compare."""
    options = MergeOptions(
        base=base, dtype=dtype or "", quantised=merge_base is MergeBase.QUANTIZED, rows=rows
    )
    merged, comparison = merge(run, options, as_json=as_json)
    if as_json:
        print_json({"model": str(merged), "parity": comparison})
    else:
        print_data(str(merged))


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """How to merge: another base than the config's or as training quantised it, another format."""

    base: str = ""
    quantised: bool = False
    dtype: str = ""
    rows: int = 32


def merge(
    wanted: str, options: MergeOptions, *, as_json: bool
) -> tuple[Path, dict[str, Any] | None]:
    """Merge the adapter into its base, then compare the two on held-out rows.

    Return the folder of the merged model, and how alike they answer: None if they were not asked.
    """
    folder, loaded = open_fetched(wanted)
    target = loaded.out / "merged"
    if target.exists():
        raise UsageError(f"`{target}` is there already", hint="use it, or remove it to merge again")
    if options.quantised and loaded.config.method.storage is Quant.NONE:
        raise UsageError(
            f"`{folder.name}` was trained on a base that is not quantised",
            hint=f"`qft merge {folder.name}` merges onto that base",
        )
    require_writable(target)
    demand((*READS, "peft"), "`qft merge`", qft_home(environment()))
    base = _find_base(folder, loaded, options, as_json=as_json)
    check_room(base, target)
    merge_base = MergeBase.QUANTIZED if options.quantised else MergeBase.ORIGINAL
    models = ["--base", str(base.absolute()), "--adapter", str(adapter_of(loaded))]
    models += ["--onto", merge_base]
    written = ["--out", str(target), *(["--dtype", options.dtype] if options.dtype else [])]
    (loaded.out / "merged-parity.json").unlink(missing_ok=True)  # of a merged model that is gone
    with local_run_dir(loaded, folder) if options.quantised else nullcontext() as run_dir:
        trained = ["--run-dir", str(run_dir)] if run_dir else []
        output_of("merge", *models, *written, *trained, as_json=as_json)
    if not options.rows:
        return target, None
    return target, _compare(folder, loaded, models, options, as_json=as_json)


def _compare(
    folder: RunFolder,
    loaded: LoadedConfig,
    models: list[str],
    options: MergeOptions,
    *,
    as_json: bool,
) -> dict[str, Any] | None:
    """Ask the merged model and the adapter the same rows; None, with a message, if that failed."""
    target = loaded.out / "merged"
    with local_run_dir(loaded, folder) as run_dir:
        flags = ["--run-dir", str(run_dir), "--merged", str(target.absolute()), *models]
        flags += ["--rows", str(options.rows)]
        done = start("merge-check", *flags, stderr=PIPE if as_json else None)
    if done.returncode:
        why = f": {done.stderr.strip().splitlines()[-1]}" if done.stderr else ""
        log(f"the merged model is whole, but it was not compared with the adapter{why}")
        return None
    found = dict(json.loads(done.stdout))
    write_json(loaded.out / "merged-parity.json", found, mode=0o644)
    trained = found["as_trained"]
    if trained and trained["equal"] < trained["rows"] and not options.quantised:
        again = f"`qft merge {folder.name} --onto quantized`, with `{target}` removed"
        log(f"hint: {again}, writes the model as it was trained")
    return found


def _find_base(
    folder: RunFolder, loaded: LoadedConfig, options: MergeOptions, *, as_json: bool
) -> Path:
    """Return the folder of the base: named, the run's, or fetched. UsageError if it is unusable."""
    base = Path(options.base).expanduser() if options.base else loaded.model_folder
    base = base or _fetch_base(folder, loaded, as_json=as_json)
    if not (base / "config.json").is_file():
        raise UsageError(f"`{base}` holds no model", hint="name the directory with its config.json")
    broken = base_files.faults(base)
    if broken:
        raise UsageError(
            f"the base in `{base}` cannot be used",
            problems=broken,
            hint="fetch it again, or name another copy with `--base DIR`",
        )
    return base


def check_room(base: Path, target: Path) -> None:
    """Raise UsageError if a copy of the weights in `base` does not fit beside `target`."""
    wanted = base_files.weights_bytes(base) * ROOM
    there = next(path for path in (target, *target.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if wanted > free:
        raise UsageError(
            f"the merged model needs about {wanted / 1e9:.1f} GB, and `{there}` has "
            f"{free / 1e9:.1f} GB free",
            hint="make room there; nothing was written",
        )


def _fetch_base(folder: RunFolder, loaded: LoadedConfig, *, as_json: bool) -> Path:
    """Fetch the base of a run from the hub.

    Raises UsageError with the way around if that fails, HostError if the hub is not reached.
    """
    model = loaded.config.model
    base = recorded_base(loaded, read_saved_config(folder), folder)
    revision = base.commit if base else model.revision  # what was trained on, wherever it is now
    flags = ["--model", model.id, "--revision", revision]
    done = start("fetch-base", *flags, stderr=PIPE if as_json else None)
    if done.returncode == 0:
        return Path(done.stdout.strip())
    here = model.id.rpartition("/")[2]
    error = HostError if done.returncode == ExitCode.FAILED_IO else UsageError
    raise error(
        f"the base of `{folder.name}` is `{model.id}` on a hub, and was not fetched",
        problems=(done.stderr or "").strip().splitlines()[-LAST_LINES:],
        hint=f"`hf download {model.id} --revision {revision} --local-dir {here}`, then "
        f"`qft merge {folder.name} --base {here}`",
    )
