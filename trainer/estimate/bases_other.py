"""Sizes of common bases of other kinds than LLaMA's, typed from their published `config.json`."""

from __future__ import annotations

from typing import Any

from trainer.estimate.base_rows import CommonBase, columns

DENSE = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    " vocab_size max_position_embeddings"
)
NEOX = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads vocab_size"
    " max_position_embeddings"
)
TIED: dict[str, Any] = {"tie_word_embeddings": True}
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}
gemma = columns(DENSE, model_type="gemma", head_dim=256, **TIED).base
gemma2 = columns(DENSE, model_type="gemma2", head_dim=256, **TIED).base
gemma3_text = columns(DENSE, model_type="gemma3_text", head_dim=256, **TIED).base
neox = columns(NEOX, model_type="gpt_neox", **UNTIED).base
phi = columns(NEOX, model_type="phi", **UNTIED).base
qwen = columns(NEOX, model_type="qwen", kv_channels=128, **UNTIED).base
gpt2 = columns("n_embd n_layer n_head vocab_size n_positions", model_type="gpt2", **TIED).base
opt = columns(
    "hidden_size ffn_dim num_hidden_layers num_attention_heads vocab_size max_position_embeddings",
    model_type="opt", do_layer_norm_before=True, **TIED,
).base  # fmt: skip
bloom = columns("hidden_size n_layer n_head vocab_size", model_type="bloom", **TIED).base
starcoder2 = columns(DENSE, model_type="starcoder2", use_bias=True, **TIED).base
T5 = "d_model d_ff d_kv num_heads num_layers vocab_size"
t5 = columns(T5, model_type="t5", feed_forward_proj="relu", **TIED).base
flan_t5 = columns(T5, model_type="t5", feed_forward_proj="gated-gelu", **UNTIED).base


def gemma3(name: str, billions: float, *sizes: int, same: str, **text: Any) -> CommonBase:
    """Return a Gemma 3 that also sees: its text model's sizes, and its tower's."""
    inner = columns(DENSE, model_type="gemma3_text", head_dim=256).base("", 0.0, *sizes, **text)
    return CommonBase(
        id=name,
        billions=billions,
        config={
            "model_type": "gemma3",
            "text_config": inner.config,
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": 1152,
                "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27,
                "image_size": 896, "patch_size": 14, "vision_use_head": False,
            },
        },
        gated=True,
        same_sizes=tuple(same.split()),
    )  # fmt: skip


