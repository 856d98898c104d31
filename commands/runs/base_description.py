"""Finds what a base says of itself, its `config.json`, among the files of this computer.

A plan also takes the sizes of the table of common bases where the file is not here, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.runs.config import LoadedConfig
from commands.runs.home import environment
from trainer.estimate.base_rows import CommonBase
from trainer.estimate.common_bases import find_by_id, find_common_base, similar_ids
from trainer.hub_models import cached_repository
from trainer.untrusted import NotPlain, parse

DESCRIPTION_BYTES_MAX = 16 << 20
WITHOUT_OWNER = ("openai-community/", "google-t5/")
"""Owners of the bases that the hub also gives by their bare names, such as `gpt2`."""


@dataclass(frozen=True, kw_only=True)
class TableBase:
    """The row of the table of common bases whose sizes a plan takes, and how it was found."""

    base: CommonBase
    model: str
    """The id that run.yaml gives."""

    @property
    def is_listed(self) -> bool:
        """Whether the table has that id itself, and not only a base that its name says."""
        return _listed(self.model) is not None

    @property
    def line(self) -> str:
        """What a page says of it."""
        sizes = f"the sizes of the shipped table ({self.base.billions:.3g} B parameters)"
        if self.is_listed:
            return f"base: `{self.model}` with {sizes}, since its config.json is not here"
        return (
            f"base: `{self.model}` is taken for `{self.base.id}` by its name, with {sizes}, since "
            "its config.json is not here"
        )


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


def config_for_plan(loaded: LoadedConfig) -> Mapping[str, Any] | None:
    """Return the base's config.json, or what the table of common bases has in its place; or None.

    Only an estimate may take it: what decides about a run is the file itself, see `described`.
    """
    found = described(loaded)
    if found is not None:
        return found
    row = table_base(loaded)
    return None if row is None else row.base.config


def table_base(loaded: LoadedConfig) -> TableBase | None:
    """Return the row of the table that stands for the base in a plan.

    None if its config.json is here, if it is a directory, or if the table has no such base.
    """
    model = loaded.config.model.id
    if loaded.model_folder is not None or described(loaded) is not None:
        return None
    base = _listed(model) or (find_common_base(model) if "/" in model else None)
    return None if base is None else TableBase(base=base, model=model)


def did_you_mean(model: str, *, after: str = "") -> str:
    """Return a question with the id of the table that was probably meant; empty if there is none.

    An id that the table has is what was meant. `after` goes before the question.
    """
    if _listed(model) is not None:
        return ""
    owner = model.partition("/")[0].lower()
    found = find_common_base(model) if "/" in model else find_by_id(model)
    if found is not None and "/" in model and not found.id.lower().startswith(f"{owner}/"):
        return ""  # somebody else's copy or variant of a common base
    near = [found.id] if found is not None and "/" not in model else similar_ids(model)
    return f"{after}did you mean `{near[0]}`?" if near else ""


def _listed(model: str) -> CommonBase | None:
    """Return the base of the table with exactly this hub id, in any case."""
    found = find_by_id(model)
    if found is None or "/" in model or found.id.startswith(WITHOUT_OWNER):
        return found
    return None
