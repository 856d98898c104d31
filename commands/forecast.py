"""Will it fit the card, and how long will it take: asked before a machine is rented."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commands.config import LoadedConfig
from commands.home import environment
from infra.catalog import resolve_gpu
from trainer.config import TrainerConfig
from trainer.device.memory import GPUS, foretell
from trainer.device.shapes import UnknownShapeError
from trainer.words import duration


def forecast(loaded: LoadedConfig) -> dict[str, Any] | None:
    """Memory and time from the base's own description and the catalog; None if one is unknown.

    The keys are those of `trainer.device.memory.foretell`.
    """
    model, gpu = loaded.config.model, loaded.config.vm.gpu
    folder = loaded.model_folder or cached(model.id, model.revision, environment())
    if folder is None or not gpu:
        return None
    known = GPUS.get(resolve_gpu(gpu).gpu.name)
    if known is None:
        return None
    tables = TrainerConfig.model_validate(loaded.config.trainer_tables)
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return foretell(tables, described, gpu=known)
    except (OSError, ValueError, UnknownShapeError):
        return None


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


def forecast_line(told: dict[str, Any] | None) -> str:
    """The forecast in one line."""
    if told is None:
        there = "the base's config.json lies here (`hf download` brings it)"
        return f"memory and time: unknown until {there}"
    memory = f"{told['memory_bytes']['reserved'] / 1e9:.1f} of {told['gpu_bytes'] / 1e9:.1f} GB"
    if not told["fits"]:
        return f"memory: does NOT fit a {told['gpu']}, {memory}; shorten rows or choose another"
    hours = told["hours"]
    how_long = "" if hours is None else f"; {duration(hours * 3600)}, within a factor of three"
    return f"memory: {memory} of a {told['gpu']}, {told['micro_batch']} rows at once{how_long}"
