"""Finds what a base says of itself, its `config.json`, among the files of this computer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commands.runs.config import LoadedConfig
from commands.runs.home import environment
from trainer.hub_models import cached_repository
from trainer.untrusted import NotPlain, parse

DESCRIPTION_BYTES_MAX = 16 << 20


def cached(model: str, revision: str, env: Mapping[str, str]) -> Path | None:
    """Where the hub's library keeps what it fetched of a base, None if its config is not there.

    Only files are looked at, in the library's own layout, so a plan asks no network.
    """
    repo = cached_repository(model, env)
    try:
        commit = (repo / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    folder = repo / "snapshots" / commit
    return folder if (folder / "config.json").is_file() else None


def base_folder(loaded: LoadedConfig) -> Path | None:
    """Return where the base's config and tokenizer lie on this computer, None if they do not."""
    model = loaded.config.model
    return loaded.model_folder or cached(model.id, model.revision, environment())


def described(loaded: LoadedConfig) -> dict[str, Any] | None:
    """Return the base's own description, its config.json; None if it is not here or is none."""
    folder = base_folder(loaded)
    if folder is None:
        return None
    try:
        found = parse((folder / "config.json").read_bytes(), bytes_max=DESCRIPTION_BYTES_MAX)
    except (OSError, NotPlain):
        return None
    return found if isinstance(found, dict) else None