# fmt: off
GOOGLE = (
    gemma("google/gemma-2b", 2.506, 2048, 16384, 18, 8, 1, 256000, 8192, gated=True,
          same="google/gemma-2b-it google/gemma-1.1-2b-it google/codegemma-2b"),
    gemma("google/gemma-7b", 8.538, 3072, 24576, 28, 16, 16, 256000, 8192, gated=True,
          same="google/gemma-7b-it google/gemma-1.1-7b-it google/codegemma-7b"
          " google/codegemma-7b-it"),
    gemma2("google/gemma-2-2b", 2.614, 2304, 9216, 26, 8, 4, 256000, 8192, gated=True,
           same="google/gemma-2-2b-it"),
    gemma2("google/gemma-2-9b", 9.242, 3584, 14336, 42, 16, 8, 256000, 8192, gated=True,
           same="google/gemma-2-9b-it"),
    gemma2("google/gemma-2-27b", 27.227, 4608, 36864, 46, 32, 16, 256000, 8192, gated=True,
           head_dim=128, same="google/gemma-2-27b-it"),
    gemma3_text("google/gemma-3-270m", 0.268, 640, 2048, 18, 4, 1, 262144, 32768, gated=True,
                same="google/gemma-3-270m-it google/functiongemma-270m-it"),
    gemma3_text("google/gemma-3-1b-pt", 1.000, 1152, 6912, 26, 4, 1, 262144, 32768, gated=True,
                same="google/gemma-3-1b-it"),
    gemma3("google/gemma-3-4b-pt", 4.300, 2560, 10240, 34, 8, 4, 262208, 131072,
           same="google/gemma-3-4b-it google/medgemma-4b-it"),
    gemma3("google/gemma-3-12b-pt", 12.187, 3840, 15360, 48, 16, 8, 262208, 131072,
           same="google/gemma-3-12b-it"),
    gemma3("google/gemma-3-27b-pt", 27.432, 5376, 21504, 62, 32, 16, 262208, 131072,
           same="google/gemma-3-27b-it", head_dim=128),
    t5("google-t5/t5-small", 0.0605, 512, 2048, 64, 8, 6, 32128, weight_bytes=4),
    t5("google-t5/t5-base", 0.2229, 768, 3072, 64, 12, 12, 32128, weight_bytes=4),
    t5("google-t5/t5-large", 0.7377, 1024, 4096, 64, 16, 24, 32128, weight_bytes=4),
    t5("google-t5/t5-3b", 2.852, 1024, 16384, 128, 32, 24, 32128, weight_bytes=4),
    t5("google-t5/t5-11b", 11.307, 1024, 65536, 128, 128, 24, 32128, weight_bytes=4),
    flan_t5("google/flan-t5-small", 0.0770, 512, 1024, 64, 6, 8, 32128, weight_bytes=4,
            same="google/t5-v1_1-small"),
    flan_t5("google/flan-t5-base", 0.2476, 768, 2048, 64, 12, 12, 32128, weight_bytes=4,
            same="google/t5-v1_1-base"),
    flan_t5("google/flan-t5-large", 0.7832, 1024, 2816, 64, 16, 24, 32128, weight_bytes=4,
            same="google/t5-v1_1-large"),
    flan_t5("google/flan-t5-xl", 2.850, 2048, 5120, 64, 32, 24, 32128, weight_bytes=4,
            same="google/t5-v1_1-xl flan-t5-3b"),
    flan_t5("google/flan-t5-xxl", 11.135, 4096, 10240, 64, 64, 24, 32128, weight_bytes=4,
            same="google/t5-v1_1-xxl flan-t5-11b"),
)
GPT = (
    phi("microsoft/phi-1_5", 1.418, 2048, 8192, 24, 32, 51200, 2048,
        same="microsoft/phi-1 phi-1.5-1.3b"),
    phi("microsoft/phi-2", 2.780, 2560, 10240, 32, 32, 51200, 2048, same="phi-2-2.7b"),
    qwen("Qwen/Qwen-1_8B", 1.837, 2048, 11008, 24, 16, 151936, 8192, same="Qwen/Qwen-1_8B-Chat"),
    qwen("Qwen/Qwen-7B", 7.721, 4096, 22016, 32, 32, 151936, 32768, same="Qwen/Qwen-7B-Chat"),
    qwen("Qwen/Qwen-14B", 14.167, 5120, 27392, 40, 40, 152064, 8192, same="Qwen/Qwen-14B-Chat"),
    qwen("Qwen/Qwen-72B", 72.288, 8192, 49152, 80, 64, 152064, 32768, same="Qwen/Qwen-72B-Chat"),
    neox("stabilityai/stablelm-base-alpha-3b", 3.638, 4096, 16384, 16, 32, 50688, 4096,
         weight_bytes=4, same="stabilityai/stablelm-tuned-alpha-3b stablelm-alpha-3b"),
    neox("stabilityai/stablelm-base-alpha-7b", 7.869, 6144, 24576, 16, 48, 50432, 4096,
         weight_bytes=4, same="stabilityai/stablelm-tuned-alpha-7b stablelm-alpha-7b"),
    neox("EleutherAI/pythia-14m", 0.01407, 128, 512, 6, 4, 50304, 2048),
    neox("EleutherAI/pythia-31m", 0.03049, 256, 1024, 6, 8, 50304, 2048),
    neox("EleutherAI/pythia-70m", 0.0704, 512, 2048, 6, 8, 50304, 2048,
         same="EleutherAI/pythia-70m-deduped"),
    neox("EleutherAI/pythia-160m", 0.1623, 768, 3072, 12, 12, 50304, 2048,
         same="EleutherAI/pythia-160m-deduped"),
    neox("EleutherAI/pythia-410m", 0.4053, 1024, 4096, 24, 16, 50304, 2048,
         same="EleutherAI/pythia-410m-deduped"),
    neox("EleutherAI/pythia-1b", 1.012, 2048, 8192, 16, 8, 50304, 2048,
         same="EleutherAI/pythia-1b-deduped"),
    neox("EleutherAI/pythia-1.4b", 1.415, 2048, 8192, 24, 16, 50304, 2048,
         same="EleutherAI/pythia-1.4b-deduped"),
    neox("EleutherAI/pythia-2.8b", 2.775, 2560, 10240, 32, 32, 50304, 2048,
         same="EleutherAI/pythia-2.8b-deduped databricks/dolly-v2-3b"),
    neox("EleutherAI/pythia-6.9b", 6.857, 4096, 16384, 32, 32, 50432, 2048,
         same="EleutherAI/pythia-6.9b-deduped databricks/dolly-v2-7b"),
    neox("EleutherAI/pythia-12b", 11.846, 5120, 20480, 36, 40, 50688, 2048,
         same="EleutherAI/pythia-12b-deduped databricks/dolly-v2-12b"),
    neox("EleutherAI/gpt-neox-20b", 20.554, 6144, 24576, 44, 64, 50432, 2048),
    neox("togethercomputer/RedPajama-INCITE-Base-3B-v1", 2.776, 2560, 10240, 32, 32, 50432, 2048,
         same="togethercomputer/RedPajama-INCITE-Instruct-3B-v1"),
    neox("togethercomputer/RedPajama-INCITE-7B-Base", 6.857, 4096, 16384, 32, 32, 50432, 2048,
         same="togethercomputer/RedPajama-INCITE-7B-Instruct"),
    columns("hidden_size num_hidden_layers num_attention_heads vocab_size max_position_embeddings",
            model_type="falcon", multi_query=True, **TIED).base(
        "tiiuae/falcon-7b", 6.922, 4544, 32, 71, 65024, 2048, same="tiiuae/falcon-7b-instruct"),
    columns("hidden_size num_hidden_layers num_attention_heads num_kv_heads vocab_size",
            model_type="falcon", new_decoder_architecture=True, max_position_embeddings=2048,
            **TIED).base(
        "tiiuae/falcon-40b", 41.303, 8192, 60, 128, 8, 65024, same="tiiuae/falcon-40b-instruct"),
    columns("hidden_size num_hidden_layers num_attention_heads num_kv_heads vocab_size",
            model_type="falcon", new_decoder_architecture=True, max_position_embeddings=2048,
            **TIED).base(
        "tiiuae/falcon-180B", 178.560, 14848, 80, 232, 8, 65024, gated=True,
        same="tiiuae/falcon-180B-chat"),
    gpt2("openai-community/gpt2", 0.1244, 768, 12, 12, 50257, 1024, weight_bytes=4,
         same="gpt-2-124m gpt-2-117m gpt-2-small"),
    gpt2("openai-community/gpt2-medium", 0.3548, 1024, 24, 16, 50257, 1024, weight_bytes=4,
         same="gpt-2-355m gpt-2-345m"),
    gpt2("openai-community/gpt2-large", 0.7740, 1280, 36, 20, 50257, 1024, weight_bytes=4,
         same="gpt-2-774m gpt-2-762m"),
    gpt2("openai-community/gpt2-xl", 1.558, 1600, 48, 25, 50257, 1024, weight_bytes=4,
         same="gpt-2-1.5b"),
    columns("n_embd n_layer n_head vocab_size n_positions", model_type="gptj", **UNTIED).base(
        "EleutherAI/gpt-j-6b", 6.051, 4096, 28, 16, 50400, 2048, weight_bytes=4),
    opt("facebook/opt-125m", 0.1252, 768, 3072, 12, 12, 50272, 2048),
    opt("facebook/opt-1.3b", 1.316, 2048, 8192, 24, 32, 50272, 2048),
    opt("facebook/opt-2.7b", 2.652, 2560, 10240, 32, 32, 50272, 2048),
    opt("facebook/opt-6.7b", 6.658, 4096, 16384, 32, 32, 50272, 2048),
    opt("facebook/opt-13b", 12.853, 5120, 20480, 40, 40, 50272, 2048),
    opt("facebook/opt-30b", 29.975, 7168, 28672, 48, 56, 50272, 2048),
    opt("facebook/opt-66b", 65.720, 9216, 36864, 64, 72, 50272, 2048),
    bloom("bigscience/bloom-560m", 0.5592, 1024, 24, 16, 250880, same="bigscience/bloomz-560m"),
    bloom("bigscience/bloom-1b1", 1.065, 1536, 24, 16, 250880, same="bigscience/bloomz-1b1"),
    bloom("bigscience/bloom-1b7", 1.722, 2048, 24, 16, 250880, same="bigscience/bloomz-1b7"),
    bloom("bigscience/bloom-3b", 3.003, 2560, 30, 32, 250880, same="bigscience/bloomz-3b"),
    bloom("bigscience/bloom-7b1", 7.069, 4096, 30, 32, 250880, same="bigscience/bloomz-7b1"),
    bloom("bigscience/bloom", 176.247, 14336, 70, 112, 250880,
          same="bigscience/bloomz bloom-176b"),
    starcoder2("bigcode/starcoder2-3b", 3.030, 3072, 12288, 30, 24, 2, 49152, 16384),
    starcoder2("bigcode/starcoder2-7b", 7.174, 4608, 18432, 32, 36, 4, 49152, 16384),
    starcoder2("bigcode/starcoder2-15b", 15.957, 6144, 24576, 40, 48, 4, 49152, 16384,
               tie_word_embeddings=False, weight_bytes=4),
)
MIXTRAL = "hidden_size intermediate_size num_hidden_layers num_attention_heads vocab_size"
mixtral = columns(MIXTRAL, model_type="mixtral", num_local_experts=8, num_experts_per_tok=2,
                  num_key_value_heads=8, **UNTIED).base
