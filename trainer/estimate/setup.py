"""What decides how much memory and time a step of a training takes, besides the base's sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from trainer.config import PrecisionChoice
from trainer.estimate.loops import OURS, Loop
from trainer.method_table import OptimizerKind, Quant

BYTES: Mapping[PrecisionChoice, int] = MappingProxyType(
    {PrecisionChoice.FP32: 4, PrecisionChoice.BF16: 2, PrecisionChoice.FP16: 2}
)


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """What is trained and how; `tokens` is the length of the sequences, prompt and answer."""

    tokens: int
    micro_batch: int = 1
    batch_size: int | None = None  # sequences per step; None: a step has several passes
    quant: Quant = Quant.NF4
    double_quant: bool = True
    r: int = 8
    targets: tuple[str, ...] | None = None  # None: every linear layer of the blocks
    dropout: bool = False
    optimizer: OptimizerKind = OptimizerKind.ADAMW
    precision: PrecisionChoice = PrecisionChoice.FP16
    checkpointing: bool = True
    loss_tokens: int | None = None  # tokens per sequence that reach the head; None: all of them
    dora: bool = False
    bases: int | None = None  # per matrix, if the matrices are combinations of so many (NOLA)
    miss: bool = False
    variant: Literal["lora", "vera", "loha"] = "lora"  # which none of our methods is, but the first
    new_tokens: bool = False  # PEFT puts their rows into a copy of the embedding in every pass
    saved: int = 0  # embedding and head, as far as they are trained whole
    head: bool = False  # the head has an adapter, too
    full: bool = False  # every weight is trained, and there is no adapter
    stored_bytes: float | None = None  # of a quantised weight, where it is not stored as `quant` is
    cards: int = 1
    """Of the machine, which compute the micro-batches of a step between them."""
    sharded: bool = False
    """Whether each card holds a part of the base's 4-bit weights only (`trainer.group.shard`)."""
    loop: Loop = OURS

    @property
    def accumulates(self) -> bool:
        """Whether gradients of an earlier pass of the step are there during a pass."""
        single = self.batch_size is not None and self.micro_batch >= self.batch_size
        return self.loop.accumulates and not single

    @property
    def adapter_bytes(self) -> float:
        """The bytes of one trained number."""
        return self.loop.trained_bytes
