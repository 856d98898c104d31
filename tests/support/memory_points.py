"""Published measurements of training memory, to hold the forecast against; sources are named.

Model sizes are those of the models' own configs; only figures are copied, each with its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config import PrecisionChoice
from trainer.estimate.setup import TrainingSetup
from trainer.method_table import OptimizerKind, Quant

LITGPT = "litgpt 26857050, config_hub/finetune/README.md and tutorials/resource-tables.md"
QWEN = "QwenLM/Qwen 2df8e8a, README, Profiling of Memory and Speed"
TORCHTUNE = "pytorch/torchtune bd2a0fc7, README"
FSDP = "AnswerDotAI/fsdp_qlora, benchmarks_03_2024.md"
PEFT = "peft method_comparison/MetaMathQA"
QV = ("q_proj", "v_proj")
FUSED = ("query_key_value",)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured peak."""

    model: str
    quant: str
    r: int
    targets: tuple[str, ...] | None
    micro_batch: int
    tokens: int
    checkpointing: bool
    gb: float
    source: str

    @property
    def workload(self) -> TrainingSetup:
        """The measured training in our terms; litgpt and torchtune keep adapters in 16 bits."""
        return TrainingSetup(
            tokens=self.tokens,
            micro_batch=self.micro_batch,
            quant=Quant.NONE if self.quant == "none" else Quant.NF4,
            double_quant=self.quant in {"nf4-dq", "int4-g128"},
            r=self.r,
            targets=self.targets,
            dropout=True,
            optimizer=OptimizerKind.ADAMW,
            precision=PrecisionChoice.BF16,
            checkpointing=self.checkpointing,
            adapter_bytes=2 if self.source in {LITGPT, TORCHTUNE} else 4,
        )


def point(  # noqa: PLR0917 - one line of a table
    model: str, quant: str, r: int, targets: tuple[str, ...] | None, micro_batch: int,
    tokens: int, checkpointing: int, gb: float, source: str,
) -> Point:  # fmt: skip
    """One line of the table below."""
    return Point(
        model=model,
        quant=quant,
        r=r,
        targets=targets,
        micro_batch=micro_batch,
        tokens=tokens,
        checkpointing=bool(checkpointing),
        gb=gb,
        source=source,
    )


def llama(  # noqa: PLR0917 - one line of a table
    hidden: int, wide: int, layers: int, heads: int, groups: int, words: int, **more: Any
) -> Mapping[str, Any]:  # fmt: skip
    """The sizes of a model of the LLaMA kind in its config's words."""
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": words,
        "tie_word_embeddings": False,
    } | more


MODELS: Mapping[str, Mapping[str, Any]] = {
    "falcon-7b": {
        "model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32,
        "num_attention_heads": 71, "vocab_size": 65024, "multi_query": True,
    },
    "llama-2-7b": llama(4096, 11008, 32, 32, 32, 32000),
    "llama-2-13b": llama(5120, 13824, 40, 40, 40, 32000),
    "llama-3-8b": llama(4096, 14336, 32, 32, 8, 128256),
    "llama-3.2-3b": llama(3072, 8192, 28, 24, 8, 128256, tie_word_embeddings=True),
    "phi-3-mini": llama(3072, 8192, 32, 32, 32, 32064),
    "tinyllama": llama(2048, 5632, 22, 32, 4, 32000),
    "gemma-2b": llama(
        2048, 16384, 18, 8, 1, 256000, model_type="gemma", head_dim=256, tie_word_embeddings=True
    ),
    "stablelm-alpha-3b": {
        "model_type": "gpt_neox", "hidden_size": 4096, "num_hidden_layers": 16,
        "num_attention_heads": 32, "vocab_size": 50688, "intermediate_size": 16384,
    },
    "phi-1.5": {
        "model_type": "phi", "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 24, "num_attention_heads": 32, "vocab_size": 51200,
    },
    "qwen-1.8b": llama(2048, 5504, 24, 16, 16, 151936, model_type="qwen"),
    "qwen-7b": llama(4096, 11008, 32, 32, 32, 151936, model_type="qwen"),
    "qwen-14b": llama(5120, 13696, 40, 40, 40, 152064, model_type="qwen"),
}  # fmt: skip

POINTS = (
    point("falcon-7b", "nf4", 32, FUSED, 1, 512, 0, 9.44, LITGPT),
    point("llama-2-7b", "nf4", 32, QV, 2, 512, 0, 13.68, LITGPT),
    point("llama-3-8b", "nf4", 32, QV, 2, 512, 0, 17.41, LITGPT),
    point("phi-3-mini", "nf4", 8, None, 4, 512, 0, 19.13, LITGPT),
    point("stablelm-alpha-3b", "nf4", 32, FUSED, 1, 512, 0, 5.24, LITGPT),
    point("gemma-2b", "none", 16, None, 2, 512, 0, 12.62, LITGPT),
    point("llama-2-7b", "none", 32, QV, 2, 512, 0, 19.77, LITGPT),
    point("llama-3.2-3b", "none", 32, QV, 1, 512, 0, 9.67, LITGPT),
    point("stablelm-alpha-3b", "none", 32, FUSED, 1, 512, 0, 8.58, LITGPT),
    point("tinyllama", "none", 32, None, 8, 512, 0, 13.5, LITGPT),
    point("phi-1.5", "none", 8, QV, 4, 1044, 0, 10.68, LITGPT),
    point("stablelm-alpha-3b", "nf4", 8, FUSED, 1, 1034, 0, 6.35, LITGPT),
    point("llama-2-7b", "none", 8, QV, 1, 1304, 0, 21.3, LITGPT),
    point("llama-2-13b", "nf4-dq", 8, QV, 1, 1304, 0, 22.55, LITGPT),
    point("qwen-1.8b", "int4-g128", 64, None, 1, 256, 1, 5.8, QWEN),
    point("qwen-1.8b", "int4-g128", 64, None, 1, 1024, 1, 6.6, QWEN),
    point("qwen-7b", "int4-g128", 64, None, 1, 512, 1, 11.5, QWEN),
    point("qwen-7b", "int4-g128", 64, None, 1, 4096, 1, 16.9, QWEN),
    point("qwen-7b", "int4-g128", 64, None, 1, 8192, 1, 23.5, QWEN),
    point("qwen-14b", "int4-g128", 64, None, 1, 2048, 1, 19.9, QWEN),
    point("qwen-1.8b", "none", 64, None, 1, 512, 1, 7.4, QWEN),
    point("qwen-1.8b", "none", 64, None, 1, 1024, 1, 8.4, QWEN),
    point("qwen-1.8b", "none", 64, None, 1, 8192, 1, 21.8, QWEN),
    point("qwen-14b", "none", 64, None, 1, 512, 1, 35.1, QWEN),
    point("qwen-14b", "none", 64, None, 1, 4096, 1, 42.5, QWEN),
    point("qwen-14b", "none", 64, None, 1, 8192, 1, 55.2, QWEN),
    point("llama-2-7b", "none", 64, None, 4, 2048, 1, 23.66, FSDP),
    point("llama-3-8b", "none", 8, None, 2, 2048, 1, 17.39, TORCHTUNE),
    point("llama-3.2-3b", "none", 64, QV, 4, 768, 0, 22.56, PEFT),
)