qwen3_moe = columns(
    "hidden_size intermediate_size moe_intermediate_size num_hidden_layers num_attention_heads",
    model_type="qwen3_moe", vocab_size=151936, head_dim=128, num_experts=128,
    num_experts_per_tok=8, decoder_sparse_step=1, mlp_only_layers=[], num_key_value_heads=4,
    max_position_embeddings=40960, **UNTIED).base
gpt_oss = columns(
    "num_hidden_layers num_local_experts", model_type="gpt_oss", vocab_size=201088,
    hidden_size=2880, intermediate_size=2880, num_attention_heads=64, num_key_value_heads=8,
    head_dim=64, num_experts_per_tok=4, attention_bias=True, max_position_embeddings=131072,
    **UNTIED).base
MIXTURES = (
    mixtral("mistralai/Mixtral-8x7B-v0.1", 46.703, 4096, 14336, 32, 32, 32000,
            max_position_embeddings=32768,
            same="mistralai/Mixtral-8x7B-Instruct-v0.1 mixtral-8x7b"),
    mixtral("mistralai/Mixtral-8x22B-v0.1", 140.621, 6144, 16384, 56, 48, 32000,
            max_position_embeddings=65536,
            same="mistralai/Mixtral-8x22B-Instruct-v0.1 mixtral-8x22b"),
    qwen3_moe("Qwen/Qwen3-30B-A3B", 30.532, 2048, 6144, 768, 48, 32,
              same="Qwen/Qwen3-30B-A3B-Base Qwen/Qwen3-30B-A3B-Instruct-2507"
              " Qwen/Qwen3-Coder-30B-A3B-Instruct"),
    qwen3_moe("Qwen/Qwen3-235B-A22B", 235.094, 4096, 12288, 1536, 94, 64,
              same="Qwen/Qwen3-235B-A22B-Instruct-2507"),
    gpt_oss("openai/gpt-oss-20b", 20.915, 24, 32, weight_bytes=0.658,
            same="unsloth/gpt-oss-20b"),  # its experts are stored in 4 bits (MXFP4)
    gpt_oss("openai/gpt-oss-120b", 116.829, 36, 128, weight_bytes=0.558,
            same="unsloth/gpt-oss-120b"),
    CommonBase(
        id="deepseek-ai/DeepSeek-V2-Lite", billions=15.706,
        same_sizes=("deepseek-ai/DeepSeek-V2-Lite-Chat", "deepseek-ai/DeepSeek-Coder-V2-Lite-Base",
                    "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct", "deepseek-v2-lite-16b"),
        config={
            "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048,
            "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
            "num_attention_heads": 16, "num_key_value_heads": 16, "n_routed_experts": 64,
            "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
            "kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64, "v_head_dim": 128, "max_position_embeddings": 163840, **UNTIED,
        }),
    CommonBase(
        id="Qwen/Qwen1.5-MoE-A2.7B", billions=14.316,
        same_sizes=("Qwen/Qwen1.5-MoE-A2.7B-Chat",),
        config={
            "model_type": "qwen2_moe", "vocab_size": 151936, "hidden_size": 2048,
            "intermediate_size": 5632, "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632, "num_hidden_layers": 24,
            "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 60,
            "num_experts_per_tok": 4, "decoder_sparse_step": 1, "max_position_embeddings": 8192,
            **UNTIED,
        }),
    CommonBase(
        id="allenai/OLMoE-1B-7B-0125", billions=6.919,
        same_sizes=("allenai/OLMoE-1B-7B-0125-Instruct", "allenai/OLMoE-1B-7B-0924", "olmoe-7b"),
        config={
            "model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048,
            "intermediate_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16,
            "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8,
            "max_position_embeddings": 4096, **UNTIED,
        }),
    CommonBase(
        id="microsoft/Phi-3.5-MoE-instruct", billions=41.873, same_sizes=("phi-3.5-moe-42b",),
        config={
            "model_type": "phimoe", "vocab_size": 32064, "hidden_size": 4096,
            "intermediate_size": 6400, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "num_local_experts": 16, "num_experts_per_tok": 2,
            "attention_bias": True, "lm_head_bias": True, "max_position_embeddings": 131072,
            **UNTIED,
        }),
    CommonBase(
        id="zai-org/GLM-4.5-Air", billions=106.852,
        same_sizes=("zai-org/GLM-4.5-Air-Base", "glm-4.5-air-106b"),
        config={
            "model_type": "glm4_moe", "vocab_size": 151552, "hidden_size": 4096,
            "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 46,
            "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128,
            "n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 8,
            "first_k_dense_replace": 1, "attention_bias": True, "use_qk_norm": False,
            "max_position_embeddings": 131072, **UNTIED,
        }),
    CommonBase(
        id="Qwen/Qwen3-Next-80B-A3B-Instruct", billions=79.674,
        same_sizes=("Qwen/Qwen3-Next-80B-A3B-Thinking", "qwen3-next-80b"),
        config={
            "model_type": "qwen3_next", "vocab_size": 151936, "hidden_size": 2048,
            "intermediate_size": 5120, "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512, "num_hidden_layers": 48,
            "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
            "full_attention_interval": 4, "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128, "linear_num_key_heads": 16,
            "linear_num_value_heads": 32, "linear_value_head_dim": 128, "num_experts": 512,
            "num_experts_per_tok": 10, "decoder_sparse_step": 1, "mlp_only_layers": [],
            "max_position_embeddings": 262144, **UNTIED,
        }),
    # Its own architecture is counted here as GLM-4.5's without norms of queries and keys, which
    # has the same matrices under the same names.
    CommonBase(
        id="baidu/ERNIE-4.5-21B-A3B-PT", billions=21.825,
        same_sizes=("baidu/ERNIE-4.5-21B-A3B-Base-PT", "baidu/ERNIE-4.5-21B-A3B-Thinking"),
        config={
            "model_type": "glm4_moe", "vocab_size": 103424, "hidden_size": 2560,
            "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_hidden_layers": 28,
            "num_attention_heads": 20, "num_key_value_heads": 4, "head_dim": 128,
            "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
            "first_k_dense_replace": 1, "use_qk_norm": False, "attention_bias": False,
            "max_position_embeddings": 131072, **TIED,
        }),
)
# fmt: on
OTHER_KINDS: tuple[CommonBase, ...] = GOOGLE + GPT + MIXTURES
