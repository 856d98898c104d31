"""Will it fit, and how long will it take: asked before a machine is rented, or this one is busy."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from commands.runs.config import LoadedConfig
from commands.runs.home import environment
from infra.catalog.gpus import resolve_gpu
from trainer.config import PrecisionChoice, TrainerConfig
from trainer.data.rows import Row, stream_rows
from trainer.data.template import MissingFieldError, Template, TemplateError
from trainer.device.gpus import GPUS, TrainingGpu
from trainer.device.memory import estimate_training
from trainer.device.shapes import UnknownShapeError
from trainer.errors import DataError
from trainer.text import MINUTE_S, duration
from trainer.untrusted import NotPlain, parse

CORE_FLOPS = 3e10
"""Per second and core, in float32: what SmolLM2-135M reaches on two shared cores
(docs/benchmarks.md); others differ by more than the factor that is told."""
BYTES_PER_TOKEN = 4
"""Of English prose, with the tokenizers of today's models; code and other scripts take fewer."""
ROWS_LOOKED_AT = 500
DESCRIPTION_BYTES_MAX = 16 << 20
DRIVER = Path("/proc/driver/nvidia/version")


def estimate_run(loaded: LoadedConfig) -> dict[str, Any] | None:
    """Memory and time on the card that is named; None if it or the base is unknown.

    From the base's own description, the catalog and the first rows. The keys are those of
    `trainer.device.memory.estimate_training`, and `usual_tokens`, of a row.
    """
    gpu = loaded.config.vm.gpu
    card = GPUS.get(resolve_gpu(gpu).gpu.name) if gpu else None
    return None if card is None else _estimate(loaded, _tables(loaded), card)


def estimate_local_run(loaded: LoadedConfig) -> dict[str, Any] | None:
    """The same on the processor of this computer; None if the base is unknown.

    `gpu_bytes` is the memory that is free now. All rows of a batch are done at once here.
    """
    import psutil

    tables = _tables(loaded)
    if tables.train.micro_batch == "auto":
        train = tables.train.model_copy(update={"micro_batch": tables.train.batch_size})
        tables = tables.model_copy(update={"train": train})
    here = TrainingGpu(
        name="this computer",
        memory_bytes=float(psutil.virtual_memory().available),
        precision=PrecisionChoice.FP32,
        flops=cores(loaded) * CORE_FLOPS,
    )
    return _estimate(loaded, tables, here)


def warn_before_renting(loaded: LoadedConfig, on_message: Callable[[str], None]) -> None:
    """Tell what the user should know before anything is rented: which card, and will it fit."""
    vm = loaded.config.vm
    if vm.provider == "ssh":  # which card it has, set-up sees
        return
    if note := resolve_gpu(vm.gpu).note if vm.gpu else "":
        on_message(f"note: {note}")
    estimate = estimate_run(loaded)
    if estimate is not None and not estimate["fits"] and vm.provider != "local":
        on_message(f"warning: {estimate_line(estimate)}")


def has_card() -> bool:
    """Whether this computer has a card that a rehearsal would train on instead, as far as known."""
    return DRIVER.exists()


def cores(loaded: LoadedConfig) -> int:
    """How many threads a training here would compute with."""
    wanted = loaded.config.train.threads
    if wanted != "auto":
        return wanted
    threads = environment().get("OMP_NUM_THREADS", "")
    return int(threads) if threads.isdecimal() and int(threads) else os.cpu_count() or 1


