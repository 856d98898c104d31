"""Random mixtures of experts of several families, each of two small layers, with a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from support import tiny

FAMILIES = ("qwen3_moe", "mixtral", "olmoe", "gpt_oss", "deepseek_v3")
HIDDEN, WIDE, EXPERTS, LAYERS = 64, 32, 4, 2
COMMON: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 3, "num_experts_per_tok": 2,
}  # fmt: skip


def config_of(family: str) -> Any:
    """Return the sizes of a small mixture of this family."""
    import transformers

    if family == "mixtral":
        return transformers.MixtralConfig(
            **COMMON, intermediate_size=WIDE, num_local_experts=EXPERTS
        )
    if family == "olmoe":
        return transformers.OlmoeConfig(**COMMON, intermediate_size=WIDE, num_experts=EXPERTS)
    if family == "gpt_oss":
        # As wide inside as outside: nothing but the layout tells rows from columns.
        return transformers.GptOssConfig(
            **COMMON, head_dim=16, intermediate_size=HIDDEN, num_local_experts=EXPERTS,
            layer_types=["sliding_attention", "full_attention"], rope_parameters={
                "rope_type": "default", "rope_theta": 10_000.0,
            },
        )  # fmt: skip
    if family == "deepseek_v3":
        return transformers.DeepseekV3Config(
            **COMMON, intermediate_size=HIDDEN, moe_intermediate_size=WIDE,
            n_routed_experts=EXPERTS, n_group=1, topk_group=1, first_k_dense_replace=1,
            q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16,
        )  # fmt: skip
    return transformers.Qwen3MoeConfig(
        **COMMON, head_dim=16, intermediate_size=HIDDEN, moe_intermediate_size=WIDE,
        num_experts=EXPERTS,
    )  # fmt: skip


def make_mixture(directory: Path, family: str = "qwen3_moe", **saving: Any) -> Path:
    """Write a random mixture and its tokenizer to `directory`, and return it."""
    import transformers

    tiny.make_tokenizer().save_pretrained(str(directory))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of(family))
    with torch.no_grad():  # the first weights are so small that a router hardly chooses
        for name, tensor in model.named_parameters():
            if "expert" in name or "gate" in name or "router" in name:
                tensor.normal_(std=0.2)
    model.save_pretrained(str(directory), **saving)
    return directory
