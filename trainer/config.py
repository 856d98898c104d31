"""Checks the settings of a training run, and lists all their faults at once.

The module needs pydantic only, so the laptop checks a run with the very tables that train it.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trainer.config_errors import describe_errors
from trainer.data_table import DataTable
from trainer.errors import ConfigError
from trainer.eval_tables.any_kind import EvalTable, kind_problem
from trainer.eval_tables.scored_config import ScoredConfig
from trainer.method_table import MethodKind, MethodTable

ROWLESS = (MethodKind.NOLA, MethodKind.MISS)
"""The kinds that train no single rows of an embedding: ours has no file for them, PEFT's no key."""


class ModelTable(BaseModel):
    """Which base model is adapted."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    id: str = Field(
        min_length=1, description="A hub id such as `microsoft/phi-1_5`, or a local directory."
    )
    revision: str = Field(
        default="main", min_length=1, description="Branch, tag or commit; unused by a directory."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that came with the model. Off unless asked."
    )
    token_env: str = Field(
        default="",
        pattern=r"^(?:[A-Za-z_][A-Za-z0-9_]*)?$",
        description="Name of the variable here that holds a read-only token for the machine; "
        "without it, a gated or private base is fetched here and sent.",
    )
    new_tokens: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        default=(), description="Tokens to add to the tokenizer, whose rows are trained."
    )

    @field_validator("new_tokens")
    @classmethod
    def _tokens_differ(cls, tokens: tuple[str, ...]) -> tuple[str, ...]:
        blank = [one for one in tokens if one != one.strip()]
        if blank or len(set(tokens)) < len(tokens):
            raise ValueError("tokens must differ, and have no white space around them")
        return tokens


class LrScheduleKind(StrEnum):
    """The shape of the learning rate after warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class PrecisionChoice(StrEnum):
    """Arithmetic of the forward and backward pass; `auto` follows the device."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class TrainTable(BaseModel):
    """How long to train, at what learning rate and in what batches."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int | None = Field(
        default=None, ge=1, le=99_999_999, description="Optimizer steps; or give `epochs`."
    )
    epochs: float | None = Field(
        default=None, gt=0, description="Passes over the rows; one if neither is given."
    )
    batch_size: int = Field(default=8, ge=1, description="Sequences per optimizer step.")
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        default="auto",
        description="Sequences per forward pass, at most; cuts the batch, never its meaning.",
    )
    lr: float = Field(default=2e-4, gt=0, description="Peak learning rate.")
    warmup: float = Field(
        default=0.0, ge=0, description="Steps of linear warm-up; below 1, a share of all steps."
    )
    schedule: LrScheduleKind = Field(
        default=LrScheduleKind.LINEAR, description="Shape after warm-up."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay.")
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="Longest allowed gradient; 0 switches clipping off."
    )
    max_length: int = Field(default=1024, ge=8, description="Tokens of prompt and answer together.")
    gradient_checkpointing: Literal["auto"] | bool = Field(
        default="auto",
        description="Recompute activations to save memory; `auto`: on a GPU, where it is scarce. "
        "Switched on by itself if a step does not fit otherwise.",
    )
    precision: PrecisionChoice = Field(default=PrecisionChoice.AUTO, description="Arithmetic.")
    seed: int = Field(
        default=0, ge=0, le=2**63 - 1, description="Order, dropout and first weights."
    )
    group_by_length: bool = Field(
        default=True, description="Put rows of similar length into one batch: less padding."
    )
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        default="auto", description="CPU threads; their number is part of bit-exactness."
    )
    exact: bool = Field(
        default=True,
        description="Add up in fixed orders, so that a run that was killed and resumed has the "
        "bits of one that was not; `false`: in any order, where that is faster.",
    )

    validate_every: int | None = Field(
        default=None, ge=1, description="Steps between losses on `data.eval`; without it, none."
    )
    stop_after: int | None = Field(
        default=None, ge=1, description="Validations without a new best that end the training."
    )
    keep_best: bool = Field(
        default=True, description="Deliver the adapter of the best validation, not the last one."
    )

    samples: int = Field(
        default=5,
        ge=0,
        le=20,
        description="Rows of `data.eval` that are answered and kept, before the first step, at "
        "each validation and after the last step; 0: none.",
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainTable:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("`steps` and `epochs` both say how long to train: keep one")
        if self.stop_after is not None and self.validate_every is None:
            raise ValueError("`stop_after` counts validations: say when with `validate_every`")
        return self


class EvictionBand(StrEnum):
    """Azure's published share of machines evicted per hour, in percent."""

    UP_TO_5 = "0-5"
    UP_TO_10 = "5-10"
    UP_TO_15 = "10-15"
    UP_TO_20 = "15-20"
    OVER_20 = "20+"


_EVERY = re.compile(r"^(?:auto|(\d+(?:\.\d+)?)\s*(s|min|h))$")
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


class CheckpointTable(BaseModel):
    """When the state is saved, and how many saves are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    every: Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=_EVERY)] = Field(
        default="auto", description="`auto`, a number of steps, or a time such as `90s`, `10min`."
    )
    keep: int = Field(
        default=2, ge=2, le=100, description="Verified saves kept; one alone could be the torn one."
    )
    eviction_band: EvictionBand | None = Field(
        default=None, description="Evictions per hour in percent, for `every: auto`."
    )

    @property
    def every_s(self) -> float | None:
        """The interval in seconds, or None if it is counted in steps or chosen automatically."""
        match = _EVERY.match(self.every) if isinstance(self.every, str) else None
        if match is None or match.group(1) is None:
            return None
        return float(match.group(1)) * _SECONDS[match.group(2)]


class TrainerConfig(ScoredConfig):
    """The tables of `config.json`; a relative path in them starts at the run directory."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: ModelTable
    method: MethodTable = Field(default_factory=MethodTable)
    data: DataTable
    train: TrainTable = Field(default_factory=TrainTable)
    checkpoint: CheckpointTable = Field(default_factory=CheckpointTable)
    eval: EvalTable | None = Field(
        default=None,
        description="How held-out rows are scored, before and after; `none`: not at all. Without "
        "it, as fits the data.",
    )

    @model_validator(mode="after")
    def _rows_of_new_tokens_go_with_the_method(self) -> TrainerConfig:
        method = self.method
        if self.model.new_tokens and (method.kind in ROWLESS or method.save or method.parent):
            other = (
                "`method.from`: the adapter has its tokens already" if method.parent
                else "`method.save`: a layer is trained whole, or some of its rows" if method.save
                else f"`method.kind: {method.kind}`"
            )  # fmt: skip
            raise ValueError(f"`model.new_tokens` does not go with {other}")
        return self

    @model_validator(mode="after")
    def _eval_has_rows(self) -> TrainerConfig:
        if self.scored is not None and self.data.eval is None:
            raise ValueError("the table `eval` needs rows to score: name a file in `data.eval`")
        if self.scored is not None and (problem := kind_problem(self.scored.kind, self.data)):
            raise ValueError(problem)
        if self.scored is not None and self.scored.shots and not self.data.has_prompts:
            what = "conversations (`data.messages`)" if self.data.messages else "a `data.text`"
            have = "have" if self.data.messages else "has"
            raise ValueError(f"`eval.shots` writes prompts; {what} {have} none")
        if self.train.validate_every is not None and self.data.eval is None:
            raise ValueError("`train.validate_every` needs held-out rows: name them in `data.eval`")
        return self


def load_config(path: Path) -> TrainerConfig:
    """Read and check the JSON config at `path`; raise `ConfigError` with every fault at once."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{path}: there is no such file"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{path}: this is not JSON in UTF-8: {error}"]) from error
    try:
        return TrainerConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(describe_errors(error, TrainerConfig)) from error
