"""Sizes of common bases with state spaces, with fused matrices, or with a tower that sees."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from trainer.estimate.base_rows import CommonBase, columns

TIED: dict[str, Any] = {"tie_word_embeddings": True}
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}
EVERY_TENTH = (5, 15, 25, 35)
LFM2_16 = [2, 5, 8, 10, 12, 14]

lfm2 = columns(
    "hidden_size block_ff_dim num_hidden_layers num_attention_heads", model_type="lfm2",
    num_key_value_heads=8, vocab_size=65536, max_position_embeddings=128000, tie_embedding=True,
).base  # fmt: skip
falcon_h1 = columns(
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    " head_dim mamba_d_ssm mamba_n_heads mamba_d_state vocab_size max_position_embeddings",
    model_type="falcon_h1", mamba_n_groups=1, **UNTIED,
).base  # fmt: skip
granite_4 = columns(
    "hidden_size shared_intermediate_size num_hidden_layers num_attention_heads"
    " num_key_value_heads mamba_n_heads",
    model_type="granitemoehybrid", vocab_size=100352, mamba_d_state=128, mamba_n_groups=1,
    num_local_experts=0, max_position_embeddings=131072, **TIED,
).base  # fmt: skip
LLAMA = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    " vocab_size max_position_embeddings"
)
baichuan = columns(LLAMA, model_type="baichuan", **UNTIED).base
internlm2 = columns(LLAMA, model_type="internlm2", bias=False, **UNTIED).base
chatglm = columns(
    "hidden_size ffn_hidden_size num_layers num_attention_heads padded_vocab_size seq_length",
    model_type="chatglm", multi_query_attention=True, multi_query_group_num=2, kv_channels=128,
    add_qkv_bias=True, **UNTIED,
).base  # fmt: skip
mpt = columns("d_model n_layers n_heads vocab_size max_seq_len", model_type="mpt", **TIED).base
TEXT = columns(LLAMA, attention_bias=False)
QWEN_2_5_TOWER = {
    "depth": 32, "hidden_size": 1280, "num_heads": 16, "in_chans": 3, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
QWEN_3_TOWER = {
    "in_channels": 3, "num_heads": 16, "num_position_embeddings": 2304, "patch_size": 16,
    "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip


def layers(count: int, attending: Collection[int]) -> list[str]:
    """Return the kinds of Granite 4's layers, given the numbers of those that attend."""
    return ["attention" if at in attending else "mamba" for at in range(count)]


def qwen2_5_vl(
    name: str, billions: float, *sizes: int, tower: int, same: str, **more: Any
) -> CommonBase:
    """Return a Qwen2.5-VL; `tower` is the width of its tower's feed-forward part."""
    vision = {**QWEN_2_5_TOWER, "intermediate_size": tower, "out_hidden_size": sizes[0]}
    return columns(LLAMA, model_type="qwen2_5_vl", vision_config=vision, **UNTIED).base(
        name, billions, *sizes, same=same, **more
    )


def qwen3_vl(
    name: str, billions: float, *sizes: int, tower: tuple[int, int, int], same: str, tied: bool
) -> CommonBase:
    """Return a Qwen3-VL; `tower` has the layers and the two widths of its tower."""
    depth, hidden, width = tower
    deep = [8, 16, 24] if depth > 24 else [5, 11, 17]
    text = TEXT.base("", 0.0, *sizes, model_type="qwen3_vl_text", head_dim=128).config
    vision = {
        **QWEN_3_TOWER, "depth": depth, "hidden_size": hidden, "intermediate_size": width,
        "out_hidden_size": sizes[0], "deepstack_visual_indexes": deep,
    }  # fmt: skip
    return CommonBase(
        id=name,
        billions=billions,
        config={
            "model_type": "qwen3_vl",
            "text_config": {**text, "tie_word_embeddings": tied},
            "vision_config": vision,
            "tie_word_embeddings": tied,
        },
        same_sizes=tuple(same.split()),
    )


