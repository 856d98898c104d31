"""Reads the adapter that a training goes on from, and takes rank, scale, layers and kind of it.

It may be anybody's: nothing in it is code, and only safetensors are read. This file needs no torch,
so a laptop refuses what a machine would refuse.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.adapters.settings import (
    BYTES_MAX,
    CONFIG,
    RANK_MAX,
    RANKS,
    TENSORS,
    AdapterSettings,
    read_foreign_settings,
)
from trainer.config_errors import describe_errors
from trainer.errors import ConfigError
from trainer.hub import is_hub_id
from trainer.method_table import MethodKind, MethodTable
from trainer.untrusted import NotPlain, parse, table, text, whole

RECEIPT = "qft.json"
WHOLE = "ranks.safetensors"
COEFFICIENTS = "nola.json"
PICKLED = "adapter_model.bin"
FILES = (CONFIG, TENSORS, RANKS, WHOLE, RECEIPT)
"""The files that are read of an adapter, and travel to a machine; it has the last three only if it
was trained here."""
OPTIMIZER_IS_NEW = "its weights are the start, the optimizer begins anew"


@dataclass(frozen=True, kw_only=True)
class ParentAdapter:
    """An adapter to go on from, with every setting checked."""

    directory: Path
    settings: AdapterSettings
    rank: int
    kind: MethodKind
    """Without a word about the base, unless the adapter tells how that was kept."""
    kept: Mapping[str, Any]
    """`quant` and `double_quant` of the training, as far as the adapter tells."""
    base: str | None
    """The SHA-256 or the commit of the base it was trained on; None if it does not tell."""

    @property
    def tensors(self) -> Path:
        """The file of the matrices that are trained further: those of every rank, if it has any."""
        every_rank = self.directory / WHOLE
        return every_rank if self.kind.dylora else self.directory / TENSORS


def find_parent(method: MethodTable, run_dir: Path) -> Path | None:
    """Return the directory that `method.from` names, from `run_dir` on; None if there is no such.

    Raises:
        ConfigError: it names a directory that is not there.
    """
    if method.parent is None:
        return None
    directory = (run_dir / Path(method.parent).expanduser()).resolve()
    if not directory.is_dir():
        raise ConfigError([f"method.from: there is no directory {directory}"])
    return directory


def read_parent(directory: Path) -> ParentAdapter:
    """Return the adapter in `directory`, checked.

    Raises:
        ConfigError: there is none, or it cannot be trained further here; the message names the
            file and the setting.
    """
    if (directory / COEFFICIENTS).is_file():
        raise ConfigError(
            f"method.from: {directory} is a NOLA adapter, whose matrices are no numbers that "
            "could be trained further; `qft export` makes a plain LoRA adapter of it"
        )
    try:
        settings = read_foreign_settings(directory)
    except ConfigError as error:
        raise ConfigError([f"method.from: {problem}" for problem in error.problems]) from error
    receipt = _json_table(directory / RECEIPT)
    kind, rank = _kind(settings), settings.r
    if (directory / RANKS).is_file():
        kind = MethodKind.DYLORA
        rank = whole(_json_table(directory / RANKS).get("r"), most=RANK_MAX) or 0
        if not rank:
            raise ConfigError([f"method.from: {directory / RANKS} tells no rank"])
    trained = table(receipt.get("training"))
    recorded = trained.get("method.kind")
    if recorded in set(MethodKind) and MethodKind(str(recorded)).on_any_base is kind:
        kind = MethodKind(str(recorded))
    parent = ParentAdapter(
        directory=directory,
        settings=settings,
        rank=rank,
        kind=kind,
        kept={
            name: trained[f"method.{name}"]
            for name in ("quant", "double_quant")
            if f"method.{name}" in trained
        },
        base=text(table(receipt.get("base")).get("base.model"), most=100),
    )
    if not parent.tensors.is_file():
        pickled = (directory / PICKLED).is_file()
        reason = f"; {PICKLED} is a pickle, which is never read: save it as safetensors" * pickled
        raise ConfigError([f"method.from: {directory} has no {parent.tensors.name}{reason}"])
    return parent


def inherit(method: MethodTable, parent: ParentAdapter) -> MethodTable:
    """Return `method` with what the parent decides: rank, alpha, layers, kind, kept base.

    Raises:
        ConfigError: a value that was given is another one than the parent's; each is named with
            both values.
    """
    given = {name: getattr(method, name) for name in method.model_fields_set - {"parent"}}
    own: dict[str, Any] = {
        "r": parent.rank,
        **({} if parent.settings.miss else {"alpha": parent.settings.lora_alpha}),
        "targets": sorted(
            {
                *parent.settings.target_modules,
                *(name.rpartition(".")[2] for name in parent.settings.target_parameters),
            }
        ),
        "save": sorted(parent.settings.modules_to_save),
    }
    problems = [
        f"method.{name}: {_shown(given[name])} is given, and the adapter in `method.from` has "
        f"{_shown(value)}"
        for name, value in own.items()
        if name in given and not _agrees(name, given[name], value, parent.settings)
    ]
    kind = given.get("kind", parent.kind if parent.kept else _usual(parent.kind))
    if kind.on_any_base is not parent.kind.on_any_base:
        problems.append(
            f"method.kind: {kind} is given, and the adapter in `method.from` is {parent.kind}"
        )
    if problems:
        raise ConfigError([f"{one}; leave it out, or train anew" for one in problems])
    if given.get("targets") == "all-linear":
        own["targets"] = "all-linear"  # which layers these are, the base tells
    kept = {} if given.keys() & {"kind", "quant"} else parent.kept
    try:
        return MethodTable.model_validate(
            {"from": method.parent, **kept, **given, **own, "kind": kind}
        )
    except ValidationError as error:
        raise ConfigError([f"method: {one}" for one in describe_errors(error, MethodTable)]) from (
            error
        )


def adapted_layers(parent: ParentAdapter, linears: Iterable[str], *, every: bool) -> list[str]:
    """Return the layers that the adapter is on, by the names that it has for PEFT, sorted.

    Raises:
        ConfigError: `every` one of the base's `linears` was asked for, and it has fewer.
    """
    adapted = sorted(parent.settings.target_modules)
    lacking = {
        name.rpartition(".")[2]
        for name in linears
        if not any(name == one or name.endswith(f".{one}") for one in adapted)
    }
    if every and lacking:
        raise ConfigError(
            "method.targets: all-linear is given, and the adapter in `method.from` has "
            f"{', '.join(adapted)}, without {', '.join(sorted(lacking))}; leave `targets` out, or "
            "train anew"
        )
    return adapted


def require_base_named(parent: ParentAdapter, model: str) -> None:
    """Raise `ConfigError` if the adapter names another base of a hub than `model`.

    Only names of a hub can be compared: a path says nothing about what is there.
    """
    named = parent.settings.base_model_name_or_path or ""
    on_hub = all("/" in one and is_hub_id(one) for one in (named, model))
    if not on_hub or named.casefold() == model.casefold():
        return
    raise ConfigError(
        f"method.from: the adapter was trained on `{named}`, and `model.id` is `{model}`; if both "
        f"are the same weights, correct `base_model_name_or_path` in its {CONFIG}"
    )


def compare_base(parent: ParentAdapter, identity: str) -> str:
    """Say whether the base, of this SHA-256 or commit, is the one that the adapter was trained on.

    Raises:
        ConfigError: it is another one.
    """
    if parent.base == identity:
        return "it was trained on this very base"
    if parent.base is not None and len(parent.base) == len(identity):
        raise ConfigError(
            f"method.from: the adapter was trained on another base ({parent.base[:12]}…) than "
            f"`model.id` names ({identity[:12]}…); if the weights are the same, remove `base` from "
            f"its {RECEIPT}"
        )
    named = parent.settings.base_model_name_or_path
    return f"whether it was trained on this base is not known (it names {named or 'none'})"


def adapter_sha256(directory: Path) -> str:
    """Return one SHA-256 over the files of the adapter that are read; raises `OSError`."""
    total = hashlib.sha256()
    for name in sorted(FILES):
        if name != RECEIPT and (directory / name).is_file():
            with (directory / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{name}\0{digest}\n".encode())
    return total.hexdigest()


def _kind(settings: AdapterSettings) -> MethodKind:
    """Return the kind that PEFT's settings tell of; how the base is kept is not in them."""
    if settings.miss:
        return MethodKind.MISS
    if settings.use_dora:
        return MethodKind.DORA
    return MethodKind.RSLORA if settings.use_rslora else MethodKind.LORA


def _usual(kind: MethodKind) -> MethodKind:
    """Return the quantised kind where there is one, as the default of `method.kind` is."""
    return next((one for one in MethodKind if one == f"q{kind}"), kind)


def _agrees(name: str, given: Any, own: Any, settings: AdapterSettings) -> bool:
    """Tell whether a given value is the adapter's own.

    Layers to save may have shorter names, and one of two that are tied may be given alone.
    """
    if given == "all-linear":
        return True
    if name == "save":
        wanted, there = ({one.rpartition(".")[2] for one in names} for names in (given, own))
        return wanted == there or (settings.ensure_weight_tying and set() < wanted < there)
    same = sorted(given) == own if isinstance(given, list | tuple) else given == own
    return bool(same)


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}"


def _json_table(path: Path) -> dict[str, Any]:
    """Return a JSON table, empty if there is none or it cannot be read."""
    try:
        return table(parse(path.read_bytes(), bytes_max=BYTES_MAX))
    except (OSError, NotPlain):
        return {}
