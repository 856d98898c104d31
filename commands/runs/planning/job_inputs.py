"""Gathers what decides how long a job takes, whatever the card: base, rows, settings, bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commands.runs import base_files
from commands.runs.base_description import base_folder, config_for_plan, did_you_mean
from commands.runs.base_shape import base_shape
from commands.runs.config import LoadedConfig
from commands.runs.home import environment, qft_home
from commands.runs.hub_base import HubAnswer
from commands.runs.planning.row_lengths import RowLengths, row_lengths
from commands.runs.upload_rate import UploadRate, last_upload, upload_file
from trainer.config import PrecisionChoice, TrainerConfig
from trainer.device.shapes import Shape, UnknownShapeError
from trainer.estimate.host import WeightFile, host_bytes_needed
from trainer.estimate.setup import BYTES
from trainer.estimate.training import setup_of
from trainer.estimate.weights import adapter_parameters
from trainer.job.weight_files import weight_files
from trainer.method_table import Quant

CODE_BYTES = 2e6
"""The trainer itself, which travels to every machine."""
TRAINED_BYTES = 4
"""Of a trained number in an adapter's file."""
PLANNED_BYTES_PER_TOKEN = 5
"""Of a file of rows, names of its fields included."""
TOKENIZER = "tokenizer.json"
REMEMBERED_MAX = 8
_remembered: dict[tuple[object, ...], JobInputs] = {}
"""By what tells two states of a config and its files apart; a plan asks for each offer anew."""


@dataclass(frozen=True, kw_only=True)
class JobInputs:
    """What is known of a job before it has a card."""

    tables: TrainerConfig
    shape: Shape | None
    problem: str
    """Why the sizes of the base are unknown, and what to do; empty if they are known."""
    lengths: RowLengths | None
    sent_bytes: float
    """What this computer sends: data, code, an adapter to go on from, a base that lies here."""
    base_bytes: float
    """Of the weights as they are stored, from which the base is loaded."""
    base_sent: bool
    """Whether they are sent from here, not fetched from the hub by the machine."""
    adapter_bytes: float
    """Of what comes home."""
    may_count: bool = True
    """Whether memory may be counted on the model itself, which takes seconds."""
    host_bytes: float | None = None
    """What a machine needs of its own memory to load the base; None if nothing is known of it."""
    upload: UploadRate | None = None
    """How fast files last travelled from here to such machines, if that was ever measured."""


def job_inputs(loaded: LoadedConfig) -> JobInputs:
    """Return what is known of a job; read anew only if the config or one of its files changed."""
    marks = _marks(loaded)
    if marks not in _remembered:
        if len(_remembered) >= REMEMBERED_MAX:
            _remembered.clear()
        _remembered[marks] = _read(loaded)
    return _remembered[marks]


def with_hub(inputs: JobInputs, hub: HubAnswer) -> JobInputs:
    """Return the inputs with what the hub said of the base: its size, and who fetches it."""
    weights = hub.found.weights_bytes or inputs.base_bytes
    sent = inputs.sent_bytes + (weights if hub.base.sent and not inputs.base_sent else 0)
    return replace(
        inputs,
        base_bytes=float(weights),
        sent_bytes=sent,
        base_sent=inputs.base_sent or hub.base.sent,
    )


def _marks(loaded: LoadedConfig) -> tuple[object, ...]:
    """Return what tells two states of a config and its files apart."""
    folder = base_folder(loaded)
    files = [*loaded.data_files.values(), *([folder / "config.json"] if folder else [])]
    files += [upload_file(_cache(), one) for one in loaded.config.vm.providers]
    return (str(loaded.path), loaded.config.model_dump_json(), *(_mark(path) for path in files))


def _last_upload(loaded: LoadedConfig) -> UploadRate | None:
    """Return the last measured rate to the first provider that has one; it is this end's line."""
    found = (last_upload(_cache(), one) for one in loaded.config.vm.providers)
    return next(filter(None, found), None)


def _mark(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError:  # not there: that is its state
        return str(path), -1, -1
    return str(path), found.st_size, found.st_mtime_ns


def _read(loaded: LoadedConfig) -> JobInputs:
    """Read what is known of a job."""
    tables = TrainerConfig.model_validate(loaded.config.trainer_tables)
    folder, description = base_folder(loaded), config_for_plan(loaded)
    shape, problem = _shape(description, loaded.config.model.id)
    tokenizer = folder / TOKENIZER if folder and (folder / TOKENIZER).is_file() else None
    weights = base_files.weights_bytes(folder) if folder else 0
    if not weights and shape is not None:
        weights = shape.parameters * _stored_bytes(description or {})
    sent = loaded.model_folder is not None
    lengths = row_lengths(loaded, tokenizer)
    trained = 0
    if shape is not None:
        trained = adapter_parameters(shape, setup_of(tables, PrecisionChoice.BF16))
    parent = trained * TRAINED_BYTES if tables.method.parent else 0
    return JobInputs(
        tables=tables,
        shape=shape,
        problem=problem,
        lengths=lengths,
        sent_bytes=CODE_BYTES + _data_bytes(loaded, lengths) + parent + (weights if sent else 0),
        base_bytes=float(weights),
        base_sent=sent,
        adapter_bytes=float(trained * TRAINED_BYTES),
        host_bytes=_host_bytes(tables, folder, weights),
        upload=_last_upload(loaded),
    )


def _host_bytes(tables: TrainerConfig, folder: Path | None, weights: float) -> float | None:
    """Return the memory that loading takes, by the files here, else as if they were one."""
    files = weight_files(folder) if folder else []
    if not files and not weights:
        return None
    quantised = tables.method.storage is not Quant.NONE
    return host_bytes_needed(files or [WeightFile(size=int(weights))], quantised=quantised)


def _data_bytes(loaded: LoadedConfig, lengths: RowLengths | None) -> float:
    """Return the bytes of the data files here; of planned rows that are not, what they will have.

    What lies on a hub is fetched by the machine.
    """
    files = loaded.data_files
    general = loaded.general_file
    sent = [*files.values(), *([general] if general else [])]
    here = sum(path.stat().st_size for path in sent if path.is_file())
    if lengths is None or lengths.counted or not files:
        return here
    return here + lengths.rows * lengths.mean_tokens * PLANNED_BYTES_PER_TOKEN


def _cache() -> Path:
    return qft_home(environment()) / "cache"


def _shape(description: Mapping[str, Any] | None, model: str) -> tuple[Shape | None, str]:
    """Return the sizes of the base, or why they are unknown and what to do."""
    if description is None:
        meant = did_you_mean(model, after="; ")
        there = f"unknown until the base's config.json lies here (`hf download` brings it){meant}"
        return None, there
    try:
        return base_shape(description), ""
    except UnknownShapeError as error:
        return None, f"not known: {error}"


def _stored_bytes(description: Mapping[str, Any]) -> int:
    """Return the bytes of a stored weight: four where the config says float32, else two."""
    stored = description.get("dtype") or description.get("torch_dtype")
    return BYTES[PrecisionChoice.FP32] if stored == "float32" else BYTES[PrecisionChoice.BF16]