# fmt: off
STATES = (
    lfm2("LiquidAI/LFM2-350M", 0.3545, 1024, 6656, 16, 16, full_attn_idxs=LFM2_16),
    lfm2("LiquidAI/LFM2-700M", 0.7425, 1536, 10240, 16, 24, full_attn_idxs=LFM2_16),
    lfm2("LiquidAI/LFM2-1.2B", 1.170, 2048, 12288, 16, 32, full_attn_idxs=LFM2_16,
         same="LiquidAI/LFM2.5-1.2B-Base LiquidAI/LFM2.5-1.2B-Instruct"),
    lfm2("LiquidAI/LFM2-2.6B", 2.569, 2048, 10752, 30, 32, block_auto_adjust_ff_dim=False,
         full_attn_idxs=[2, 5, 9, 13, 17, 21, 24, 27]),
    granite_4("ibm-granite/granite-4.0-350m-base", 0.352, 1024, 2048, 28, 16, 4, 128,
              layer_types=layers(28, range(28)), same="ibm-granite/granite-4.0-350m"),
    granite_4("ibm-granite/granite-4.0-h-350m-base", 0.340, 768, 2048, 32, 12, 4, 48,
              layer_types=layers(32, (10, 13, 17, 27)), same="ibm-granite/granite-4.0-h-350m"),
    granite_4("ibm-granite/granite-4.0-1b-base", 1.632, 2048, 4096, 40, 16, 4, 128,
              layer_types=layers(40, range(40)), same="ibm-granite/granite-4.0-1b"),
    granite_4("ibm-granite/granite-4.0-h-1b-base", 1.463, 1536, 4096, 40, 12, 4, 48,
              layer_types=layers(40, EVERY_TENTH), same="ibm-granite/granite-4.0-h-1b"),
    granite_4("ibm-granite/granite-4.0-micro-base", 3.403, 2560, 8192, 40, 40, 8, 128,
              layer_types=layers(40, range(40)),
              same="ibm-granite/granite-4.0-micro granite-4.0-micro-3b"),
    granite_4("ibm-granite/granite-4.0-h-micro-base", 3.191, 2048, 8192, 40, 32, 8, 64,
              layer_types=layers(40, EVERY_TENTH),
              same="ibm-granite/granite-4.0-h-micro granite-4.0-h-micro-3b"),
    granite_4("ibm-granite/granite-4.0-h-tiny-base", 6.939, 1536, 1024, 40, 12, 4, 48,
              layer_types=layers(40, EVERY_TENTH), num_local_experts=64, num_experts_per_tok=6,
              intermediate_size=512, same="ibm-granite/granite-4.0-h-tiny"),
    granite_4("ibm-granite/granite-4.0-h-small-base", 32.207, 4096, 1536, 40, 32, 8, 128,
              layer_types=layers(40, EVERY_TENTH), num_local_experts=72, num_experts_per_tok=10,
              intermediate_size=768, same="ibm-granite/granite-4.0-h-small"),
    falcon_h1("tiiuae/Falcon-H1-0.5B-Base", 0.521, 1024, 2048, 36, 8, 2, 64, 1536, 24, 128, 32784,
              16384, same="tiiuae/Falcon-H1-0.5B-Instruct"),
    falcon_h1("tiiuae/Falcon-H1-1.5B-Base", 1.555, 2048, 4608, 24, 8, 2, 128, 3072, 48, 256, 65537,
              131072, same="tiiuae/Falcon-H1-1.5B-Instruct"),
    falcon_h1("tiiuae/Falcon-H1-1.5B-Deep-Base", 1.555, 1280, 3072, 66, 6, 2, 128, 1536, 24, 256,
              65537, 131072, same="tiiuae/Falcon-H1-1.5B-Deep-Instruct"),
    falcon_h1("tiiuae/Falcon-H1-3B-Base", 3.149, 2560, 6144, 32, 10, 2, 128, 4096, 32, 256, 65537,
              131072, same="tiiuae/Falcon-H1-3B-Instruct"),
    falcon_h1("tiiuae/Falcon-H1-7B-Base", 7.586, 3072, 12288, 44, 12, 2, 128, 3072, 24, 256, 130049,
              262144, same="tiiuae/Falcon-H1-7B-Instruct"),
    falcon_h1("tiiuae/Falcon-H1-34B-Base", 33.643, 5120, 21504, 72, 20, 4, 128, 4096, 32, 256,
              261120, 262144, mamba_n_groups=2, same="tiiuae/Falcon-H1-34B-Instruct"),
)
FUSED = (
    baichuan("baichuan-inc/Baichuan-7B", 7.001, 4096, 11008, 32, 32, 32, 64000, 4096),
    baichuan("baichuan-inc/Baichuan-13B-Base", 13.265, 5120, 13696, 40, 40, 40, 64000, 4096,
             same="baichuan-inc/Baichuan-13B-Chat"),
    baichuan("baichuan-inc/Baichuan2-7B-Base", 7.506, 4096, 11008, 32, 32, 32, 125696, 4096,
             same="baichuan-inc/Baichuan2-7B-Chat"),
    baichuan("baichuan-inc/Baichuan2-13B-Base", 13.897, 5120, 13696, 40, 40, 40, 125696, 4096,
             same="baichuan-inc/Baichuan2-13B-Chat"),
    internlm2("internlm/internlm2-1_8b", 1.889, 2048, 8192, 24, 16, 8, 92544, 32768,
              same="internlm/internlm2-chat-1_8b internlm/internlm2_5-1_8b"),
    internlm2("internlm/internlm2-7b", 7.738, 4096, 14336, 32, 32, 8, 92544, 32768,
              same="internlm/internlm2-chat-7b internlm/internlm2_5-7b"
              " internlm/internlm2_5-7b-chat"),
    internlm2("internlm/internlm2-20b", 19.861, 6144, 16384, 48, 48, 8, 92544, 32768,
              same="internlm/internlm2-chat-20b internlm/internlm2_5-20b"),
    chatglm("zai-org/chatglm3-6b", 6.244, 4096, 13696, 28, 32, 65024, 8192,
            same="zai-org/chatglm3-6b-base THUDM/chatglm3-6b zai-org/chatglm2-6b chatglm-2-6b"),
    chatglm("zai-org/glm-4-9b-chat", 9.400, 4096, 13696, 40, 32, 151552, 131072,
            same="zai-org/glm-4-9b THUDM/glm-4-9b"),
    columns("hidden_size ff_intermediate_size num_hidden_layers num_attention_heads"
            " num_key_value_heads vocab_size max_position_embeddings",
            model_type="phi3small", **TIED).base(
        "microsoft/Phi-3-small-8k-instruct", 7.392, 4096, 14336, 32, 32, 8, 100352, 8192,
        same="microsoft/Phi-3-small-128k-instruct phi-3-small-7b phi-3-7b"),
    mpt("mosaicml/mpt-7b", 6.649, 4096, 32, 32, 50432, 2048,
        same="mosaicml/mpt-7b-instruct mosaicml/mpt-7b-chat"),
    mpt("mosaicml/mpt-30b", 29.957, 7168, 48, 64, 50432, 8192, same="mosaicml/mpt-30b-instruct"),
)
SEEING = (
    qwen2_5_vl("Qwen/Qwen2.5-VL-3B-Instruct", 3.755, 2048, 11008, 36, 16, 2, 151936, 128000,
               tower=3420, same="", **TIED),
    qwen2_5_vl("Qwen/Qwen2.5-VL-7B-Instruct", 8.292, 3584, 18944, 28, 28, 4, 152064, 128000,
               tower=3420, same="unsloth/Qwen2.5-VL-7B-Instruct"),
    qwen2_5_vl("Qwen/Qwen2.5-VL-32B-Instruct", 33.453, 5120, 27648, 64, 40, 8, 152064, 128000,
               tower=3456, same=""),
    qwen2_5_vl("Qwen/Qwen2.5-VL-72B-Instruct", 73.411, 8192, 29568, 80, 64, 8, 152064, 128000,
               tower=3456, same=""),
    qwen3_vl("Qwen/Qwen3-VL-2B-Instruct", 2.128, 2048, 6144, 28, 16, 8, 151936, 262144,
             tower=(24, 1024, 4096), same="Qwen/Qwen3-VL-2B-Thinking", tied=True),
    qwen3_vl("Qwen/Qwen3-VL-4B-Instruct", 4.438, 2560, 9728, 36, 32, 8, 151936, 262144,
             tower=(24, 1024, 4096), same="Qwen/Qwen3-VL-4B-Thinking", tied=True),
    qwen3_vl("Qwen/Qwen3-VL-8B-Instruct", 8.767, 4096, 12288, 36, 32, 8, 151936, 262144,
             tower=(27, 1152, 4304), same="Qwen/Qwen3-VL-8B-Thinking", tied=False),
    qwen3_vl("Qwen/Qwen3-VL-32B-Instruct", 33.357, 5120, 25600, 64, 64, 8, 151936, 262144,
             tower=(27, 1152, 4304), same="Qwen/Qwen3-VL-32B-Thinking", tied=False),
)
# fmt: on
MIXED_KINDS: tuple[CommonBase, ...] = STATES + FUSED + SEEING
