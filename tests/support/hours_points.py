"""Published times of trainings on one card, to fit the speeds of cards on; sources are named.

Only figures are copied. A row is as long as its source says; where it says only which data were
trained, the length is estimated, and marked. Seconds are of one micro-pass, its share of the
optimizer's step included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from support.memory_points import MODELS, llama
from trainer.device.shapes import read_shape
from trainer.estimate.gpus import GPUS
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.step_time import step_seconds
from trainer.method_table import Quant

QWEN = "QwenLM/Qwen 2df8e8a, README, Profiling of Memory and Speed (2023-12)"
LITGPT = "Lightning-AI/litgpt 00af8b0, config_hub/finetune/README.md (2024-09)"
PEFT = "huggingface/peft, method_comparison/MetaMathQA/results (2026-07-15)"
UNSLOTH = "unslothai/unsloth, README, row Huggingface, 1 T4 (2024-03)"
FACTORY = "hiyouga/LLaMA-Factory, wiki, Performance-Comparison (2023-12)"

SIZES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        **MODELS,
        "mistral-7b": llama(4096, 14336, 32, 32, 8, 32000, model_type="mistral"),
        "llama-3.2-1b": llama(2048, 8192, 16, 32, 8, 128256, tie_word_embeddings=True),
        "gemma-7b": llama(
            3072, 24576, 28, 16, 16, 256000, model_type="gemma", head_dim=256,
            tie_word_embeddings=True,
        ),
        "phi-2": {
            "model_type": "phi", "hidden_size": 2560, "intermediate_size": 10240,
            "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 51200,
        },
    }
)  # fmt: skip

ALPACA_TOKENS = MappingProxyType({1: 124, 2: 165, 4: 207, 8: 250})
"""Of a row of Alpaca in its template, padded to the longest of so many.

The dataset's card gives 46.2 MB for 52,002 rows that hold each text twice, so a row has about 530
bytes; lengths are taken to be lognormal with a deviation of 0.55."""
METAMATH_TOKENS = round(4_198_051 / 20_000 * 1.1)
"""PEFT counts the tokens and sorts rows by length; a tenth is padding."""
QV = ("q_proj", "v_proj")


@dataclass(frozen=True, kw_only=True)
class HoursPoint:
    """One published time."""

    model: str
    card: str
    quant: str
    r: int
    targets: tuple[str, ...] | None
    micro_batch: int
    accumulation: int
    tokens: int
    checkpointing: bool
    seconds: float
    source: str
    dora: bool = False
    estimated_length: bool = False

    @property
    def estimate(self) -> float:
        """Seconds of a micro-pass as they are estimated."""
        gpu = GPUS[self.card]
        work = TrainingSetup(
            tokens=self.tokens,
            micro_batch=self.micro_batch,
            quant=Quant(self.quant),
            double_quant=False,
            r=self.r,
            targets=self.targets,
            dropout=True,
            precision=gpu.precision,
            checkpointing=self.checkpointing,
            dora=self.dora,
        )
        rows = self.micro_batch * self.accumulation
        step = step_seconds(read_shape(SIZES[self.model]), work, gpu=gpu, batch_size=rows)
        return step / self.accumulation

    @property
    def error(self) -> float:
        """By which factor the estimate is off, at least 1."""
        return math.exp(abs(math.log(self.estimate / self.seconds)))


def qwen(model: str, *seconds: float) -> list[HoursPoint]:
    """A row of Qwen's table: seconds of a step of eight rows, from 256 to 8192 tokens long.

    Its targets are all linear layers of its own code, where queries, keys and values are one.
    """
    return [
        HoursPoint(
            model=model, card="A100", quant="none", r=64, targets=None, micro_batch=1,
            accumulation=8, tokens=256 << at, checkpointing=True, seconds=each / 8, source=QWEN,
        )
        for at, each in enumerate(seconds)
    ]  # fmt: skip


def litgpt(  # noqa: PLR0917 - one line of a table
    model: str, quant: str, r: int, targets: tuple[str, ...] | None, micro_batch: int,
    epochs: int, minutes: float, batch: int = 8,
) -> HoursPoint:  # fmt: skip
    """A row of litgpt's table: minutes for epochs of 1900 rows of Alpaca, in 16 bits throughout."""
    passes = 1900 * epochs / micro_batch
    return HoursPoint(
        model=model, card="A10G", quant=quant, r=r, targets=targets, micro_batch=micro_batch,
        accumulation=batch // micro_batch, tokens=ALPACA_TOKENS[micro_batch], checkpointing=False,
        seconds=minutes * 60 / passes, source=LITGPT, estimated_length=True,
    )  # fmt: skip


