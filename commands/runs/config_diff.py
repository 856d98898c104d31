"""What training would do differently from what a run was started with, and what of it may be."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from commands.runs.config import TRAINER_TABLES, LoadedConfig, RunConfig
from commands.runs.home import RunFolder, read_saved_config
from commands.ui.errors import UsageError
from infra.run.fold import fold
from infra.run.journal import Kind, read
from infra.run.state import RunState
from trainer.errors import ConfigError
from trainer.rundir.fingerprint import file_sha256, permitted_keys

PLACES = ("model.id", "model.revision")
"""Where a base lies is no setting: the trainer compares what is in it, and knows no such key."""


def digests(loaded: LoadedConfig) -> dict[str, str]:
    """Return the SHA-256 of every data file on this computer, by its key; raise OSError."""
    files = {f"data.{key}": path for key, path in loaded.data_files.items()}
    if loaded.general_file is not None:
        files["eval.general"] = loaded.general_file
    return {key: file_sha256(path) for key, path in files.items()}


def keys_for_trainer(allowed: Sequence[str]) -> tuple[str, ...]:
    """Return those of the allowed keys that the trainer has to be told of.

    Raises UsageError, before anything is stopped or sent, if one may never change within a run.
    """
    keys = tuple(key for key in allowed if key not in PLACES and key.split(".")[0] != "checkpoint")
    try:
        permitted_keys(keys)
    except ConfigError as error:
        raise UsageError(
            "`--allow-change` names what no run can change; nothing was stopped or sent",
            problems=[problem.removeprefix("--allow-change ") for problem in error.problems],
            hint="undo that change, choose another `name`, or `--fresh`",
        ) from error
    return keys


def is_bound(state: RunState) -> bool:
    """Whether a machine was made ready for a config, or trained by it, so that it binds.

    A job may have worked unseen on a machine where it was ever launched; once that is gone, only
    what was seen of it counts. A start that failed binds nothing.
    """
    worked = max(state.step, state.disk_step, state.home_step) > 0
    unseen = state.vm is not None and (state.prepared or state.launches > 0)
    began = state.pending is Kind.LAUNCH_INTENDED
    return worked or unseen or began or state.trained or bool(state.fetched)


def require_same_machine(
    loaded: LoadedConfig, saved: Mapping[str, object], state: RunState
) -> None:
    """Raise UsageError if run.yaml names another place while the run has a machine in the old one.

    Whoever is asked there would not know it, and it would be forgotten and bill. Cards and how
    many, regions, price, disk and budget may change at any time: they hold for the next machine or
    start.
    """
    if state.vm is None and state.pending is not Kind.CREATE_INTENDED:
        return
    config = saved.get("config")
    before = config.get("vm") if isinstance(config, dict) else None
    was = before if isinstance(before, dict) else {}
    now = loaded.config.vm.model_dump(mode="json")
    provider = _provider_of(state)
    found = [
        f"vm.{key}: {_at(was, key)!r} became {_at(now, key)!r}"
        for key in ("provider", "azure.subscription", "aws.profile", "ssh.host", "ssh.user")
        if was and _at(was, key) != _at(now, key) and _matters(key, was, now, provider)
    ]
    if found:
        name = loaded.config.name
        raise UsageError(
            f"the run `{name}` still has a machine, and not where run.yaml says now",
            problems=found,
            hint=f"`qft down --delete {name}` brings its work home and removes it; "
            f"then `qft run {name}` goes on with the new one",
        )


def _at(table: Mapping[str, Any], path: str) -> object:
    """The value at `table.key`; empty if there is none."""
    value: object = table
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value or ""


def _provider_of(state: RunState) -> str:
    """Return which provider has the machine, or was asked for it; empty if nobody knows."""
    place = state.vm or state.offer
    return "" if place is None else place.provider


def _matters(key: str, was: Mapping[str, Any], now: Mapping[str, Any], provider: str) -> bool:
    """Whether a key is of the provider that has the machine; one of another changes nothing.

    Of several providers that one must still be listed, whatever became of the others.
    """
    owner = key.partition(".")[0]
    listed = _names(now.get("provider"))
    if owner == "provider":
        return (provider or _names(was.get("provider"))[0]) not in listed
    return owner in _names(was.get("provider")) and owner in listed and provider in {"", owner}


def _names(provider: object) -> list[object]:
    return provider if isinstance(provider, list) else [provider]


def changes(
    loaded: LoadedConfig,
    saved: Mapping[str, object],
    allowed: Sequence[str],
    *,
    bound: bool = True,
) -> dict[str, tuple[object, object]]:
    """What training would do differently from what the run was started with.

    Machine and budget may change freely, and so may the places of files with the same rows; and
    everything, as long as the run is not `bound` by what it has trained. Raises UsageError, with
    the difference, for a change of the training itself that was not allowed: half a run of each
    would be no experiment.
    """
    before = saved.get("config")
    if not isinstance(before, dict):
        return {}
    with contextlib.suppress(ValidationError):  # a later qft has more fields: with their defaults
        before = RunConfig.model_validate(before).model_dump(mode="json")
    now = loaded.config.model_dump(mode="json")
    found: dict[str, tuple[object, object]] = {}
    method = loaded.config.method
    # What the adapter in `method.from` decides is in the saved config, and need not be in run.yaml.
    inherited = {*type(method).model_fields} - method.model_fields_set if method.parent else set()
    for table in TRAINER_TABLES:
        was, is_now = before.get(table) or {}, now.get(table) or {}
        for key in sorted({*was, *is_now}):
            if was.get(key) != is_now.get(key) and not (table == "method" and key in inherited):
                found[f"{table}.{key}"] = (was.get(key), is_now.get(key))
    found.pop("data.day", None)  # the trainer compares tokens: it counts where a template shows it
    found.pop("model.token_env", None)  # who fetches the base decides nothing of the training
    found.pop("train.samples", None)  # nor does what is shown of it
    found = _judged_by_content(found, loaded, saved)
    refused = {key: pair for key, pair in found.items() if not _is_allowed(key, allowed)}
    if refused and bound:
        never = {key: " (this can never change)" * _is_for_ever(key) for key in refused}
        allow = "" if all(never.values()) else "use `--allow-change KEY`, "
        raise UsageError(
            f"the run `{loaded.config.name}` was started with another config",
            problems=[
                f"{key}: {was!r} became {is_now!r}{never[key]}"
                for key, (was, is_now) in refused.items()
            ],
            hint=f"undo the change, {allow}choose another `name`, or `--fresh`",
        )
    return found


def _is_for_ever(key: str) -> bool:
    try:
        keys_for_trainer([key])
    except UsageError:
        return True
    return False


def is_changed(loaded: LoadedConfig, folder: RunFolder) -> bool:
    """Whether training would do anything differently from what the run was started with."""
    try:
        bound = is_bound(fold(read(folder.journal)))
        return bool(changes(loaded, read_saved_config(folder), (), bound=bound))
    except UsageError:
        return True


def _judged_by_content(
    found: Mapping[str, tuple[object, object]], loaded: LoadedConfig, saved: Mapping[str, object]
) -> dict[str, tuple[object, object]]:
    """The changes with every data file judged by its rows, and a base by the place of its folder.

    Rows that were edited under the same name are a change, and a new name for the same is none.
    """
    judged = dict(found)
    saved_rows = saved.get("rows")
    rows = saved_rows if isinstance(saved_rows, dict) else {}
    for key, digest in (digests(loaded) if rows else {}).items():
        if key not in rows:
            continue
        if rows[key] == digest:
            judged.pop(key, None)
        else:
            name = loaded.config.data.files.get(key.removeprefix("data."), loaded.general_file)
            was = found.get(key, (name, name))[0]
            judged[key] = (_rows_in(was, str(rows[key])), _rows_in(name, digest))
    if "data.train" in judged and rows:
        was, is_now = judged["data.train"]
        if _sets(was, rows) == _sets(is_now, digests(loaded)):
            del judged["data.train"]
    if "model.id" in judged and _is_one_place(loaded, saved, *judged["model.id"]):
        del judged["model.id"]
    return judged


def _sets(train: object, hashes: Mapping[str, object]) -> object:
    """Describe the data sets of `data.train` by contents and weights; a hub's by their names."""
    if not isinstance(train, list):
        return train
    return [
        (hashes.get(f"data.train.{at}", one.get("path")), one.get("weight"))
        for at, one in enumerate(train)
        if isinstance(one, dict)
    ]


def _rows_in(name: object, digest: str) -> str:
    return f"{name} (sha256 {digest[:12]})"


def _is_one_place(
    loaded: LoadedConfig, saved: Mapping[str, object], was: object, is_now: object
) -> bool:
    """Whether two spellings name one directory, each seen from the folder of its run.yaml."""
    if loaded.model_folder is None:
        return False
    first = Path(str(saved.get("path"))).parent / Path(str(was)).expanduser()
    return first.resolve() == (loaded.folder / Path(str(is_now)).expanduser()).resolve()


def _is_allowed(key: str, allowed: Sequence[str]) -> bool:
    table, _, field = key.partition(".")
    return table == "checkpoint" or any(name in {key, table, field} for name in allowed)


def remembered(saved: Mapping[str, Any], allowed: Sequence[str]) -> tuple[str, ...]:
    """The keys that were ever allowed to change: the newest checkpoint may be older than that."""
    before = saved.get("allowed")
    saved_rows = [key for key in before if isinstance(key, str)] if isinstance(before, list) else []
    return tuple(sorted({*saved_rows, *allowed}))
