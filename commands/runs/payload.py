"""What goes to the machine and where it lies there: trainer, data, base model, and the config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from commands.runs.base_files import NEVER_LOADED, OLDER_WEIGHTS, has_newer
from commands.runs.base_record import HubBase
from commands.runs.config import LoadedConfig
from commands.runs.parent_adapter import kept_parent
from infra.durable import write_json

GENERAL = "eval.general"
"""The key of the file that is no file of rows to learn from or to score."""


@dataclass(frozen=True, kw_only=True)
class PayloadItem:
    """One tree of files to push, and how; the label is for people and decides nothing."""

    label: str
    source: Path | Mapping[str, Path]
    """A directory, or files by the path that they get below `target`."""
    target: str
    """The directory on the machine, relative to the home of its user."""
    exclude: tuple[str, ...] = ()
    """Patterns of files that are not sent."""
    exact: bool = False
    """Whether files that only the machine has are removed from `target`, a directory."""


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What to push; `model` is None when the machine fetches the base from a hub."""

    trainer: Path
    data: Mapping[str, Path]
    config: Path
    model: Path | None
    parent: Path | None = None
    """The adapter that the run goes on from; None if it begins with a fresh one."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Patterns of what is not sent of the base: what nobody loads there."""
        if self.model is None:
            return ()
        return (*NEVER_LOADED, *OLDER_WEIGHTS * has_newer(self.model))

    @property
    def large_folders(self) -> tuple[str, ...]:
        """The folders below the run's own there that may hold gigabytes."""
        return ("data",) * bool(self.data) + ("model",) * (self.model is not None)

    def items(self, base: str) -> list[PayloadItem]:
        """List what to push below `base` there; the config last, because it names the others."""
        items = [
            PayloadItem(
                label="code", source=self.trainer, target=f"{base}/code/trainer", exact=True
            )
        ]
        if self.data:  # nothing is sent of what the machine fetches from a hub
            items.append(PayloadItem(label="data", source=self.data, target=f"{base}/data"))
        if self.model is not None:
            model = PayloadItem(
                label="base model",
                source=self.model,
                target=f"{base}/model",
                exclude=self.left_out,
                exact=True,
            )
            items.append(model)
        if self.parent is not None:
            items.append(
                PayloadItem(
                    label="parent adapter", source=self.parent, target=f"{base}/parent", exact=True
                )
            )
        # Not exact: the trainer's checkpoints and results lie beside the config.
        config = {"config.json": self.config}
        items.append(PayloadItem(label="config", source=config, target=f"{base}/run"))
        return items


def build_payload(
    loaded: LoadedConfig,
    folder: Path,
    *,
    write: bool = True,
    base: HubBase | None = None,
    day: date | None = None,
) -> Payload:
    """Gather what a run needs, and write its config with the paths that hold on the machine.

    `base` is what is recorded of a base on a hub: one that lies here is sent like a directory.
    `day` is that on which the run began, which chat templates see there from then on. Without
    `write` nothing is pushed from it: an onlooker must not touch what a driver pushes.
    """
    import trainer

    files = loaded.data_files
    names = {key: f"{key.replace('.', '-')}{_ending(path)}" for key, path in files.items()}
    general = loaded.general_file
    if general is not None:
        files, names = {**files, GENERAL: general}, {**names, GENERAL: f"general{_ending(general)}"}
    config = folder / "config.json"
    if write:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(config, machine_tables(loaded, names, base, day=day))
    return Payload(
        trainer=Path(trainer.__file__).parent,
        data={names[key]: path for key, path in files.items()},
        config=config,
        model=_model_here(loaded, base),
        parent=kept_parent(folder) if loaded.config.method.parent else None,
    )


def _ending(path: Path) -> str:
    """Return what says in a file's name of which format it is, `.jsonl.gz` included."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def _model_here(loaded: LoadedConfig, base: HubBase | None) -> Path | None:
    """The directory here that is sent as the base, if one is."""
    return loaded.model_folder or (base.folder if base else None)


def machine_tables(
    loaded: LoadedConfig,
    names: dict[str, str],
    base: HubBase | None = None,
    *,
    day: date | None = None,
) -> dict[str, Any]:
    """The trainer's tables with paths as the machine has them, relative to the run directory."""
    tables = loaded.config.trainer_tables
    data = _data_there(tables["data"], {key: f"../data/{name}" for key, name in names.items()})
    if day is not None:
        data["day"] = day.isoformat()
    model = {key: value for key, value in tables["model"].items() if key != "token_env"}
    if _model_here(loaded, base) is not None:
        model["id"] = "../model"
    elif base is not None:
        model["revision"] = base.commit
    method = tables["method"]
    if loaded.config.method.parent is not None:
        method = {**method, "from": "../parent"}
    found = {**tables, "data": data, "model": model, "method": method}
    if GENERAL in names:
        found["eval"] = {**tables["eval"], "general": f"../data/{names[GENERAL]}"}
    return found


def _data_there(table: dict[str, Any], there: dict[str, str]) -> dict[str, Any]:
    """The table `data` with every file that was sent under its name on the machine."""
    data = {**table, **{key: name for key, name in there.items() if key == "eval"}}
    if isinstance(table["train"], str):
        return {**data, "train": there.get("train", table["train"])}
    alone = there.get("train")  # one file in a list, of weight 1
    data["train"] = [
        {**one, "path": there.get(f"train.{at}", alone or one["path"])}
        for at, one in enumerate(table["train"])
    ]
    return data