def peft(r: int, targets: tuple[str, ...], seconds: float, *, dora: bool = False) -> HoursPoint:
    """A run of PEFT's: seconds of 250 steps of four rows."""
    return HoursPoint(
        model="llama-3.2-3b", card="L40S", quant="none", r=r, targets=targets, micro_batch=4,
        accumulation=1, tokens=METAMATH_TOKENS, checkpointing=False, seconds=seconds / 250,
        source=PEFT, dora=dora, estimated_length=True,
    )  # fmt: skip


def factory(quant: str, tokens_per_s: float) -> HoursPoint:
    """A row of LLaMA-Factory's table: tokens in a second, of rows of at most 1024."""
    return HoursPoint(
        model="llama-2-7b", card="A100", quant=quant, r=8, targets=QV, micro_batch=4,
        accumulation=2, tokens=1024, checkpointing=True, seconds=4096 / tokens_per_s,
        source=FACTORY, estimated_length=True,
    )  # fmt: skip


POINTS = (
    *qwen("qwen-1.8b", 1.0, 1.0, 1.1, 1.7, 3.3, 6.8),
    *qwen("qwen-7b", 1.2, 1.5, 2.8, 5.2, 10.1, 21.3),
    *qwen("qwen-14b", 1.6, 2.4, 4.4, 8.4, 17.0, 36.0),
    factory("none", 2954),
    factory("nf4", 2415),
    litgpt("falcon-7b", "none", 32, ("query_key_value",), 1, 4, 24.84),
    litgpt("falcon-7b", "nf4", 32, ("query_key_value",), 1, 4, 50.85),
    litgpt("llama-2-7b", "none", 32, QV, 2, 4, 32.82),
    litgpt("llama-2-7b", "nf4", 32, QV, 2, 4, 45.67),
    litgpt("mistral-7b", "none", 32, QV, 2, 4, 31.00),
    litgpt("mistral-7b", "nf4", 32, QV, 2, 4, 44.75),
    litgpt("llama-3-8b", "none", 32, QV, 1, 2, 14.79),
    litgpt("llama-3-8b", "nf4", 32, QV, 2, 2, 22.24),
    litgpt("llama-3.2-1b", "none", 32, QV, 1, 2, 4.17),
    litgpt("llama-3.2-1b", "nf4", 32, QV, 2, 2, 6.20),
    litgpt("llama-3.2-3b", "none", 32, QV, 1, 2, 8.31),
    litgpt("llama-3.2-3b", "nf4", 32, QV, 2, 2, 14.89),
    litgpt("gemma-2b", "none", 8, None, 2, 2, 9.41, batch=6),
    litgpt("gemma-2b", "nf4", 16, None, 2, 2, 12.91, batch=6),
    litgpt("gemma-7b", "nf4", 16, None, 1, 2, 43.58, batch=6),
    litgpt("phi-2", "none", 8, None, 4, 1, 3.78),
    litgpt("phi-2", "nf4", 8, None, 4, 1, 4.51),
    litgpt("phi-3-mini", "none", 8, None, 4, 1, 6.46),
    litgpt("phi-3-mini", "nf4", 8, None, 4, 1, 7.47),
    litgpt("tinyllama", "none", 32, None, 8, 3, 8.09),
    litgpt("tinyllama", "nf4", 32, None, 8, 3, 8.70),
    peft(32, QV, 29.0),
    peft(64, QV, 29.7),
    peft(32, QV, 35.2, dora=True),
    peft(10, ("gate_proj", "up_proj", "down_proj"), 33.4),
    # 51,760 rows in 23 h 15 min.
    HoursPoint(
        model="llama-2-7b", card="T4", quant="nf4", r=16, targets=None, micro_batch=2,
        accumulation=4, tokens=ALPACA_TOKENS[2], checkpointing=True, seconds=2 * 83_700 / 51_760,
        source=UNSLOTH, estimated_length=True,
    ),
)  # fmt: skip


def quantile(values: list[float], share: float) -> float:
    """The smallest value that so large a share of them does not pass."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
