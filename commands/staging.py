"""What goes to the machine, laid out on this computer first: trainer, config, data, base model."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.config import LoadedConfig
from infra.durable import write_json


@dataclass(frozen=True, kw_only=True)
class Staged:
    """Folders to push; `model` is None when the base comes from a hub."""

    trainer: Path
    data: Path
    config: Path
    model: Path | None

    def pushes(self, base: str) -> list[tuple[str, Path, str]]:
        """What to push, from where, to where; the config last, because it names the others."""
        every = [
            ("code", self.trainer, f"{base}/code/trainer"),
            ("data", self.data, f"{base}/data"),
        ]
        if self.model is not None:
            every.append(("base model", self.model, f"{base}/model"))
        return [*every, ("config", self.config, f"{base}/run")]


def stage(loaded: LoadedConfig, folder: Path) -> Staged:
    """Lay out what a run needs under `folder`, with the paths that hold on the machine.

    Data files are linked where the file system allows it, and copied otherwise.
    """
    import trainer

    data, config = folder / "data", folder / "run"
    for place in (data, config):
        place.mkdir(parents=True, exist_ok=True)
    names: dict[str, str] = {}
    for key, source in loaded.data_files.items():
        names[key] = f"{key}{source.suffix.lower()}"
        _link(source, data / names[key])
    tables = machine_tables(loaded, names)
    write_json(config / "config.json", tables)
    return Staged(
        trainer=Path(trainer.__file__).parent,
        data=data,
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


def _link(source: Path, target: Path) -> None:
    """Put `source` at `target`, whole or not at all."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, temporary)
    temporary.replace(target)
