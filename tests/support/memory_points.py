"""Sizes of models whose training memory others have measured, from their own configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
