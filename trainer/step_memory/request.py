"""What a counted step is asked by, and what is found: plain values, checked at the border."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from trainer.config import TrainTable
from trainer.method_table import MethodTable

TOKENS_MAX = 1 << 24
"""Of one pass, all rows together."""


class StepRequest(BaseModel):
    """A training step: the base, what is trained, on which device, and how long its rows are.

    All rows have `tokens`, of which `loss_tokens` are learnt (None: all); an encoder-decoder reads
    `tokens` and writes `loss_tokens`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    config: Mapping[str, Any] = Field(description="The base's `config.json`.")
    method: MethodTable = Field(default_factory=MethodTable)
    train: TrainTable = Field(default_factory=TrainTable)
    new_tokens: int = Field(default=0, ge=0, le=100_000, description="Tokens added to the base.")
    capability: Annotated[tuple[int, int], Field()] | None = Field(
        default=None, description="The GPU's compute capability; None: a CPU."
    )
    tokens: int = Field(ge=2, le=TOKENS_MAX)
    loss_tokens: int | None = Field(default=None, ge=1, le=TOKENS_MAX)
    micro_batches: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        default=(1,), min_length=1, max_length=8, description="Rows of a pass; each is counted."
    )
    padded: bool | None = Field(
        default=None,
        description="Whether rows of a pass differ in length; None: if there are several.",
    )
    attention: Literal["sdpa", "eager"] | None = Field(
        default=None, description="The implementation; None: what transformers takes by itself."
    )
    all_logits: bool = Field(
        default=False,
        description="Make the logits of all tokens, in float32, as the loss of transformers does.",
    )


@dataclass(frozen=True, kw_only=True)
class CountedPass:
    """The most bytes that are there at once in a step of so many rows a pass, and in what part."""

    micro_batch: int
    peak: int
    at: str


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """The bytes of a step: what stays, and the peak for each size of a pass."""

    base: int
    adapter: int
    optimizer: int
    passes: tuple[CountedPass, ...]
