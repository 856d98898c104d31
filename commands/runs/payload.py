"""What goes to the machine and where it lies there: trainer, data, base model, and the config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.runs.base_files import NEVER_LOADED, OLDER_WEIGHTS, has_newer
from commands.runs.config import LoadedConfig
from infra.durable import write_json


@dataclass(frozen=True, kw_only=True)
class Staged:
    """What to push; `model` is None when the base comes from a hub."""

    trainer: Path
    data: Mapping[str, Path]
    config: Path
    model: Path | None

    @property
    def left_out(self) -> tuple[str, ...]:
        """Patterns of what is not sent of the base: what nobody loads there."""
        if self.model is None:
            return ()
        return (*NEVER_LOADED, *OLDER_WEIGHTS * has_newer(self.model))

    def pushes(self, base: str) -> list[tuple[str, Path | Mapping[str, Path], str]]:
        """What to push, from where, to where; the config last, because it names the others."""
        every: list[tuple[str, Path | Mapping[str, Path], str]] = [
            ("code", self.trainer, f"{base}/code/trainer"),
        ]
        if self.data:  # nothing is sent of what the machine fetches from a hub
            every.append(("data", self.data, f"{base}/data"))
        if self.model is not None:
            every.append(("base model", self.model, f"{base}/model"))
        return [*every, ("config", {"config.json": self.config}, f"{base}/run")]


def stage(loaded: LoadedConfig, folder: Path, *, write: bool = True) -> Staged:
    """Gather what a run needs, and write its config with the paths that hold on the machine.

    Without `write` nothing is pushed from it: an onlooker must not touch what a driver pushes.
    """
    import trainer

    files = loaded.data_files
    names = {key: f"{key}{path.suffix.lower()}" for key, path in files.items()}
    config = folder / "config.json"
    if write:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(config, machine_tables(loaded, names))
    return Staged(
        trainer=Path(trainer.__file__).parent,
        data={names[key]: path for key, path in files.items()},
        config=config,
        model=loaded.model_folder,
    )


def machine_tables(loaded: LoadedConfig, names: dict[str, str]) -> dict[str, Any]:
    """The trainer's tables with paths as the machine has them, relative to the run directory."""
    tables = loaded.config.trainer_tables
    data = {**tables["data"], **{key: f"../data/{name}" for key, name in names.items()}}
    model = tables["model"]
    if loaded.model_folder is not None:
        model = {**model, "id": "../model"}
    return {**tables, "data": data, "model": model}
