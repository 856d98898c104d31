"""What models publish in their `config.json`, of the keys that decide their sizes; with sources.

Each is typed from the file that its source names, and no default of a class is filled in: what a
published config leaves out is left out here. `billions` is what the model card gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HUB = "huggingface.co/"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published config."""

    config: dict[str, Any]
    billions: float
    source: str


def published(billions: float, source: str, **config: Any) -> Published:
    """Return one published config, with the address of its file and the parameters it is said."""
    return Published(
        config=config, billions=billions, source=f"{HUB}{source}/blob/main/config.json"
    )


QWEN3_MOE = {
    "model_type": "qwen3_moe", "vocab_size": 151936, "head_dim": 128, "num_experts": 128,
    "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "num_key_value_heads": 4, "attention_bias": False, "tie_word_embeddings": False,
}  # fmt: skip
MIXTRAL = {
    "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2,
    "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip

MIXTURES: dict[str, Published] = {
    "Mixtral-8x7B": published(
        46.7, "mistralai/Mixtral-8x7B-v0.1",
        **MIXTRAL, vocab_size=32000, hidden_size=4096, intermediate_size=14336,
        num_hidden_layers=32, num_attention_heads=32, max_position_embeddings=32768,
    ),
    "Mixtral-8x22B": published(
        140.6, "mistralai/Mixtral-8x22B-v0.1",
        **MIXTRAL, vocab_size=32000, hidden_size=6144, intermediate_size=16384,
        num_hidden_layers=56, num_attention_heads=48, max_position_embeddings=65536,
    ),
    "Qwen3-30B-A3B": published(
        30.5, "Qwen/Qwen3-30B-A3B",
        **QWEN3_MOE, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768,
        num_hidden_layers=48, num_attention_heads=32, max_position_embeddings=40960,
    ),
    "Qwen3-235B-A22B": published(
        235.1, "Qwen/Qwen3-235B-A22B",
        **QWEN3_MOE, hidden_size=4096, intermediate_size=12288, moe_intermediate_size=1536,
        num_hidden_layers=94, num_attention_heads=64, max_position_embeddings=40960,
    ),
    "Qwen1.5-MoE-A2.7B": published(
        14.3, "Qwen/Qwen1.5-MoE-A2.7B-Chat",
        model_type="qwen2_moe", vocab_size=151936, hidden_size=2048, intermediate_size=5632,
        moe_intermediate_size=1408, shared_expert_intermediate_size=5632, num_hidden_layers=24,
        num_attention_heads=16, num_key_value_heads=16, num_experts=60, num_experts_per_tok=4,
        decoder_sparse_step=1, tie_word_embeddings=False, max_position_embeddings=32768,
    ),
    "DeepSeek-V2-Lite": published(
        15.7, "deepseek-ai/DeepSeek-V2-Lite-Chat",
        model_type="deepseek_v2", vocab_size=102400, hidden_size=2048, intermediate_size=10944,
        moe_intermediate_size=1408, num_hidden_layers=27, num_attention_heads=16,
        num_key_value_heads=16, n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6,
        first_k_dense_replace=1, moe_layer_freq=1, kv_lora_rank=512, q_lora_rank=None,
        qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, tie_word_embeddings=False,
        max_position_embeddings=163840,
    ),
    "DeepSeek-V3": published(
        671.0, "deepseek-ai/DeepSeek-V3",
        model_type="deepseek_v3", vocab_size=129280, hidden_size=7168, intermediate_size=18432,
        moe_intermediate_size=2048, num_hidden_layers=61, num_attention_heads=128,
        num_key_value_heads=128, n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8,
        first_k_dense_replace=3, moe_layer_freq=1, kv_lora_rank=512, q_lora_rank=1536,
        qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, attention_bias=False,
        tie_word_embeddings=False, num_nextn_predict_layers=1, max_position_embeddings=163840,
    ),
    "gpt-oss-20b": published(
        20.9, "openai/gpt-oss-20b",
        model_type="gpt_oss", vocab_size=201088, hidden_size=2880, intermediate_size=2880,
        num_hidden_layers=24, num_attention_heads=64, num_key_value_heads=8, head_dim=64,
        num_local_experts=32, num_experts_per_tok=4, experts_per_token=4, attention_bias=True,
        tie_word_embeddings=False, max_position_embeddings=131072,
    ),
    "OLMoE-1B-7B": published(
        6.9, "allenai/OLMoE-1B-7B-0125-Instruct",
        model_type="olmoe", vocab_size=50304, hidden_size=2048, intermediate_size=1024,
        num_hidden_layers=16, num_attention_heads=16, num_key_value_heads=16, num_experts=64,
        num_experts_per_tok=8, tie_word_embeddings=False, max_position_embeddings=4096,
    ),
    "Phi-3.5-MoE": published(
        41.9, "microsoft/Phi-3.5-MoE-instruct",
        model_type="phimoe", vocab_size=32064, hidden_size=4096, intermediate_size=6400,
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, num_local_experts=16,
        num_experts_per_tok=2, attention_bias=True, lm_head_bias=True, tie_word_embeddings=False,
        max_position_embeddings=131072,
    ),
    "granite-3.1-3b-a800m": published(
        3.3, "ibm-granite/granite-3.1-3b-a800m-instruct",
        model_type="granitemoe", vocab_size=49155, hidden_size=1536, intermediate_size=512,
        num_hidden_layers=32, num_attention_heads=24, num_key_value_heads=8, num_local_experts=40,
        num_experts_per_tok=8, tie_word_embeddings=True, max_position_embeddings=131072,
    ),
    "GLM-4.5-Air": published(
        106.9, "zai-org/GLM-4.5-Air",
        model_type="glm4_moe", vocab_size=151552, hidden_size=4096, intermediate_size=10944,
        moe_intermediate_size=1408, num_hidden_layers=46, num_attention_heads=96,
        num_key_value_heads=8, head_dim=128, n_routed_experts=128, n_shared_experts=1,
        num_experts_per_tok=8, first_k_dense_replace=1, attention_bias=True, use_qk_norm=False,
        num_nextn_predict_layers=1, tie_word_embeddings=False, max_position_embeddings=131072,
    ),
    "Qwen3-Next-80B-A3B": published(
        79.7, "Qwen/Qwen3-Next-80B-A3B-Instruct",
        model_type="qwen3_next", vocab_size=151936, hidden_size=2048, intermediate_size=5120,
        moe_intermediate_size=512, shared_expert_intermediate_size=512, num_hidden_layers=48,
        num_attention_heads=16, num_key_value_heads=2, head_dim=256, full_attention_interval=4,
        linear_conv_kernel_dim=4, linear_key_head_dim=128, linear_num_key_heads=16,
        linear_num_value_heads=32, linear_value_head_dim=128, num_experts=512,
        num_experts_per_tok=10, decoder_sparse_step=1, mlp_only_layers=[],
        tie_word_embeddings=False, max_position_embeddings=262144,
    ),
}  # fmt: skip

MULTIMODAL: dict[str, Published] = {
    "gemma-3-4b": published(
        4.3, "google/gemma-3-4b-it",
        model_type="gemma3", mm_tokens_per_image=256, image_token_index=262144,
        text_config={"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
                     "num_hidden_layers": 34, "sliding_window": 1024,
                     "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        vision_config={"model_type": "siglip_vision_model", "hidden_size": 1152,
                       "intermediate_size": 4304, "num_attention_heads": 16,
                       "num_hidden_layers": 27, "image_size": 896, "patch_size": 14,
                       "vision_use_head": False},
    ),
    "Llama-4-Scout": published(
        107.8, "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        model_type="llama4",
        text_config={"model_type": "llama4_text", "vocab_size": 202048, "hidden_size": 5120,
                     "intermediate_size": 8192, "intermediate_size_mlp": 16384,
                     "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8,
                     "head_dim": 128, "num_local_experts": 16, "num_experts_per_tok": 1,
                     "interleave_moe_layer_step": 1, "use_qk_norm": True, "attention_bias": False,
                     "max_position_embeddings": 10485760},
        vision_config={"model_type": "llama4_vision_model", "hidden_size": 1408,
                       "intermediate_size": 5632, "num_hidden_layers": 34,
                       "num_attention_heads": 16, "image_size": 336, "patch_size": 14},
    ),
    "Qwen2-VL-7B": published(
        8.29, "Qwen/Qwen2-VL-7B-Instruct",
        model_type="qwen2_vl", vocab_size=152064, hidden_size=3584, intermediate_size=18944,
        num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        tie_word_embeddings=False, max_position_embeddings=32768,
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4,
                       "num_heads": 16, "in_chans": 3, "patch_size": 14, "spatial_merge_size": 2,
                       "temporal_patch_size": 2},
    ),
    "Qwen2.5-VL-7B": published(
        8.29, "Qwen/Qwen2.5-VL-7B-Instruct",
        model_type="qwen2_5_vl", vocab_size=152064, hidden_size=3584, intermediate_size=18944,
        num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        tie_word_embeddings=False, max_position_embeddings=128000,
        vision_config={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420,
                       "num_heads": 16, "in_chans": 3, "out_hidden_size": 3584, "patch_size": 14,
                       "spatial_merge_size": 2, "temporal_patch_size": 2},
    ),
    "Qwen3-VL-8B": published(
        8.77, "Qwen/Qwen3-VL-8B-Instruct",
        model_type="qwen3_vl", tie_word_embeddings=False,
        text_config={"model_type": "qwen3_vl_text", "vocab_size": 151936, "hidden_size": 4096,
                     "intermediate_size": 12288, "num_hidden_layers": 36,
                     "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
                     "attention_bias": False, "max_position_embeddings": 262144},
        vision_config={"model_type": "qwen3_vl", "depth": 27, "hidden_size": 1152,
                       "intermediate_size": 4304, "num_heads": 16, "in_channels": 3,
                       "num_position_embeddings": 2304, "out_hidden_size": 4096, "patch_size": 16,
                       "spatial_merge_size": 2, "temporal_patch_size": 2,
                       "deepstack_visual_indexes": [8, 16, 24]},
    ),
    "Qwen3-VL-30B-A3B": published(
        31.07, "Qwen/Qwen3-VL-30B-A3B-Instruct",
        model_type="qwen3_vl_moe", tie_word_embeddings=False,
        text_config={"model_type": "qwen3_vl_moe_text", "vocab_size": 151936, "hidden_size": 2048,
                     "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128,
                     "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
                     "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
                     "head_dim": 128, "attention_bias": False, "max_position_embeddings": 262144},
        vision_config={"model_type": "qwen3_vl_moe", "depth": 27, "hidden_size": 1152,
                       "intermediate_size": 4304, "num_heads": 16, "in_channels": 3,
                       "num_position_embeddings": 2304, "out_hidden_size": 2048, "patch_size": 16,
                       "spatial_merge_size": 2, "temporal_patch_size": 2,
                       "deepstack_visual_indexes": [8, 16, 24]},
    ),
    "Qwen3.5-35B-A3B": published(
        34.7, "Qwen/Qwen3.5-35B-A3B",
        model_type="qwen3_5_moe", tie_word_embeddings=False,
        text_config={"model_type": "qwen3_5_moe_text", "vocab_size": 248320, "hidden_size": 2048,
                     "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
                     "num_experts": 256, "num_experts_per_tok": 8, "mlp_only_layers": [],
                     "num_hidden_layers": 40, "num_attention_heads": 16, "num_key_value_heads": 2,
                     "head_dim": 256, "full_attention_interval": 4, "linear_conv_kernel_dim": 4,
                     "linear_key_head_dim": 128, "linear_num_key_heads": 16,
                     "linear_num_value_heads": 32, "linear_value_head_dim": 128,
                     "attention_bias": False, "max_position_embeddings": 262144},
        vision_config={"model_type": "qwen3_5_moe", "depth": 27, "hidden_size": 1152,
                       "intermediate_size": 4304, "num_heads": 16, "in_channels": 3,
                       "num_position_embeddings": 2304, "out_hidden_size": 2048, "patch_size": 16,
                       "spatial_merge_size": 2, "temporal_patch_size": 2},
    ),
}  # fmt: skip