def cached(model: str, revision: str, env: Mapping[str, str]) -> Path | None:
    """Where the hub's library keeps what it fetched of a base, None if its config is not there.

    Only files are looked at, in the library's own layout, so a plan asks no network.
    """
    top = env.get("XDG_CACHE_HOME") or "~/.cache"
    home = env.get("HF_HOME") or f"{top}/huggingface"
    cache = Path(env.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
    repo = cache / f"models--{model.replace('/', '--')}"
    try:
        commit = (repo / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    folder = repo / "snapshots" / commit
    return folder if (folder / "config.json").is_file() else None


def estimate_line(estimate: dict[str, Any] | None) -> str:
    """The forecast in one line."""
    if estimate is None:
        there = "the base's config.json lies here (`hf download` brings it)"
        return f"memory and time: unknown until {there}"
    memory = (
        f"{estimate['memory_bytes']['reserved'] / 1e9:.1f} of {estimate['gpu_bytes'] / 1e9:.1f} GB"
    )
    if not estimate["fits"]:
        return f"memory: does NOT fit a {estimate['gpu']}, {memory}; shorten rows or choose another"
    rows = f"{estimate['micro_batch']} rows at once"
    return f"memory: {memory} of a {estimate['gpu']}, {rows}{_time(estimate)}"


def local_estimate_line(estimate: dict[str, Any] | None, *, threads: int, card: bool) -> str:
    """What the rehearsal itself will need, in one line."""
    if card:
        return "here: this computer trains, on its own NVIDIA card if torch can use it"
    trains = f"here: this computer trains, on {threads} core{'s' * (threads > 1)}"
    if estimate is None:
        return f"{trains}, for as long as that takes"
    need, free = estimate["memory_bytes"]["reserved"] / 1e9, estimate["gpu_bytes"] / 1e9
    if not estimate["fits"]:
        short = f"{need:.1f} GB needed, {free:.1f} GB free"
        return f"{trains}: does NOT fit, {short}; rehearse with a smaller model or shorter rows"
    return f"{trains}: {need:.1f} of {free:.1f} GB that are free{_time(estimate)}"


def _time(estimate: dict[str, Any]) -> str:
    if estimate["hours"] is None:
        return ""
    seconds = estimate["hours"] * 3600
    how_long = "less than a minute" if seconds < MINUTE_S else duration(seconds)
    return f"; {how_long}, within a factor of three"


def _tables(loaded: LoadedConfig) -> TrainerConfig:
    return TrainerConfig.model_validate(loaded.config.trainer_tables)


def described(loaded: LoadedConfig) -> dict[str, Any] | None:
    """Return the base's own description, its config.json; None if it is not here or is none."""
    model = loaded.config.model
    folder = loaded.model_folder or cached(model.id, model.revision, environment())
    if folder is None:
        return None
    try:
        found = parse((folder / "config.json").read_bytes(), bytes_max=DESCRIPTION_BYTES_MAX)
    except (OSError, NotPlain):
        return None
    return found if isinstance(found, dict) else None


def _estimate(
    loaded: LoadedConfig, tables: TrainerConfig, gpu: TrainingGpu
) -> dict[str, Any] | None:
    model = described(loaded)
    if model is None:
        return None
    try:
        estimate = estimate_training(tables, model, gpu=gpu)
        usual = _usual_tokens(loaded) or tables.train.max_length
        step_s = estimate_training(tables, model, gpu=gpu, lengths=[usual])["step_seconds"]
    except (ValueError, UnknownShapeError):
        return None
    hours = None if estimate["steps"] is None else estimate["steps"] * step_s / 3600
    return {**estimate, "usual_tokens": usual, "step_seconds": step_s, "hours": hours}


def _usual_tokens(loaded: LoadedConfig) -> int | None:
    """About how many tokens a row has, by the bytes of the first ones; None if that is unknown.

    Only time is foretold from it: memory depends on the longest row, which may be any.
    """
    files = [path for key, path in loaded.data_files.items() if key != "eval"]
    if not files:  # on a hub
        return None
    each = -(-ROWS_LOOKED_AT // len(files))
    try:
        rows = [row for file in files for row in islice(stream_rows(file, []), each)]
        total = sum(len(_row_text(loaded, row).encode()) for row in rows)
    except (DataError, MissingFieldError, TemplateError):  # `check_data_and_model` tells of it
        return None
    usual = round(total / max(1, len(rows)) / BYTES_PER_TOKEN)
    return max(1, min(loaded.config.train.max_length, usual))


def _row_text(loaded: LoadedConfig, row: Row) -> str:
    table = loaded.config.data
    if table.messages is not None:
        turns = Template.parse("{" + table.messages + "}").value(row.fields)
        return "".join(str(turn["content"]) for turn in turns) if isinstance(turns, list) else ""
    if table.text is not None:
        return str(Template.parse("{" + table.text + "}").value(row.fields))
    texts = (table.prompt, table.completion)
    return "".join(Template.parse(text).render(row.fields) for text in texts)
