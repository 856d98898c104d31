"""What a machine may send home, by name and by size: the contract, and nothing beside it.

A machine is a stranger. What it offers under other names stays there, and what is larger than a job
of this adapter can make it is refused before a byte travels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from commands.runs.base_description import described
from commands.runs.base_shape import base_shape
from commands.runs.config import LoadedConfig
from remote.sync.manifest import Limits
from trainer.config import TrainerConfig
from trainer.device.shapes import UnknownShapeError
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.weights import adapter_parameters
from trainer.method_table import MethodKind, MethodTable
from trainer.rundir.samples import SAMPLES, SAMPLES_BYTES_MAX
from trainer.saving.manifest import (
    FILES,
    LOG,
    MANIFEST,
    MANIFEST_BYTES_MAX,
    STATE,
    TEXT_BYTES_MAX,
)

FLOAT_BYTES = 4
"""Of one trained number; ours are always float32."""
COPIES_MAX = 4
"""An optimizer's two moments, or the weights of now and of the best validation, and as much again
for layers that the base's description does not tell of."""
ROOM_BYTES = 64 << 20
"""For names and whatever else is small."""
RANK_BYTES_MAX = 200 << 20
"""Per rank, of an adapter on a base that is not known here: on 70 billion weights it has half."""
SAVED_BYTES_MAX = 48 << 30
"""Of an embedding or a head with its copies; one of 262,144 x 8,192 has 8.6 GB."""
STEPS_MAX = 99_999_999
"""What fits the name of a checkpoint."""
STEP_BYTES_MAX = 1000
"""Of one line of the log; it has about 250."""
PACKED = (".gz", ".parquet")
"""Endings of data files whose size says little of how many rows are in them."""
RESTARTS_MAX = 4096
"""Each start of the trainer begins a file of curves."""
MEBIBYTE = 1 << 20
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model"),
)
"""What `save_pretrained` of a tokenizer may write; chat templates of a name are left there."""
TEXTS = (
    *("metrics.jsonl", "status.json", "eval-before.json", "eval-after.json", "memory.json"),
    SAMPLES,
)
CURVES = r"tb/events\.out\.tfevents\.\d{1,20}\.\d{1,20}"
STAYS = ("checkpoints", "config.json", "README.md", ".*", "*.partial", "*.tmp", "*.lock")
"""What an honest trainer has there too, and nobody misses at home."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The most that a run can make, from its config and the base's own description."""

    method: MethodTable
    tensor_bytes_max: int
    """Of one file of tensors."""
    steps_max: int
    new_tokens: bool = False
    """Whether tokens were added, so that the tokenizer comes with the adapter."""

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """The files of `adapter/`; what an adapter of another kind has would be taken for one."""
        return (*self.method.kind.adapter_files, *TOKENIZER_FILES * self.new_tokens)

    @property
    def foreign_names(self) -> tuple[str, ...]:
        """The files of adapters of other kinds: left by an earlier run, they would mislead."""
        return tuple(
            sorted(
                {name for kind in MethodKind for name in kind.adapter_files} - {*self.adapter_names}
            )
        )

    @property
    def results(self) -> str:
        """A regular expression for the paths, below the run directory, that come home."""
        adapter = "|".join(re.escape(name) for name in self.adapter_names)
        texts = "|".join(re.escape(name) for name in TEXTS)
        return rf"(?:{texts}|adapter/(?:{adapter})|{CURVES})"

    @property
    def log_bytes_max(self) -> int:
        """Of the log of all steps."""
        return min(self.steps_max * STEP_BYTES_MAX + MEBIBYTE, TEXT_BYTES_MAX)

    @property
    def limits(self) -> Limits:
        """What of the results is refused for its size."""
        return Limits(
            files_max=RESTARTS_MAX + len(TEXTS) + len(self.adapter_names),
            file_bytes_max=16 * MEBIBYTE,
            total_bytes_max=2 * self.tensor_bytes_max + 4 * self.log_bytes_max + (1 << 30),
            sizes=(
                (r".*\.safetensors", self.tensor_bytes_max),
                (r"eval-.*|adapter/.*(?:tokenizer|vocab|merges).*", 256 * MEBIBYTE),
                (r"(?:status|memory)\.json", MEBIBYTE),
                (r"metrics\.jsonl|tb/.*", self.log_bytes_max),
                (re.escape(SAMPLES), SAMPLES_BYTES_MAX),
            ),
        )

    @property
    def checkpoint_limits(self) -> Limits:
        """The same for one checkpoint."""
        return Limits(
            files_max=len(FILES) + 1,
            file_bytes_max=16 * MEBIBYTE,
            total_bytes_max=2 * self.tensor_bytes_max
            + self.log_bytes_max
            + SAMPLES_BYTES_MAX
            + ROOM_BYTES,
            sizes=(
                (r".*\.safetensors", self.tensor_bytes_max),
                (re.escape(LOG), self.log_bytes_max),
                (re.escape(STATE), 16 * MEBIBYTE + SAMPLES_BYTES_MAX),
                (re.escape(MANIFEST), MANIFEST_BYTES_MAX),
            ),
        )


def expected(loaded: LoadedConfig) -> Expected:
    """Work out what a run can make at most; where the base is not known here, by rank alone."""
    tables = TrainerConfig.model_validate(loaded.config.trainer_tables)
    numbers = _trained_numbers(loaded, tables.method)
    unknown = tables.method.r * RANK_BYTES_MAX + tables.method.saved_matrices * SAVED_BYTES_MAX
    size = None if numbers is None else COPIES_MAX * FLOAT_BYTES * numbers
    return Expected(
        method=tables.method,
        tensor_bytes_max=(unknown if size is None else size) + ROOM_BYTES,
        steps_max=_steps_max(loaded, tables),
        new_tokens=bool(tables.model.new_tokens),
    )


def _trained_numbers(loaded: LoadedConfig, method: MethodTable) -> int | None:
    """How many numbers the method trains on this base; None if that cannot be told from here."""
    config = described(loaded)
    if config is None:
        return None
    work = TrainingSetup(
        tokens=1,
        r=method.r,
        targets=method.target_names,
        dora=method.kind.dora,
        bases=method.combined,
        saved=method.saved_matrices,
    )
    try:
        return adapter_parameters(base_shape(config), work)
    except UnknownShapeError:
        return None


def _steps_max(loaded: LoadedConfig, tables: TrainerConfig) -> int:
    """The steps that are asked for, or as many as there could be with a row in two bytes."""
    train = tables.train
    if train.steps is not None:
        return train.steps
    rows = 0.0
    for key, one in zip(loaded.config.data.files, loaded.config.data.train_sets, strict=False):
        file = loaded.data_files.get(key)
        if file is None or not file.is_file() or file.suffix.lower() in PACKED:
            return STEPS_MAX  # on a hub, in shards, or larger than it looks
        rows += one.weight * (file.stat().st_size // 2 + 1)
    return min(int((train.epochs or 1.0) * rows / train.batch_size) + 1, STEPS_MAX)


def left_there(count: int, names: Sequence[str]) -> str:
    """Say what a machine has beside the results."""
    what = "file that is no result" if count == 1 else "files that are no results"
    return f"{count} {what} ({', '.join(names)}{', …' if count > len(names) else ''})"
